"""The style sheet of the HTML report: one column on a phone, light and dark by the reader's setting, printable."""

__all__ = ["STYLE"]

STYLE = """
:root {
  color-scheme: light dark;
  --mono: ui-monospace, "SFMono-Regular", Menlo, "Liberation Mono", monospace;
  --page: #f6f7f9; --card: #ffffff; --ink: #16202c; --soft: #5a6675; --line: #dfe4ea;
  --dense: #aab4c0; --kept: #1f6feb; --kept-ink: #ffffff; --gone: #e8ecf1; --accent: #b45309;
  --good: #146c43; --good-page: #e3f4ea; --bad: #a4232b; --bad-page: #fbe6e7; --warn: #8a4b06; --warn-page: #fdf0dc;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #10151c; --card: #181f29; --ink: #e8edf3; --soft: #9aa7b5; --line: #2b3542;
    --dense: #56626f; --kept: #4c8ff5; --kept-ink: #ffffff; --gone: #232c37; --accent: #f0a54a;
    --good: #6fd59b; --good-page: #15301f; --bad: #f28b92; --bad-page: #3a1a1d; --warn: #f0b568; --warn-page: #3a2a12;
  }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 48px; }
header p { margin: 4px 0 0; color: var(--soft); }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 0 0 12px; }
.verdict { display: inline-block; margin: 16px 0 0; padding: 6px 14px; border-radius: 999px; font-weight: 600; background: var(--gone); }
.verdict.met { background: var(--good-page); color: var(--good); }
.verdict.warns { background: var(--warn-page); color: var(--warn); }
header .next { margin-top: 10px; }
header .next.warns { color: var(--warn); font-weight: 600; }
.verdict.over { background: var(--bad-page); color: var(--bad); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 14px; margin: 22px 0 0; }
.tile, .card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.tile { padding: 14px 16px; }
.tile .name { color: var(--soft); font-size: .85rem; }
.tile .value { font-size: 1.55rem; font-weight: 650; letter-spacing: -0.02em; font-variant-numeric: tabular-nums; }
.tile .from { color: var(--soft); font-size: .85rem; font-variant-numeric: tabular-nums; }
.card { padding: 18px 20px 20px; margin: 16px 0 0; min-width: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 380px), 1fr)); gap: 0 16px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 7px 0 7px 14px; border-top: 1px solid var(--line); vertical-align: top; }
thead th { border-top: 0; color: var(--soft); font-weight: 500; font-size: .85rem; padding-top: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 500; }
td small { display: block; color: var(--soft); white-space: nowrap; }
.scroll { overflow-x: auto; }
.remark { display: block; min-width: 15rem; }
dl { display: grid; grid-template-columns: fit-content(46%) 1fr; gap: 6px 18px; margin: 0; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
.figure { display: block; width: 100%; max-width: 600px; height: auto; font-size: 13px; }
.figure .grid { stroke: var(--line); }
.figure .tick { fill: var(--soft); font-size: 12px; }
.figure .label, .figure .value { fill: var(--ink); font-weight: 600; }
.figure rect.dense { fill: var(--dense); }
.figure rect.kept { fill: var(--kept); }
.figure .on-bar { fill: #ffffff; font-weight: 650; paint-order: stroke; stroke: rgb(0 0 0 / .38); stroke-width: 2.5px; }
.figure .whisker { stroke: var(--ink); stroke-width: 1.6; }
.figure .limit { stroke: var(--accent); stroke-width: 2; stroke-dasharray: 5 4; }
.figure .limit-label { fill: var(--accent); font-weight: 650; }
.figure .mark { fill: var(--accent); }
.figure .curve { fill: none; stroke: var(--kept); stroke-width: 2; }
.figure .dot { fill: var(--card); stroke: var(--kept); stroke-width: 2.5; }
.figure .step { stroke: var(--soft); stroke-width: 1; }
.figure .heat { fill: var(--kept); shape-rendering: crispEdges; }
.figure .band { fill: var(--gone); }
.figure .even { stroke: var(--dense); stroke-width: 1.2; }
.figure .point { fill: var(--kept); fill-opacity: .75; }
.figure .ring { fill: none; stroke: var(--accent); stroke-width: 3; }
.figure .ring-back { fill: none; stroke: var(--card); stroke-width: 6; }
.widths { display: grid; grid-template-columns: minmax(0, max-content) minmax(80px, 1fr) max-content; gap: 5px 14px; align-items: center; }
.widths .name { font-family: var(--mono); font-size: .8rem; overflow-wrap: anywhere; }
.widths .track { height: 14px; border-radius: 3px; background: var(--gone); overflow: hidden; }
.widths .full { height: 100%; background: var(--dense); border-radius: 3px; overflow: hidden; min-width: 3px; }
.widths .fill { height: 100%; background: var(--kept); border-radius: 3px 0 0 3px; }
.widths .number { text-align: right; font-size: .85rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
.widths .name.gone { color: var(--soft); text-decoration: line-through; }
.widths .number.gone { color: var(--soft); }
.legend { color: var(--soft); font-size: .85rem; margin: -6px 0 14px; }
.legend i { display: inline-block; width: 12px; height: 12px; border-radius: 3px; margin: 0 5px 0 12px; vertical-align: -1px; }
.legend i:first-child { margin-left: 0; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; padding: 0; margin: 0; list-style: none; }
.chips li { border: 1px solid var(--line); border-radius: 6px; padding: 1px 8px; font-family: var(--mono); font-size: .8rem; }
.stages { display: grid; grid-template-columns: max-content minmax(60px, 1fr) max-content; gap: 6px 12px; align-items: center; }
.stages .track { height: 10px; border-radius: 3px; background: var(--gone); }
.stages .fill { height: 100%; border-radius: 3px; background: var(--dense); min-width: 2px; }
.stages .number { text-align: right; font-variant-numeric: tabular-nums; }
.notes { margin: 0; padding-left: 1.2em; }
footer { color: var(--soft); font-size: .85rem; margin-top: 24px; }
@media (max-width: 560px) {
  main { padding: 20px 12px 32px; }
  h1 { font-size: 1.35rem; }
  .card { padding: 14px 14px 16px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 10px; }
  .tile { padding: 10px 12px; }
  .tile .value { font-size: 1.25rem; }
  .figure { font-size: 15px; }
  .figure .tick { font-size: 14px; }
  th, td { padding-left: 6px; font-size: .82rem; }
  td small { font-size: .78rem; white-space: normal; }
  .widths { grid-template-columns: minmax(0, 9.5rem) minmax(50px, 1fr) max-content; gap: 5px 8px; }
  .verdict { border-radius: 10px; }
}
@media print { body { background: #ffffff; } .card, .tile { break-inside: avoid; } }
"""
