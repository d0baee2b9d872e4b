"""Sections of docs/papers.md, one for each table or figure of the papers; ``papers_page.py`` puts them on the page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from page_parts import ROOT, duration, machine, measured_table, percent, read, table

__all__ = [
    "hours",
    "mdp_appendix_a",
    "mdp_appendix_c",
    "mdp_appendix_e",
    "mdp_appendix_f",
    "mdp_figure_1",
    "mdp_figure_4",
    "mdp_table_3",
    "sp_lamp_appendix_a",
    "sp_lamp_figure_7",
    "sp_lamp_figures_2_5_6",
    "sp_lamp_table_3",
    "sp_lamp_table_4",
    "sp_lamp_table_5",
    "sp_lamp_tables_1_2",
]

_NAMES = {
    "chain": "network of the proof",
    "resnet18": "ResNet-18",
    "resnet20": "ResNet-20",
    "resnet50": "ResNet-50",
    "resnet56": "ResNet-56",
    "mobilenet_v2": "MobileNetV2",
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}


def _name(text: str) -> str:
    return _NAMES.get(text, text)


def hours(found: Any) -> str:
    """Processor time of all rows of a result."""
    return duration(sum(row["cpu_seconds"] for row in found["rows"]))


def _end(script: str, picture: str, what: str) -> str:
    """The picture, where there is one, and the script."""
    paths = [f"images/papers/{picture}.{kind}" for kind in ("svg", "png")]
    drawn = "".join(f"\n\n![{what}]({path})" for path in paths if (ROOT / "docs" / path).exists())
    return f"{drawn}\n\n`benchmarks/papers/{script}.py`"


def sp_lamp_appendix_a() -> str | None:
    """Bound and distortion."""
    found = read("papers-sp-lamp-appendix-a")
    if found is None:
        return None
    text = (
        "## SP-LAMP, appendix A: the bound and the distortion\n\nThe paper bounds what a filter's removal does to the output of a network "
        "of fully connected layers with ReLU (eq. 17), and ranks filters by the two factors of the bound that are the filter's own. It "
        "measures nothing.\n\n"
    )
    for row in found["rows"]:
        if "slack" in row["summary"]:
            lines = [
                [layer, *(f"{value:,.0f}" for key in ("images", "worst") for value in two[key])]
                for layer, two in row["summary"]["slack"].items()
            ]
            text += (
                f"Such a network, trained on CIFAR-10 ({percent(row['accuracy'])} on test images), {row['summary']['filters']} filters, "
                f"each removed alone: the bound over the largest distortion among {row['images']} test images scaled to norm 1, and over "
                "that of the worst input that gradient steps find. It holds, and lies far above what happens.\n\n"
                + table(["", "images: least", "median", "worst input: least", "median"], lines)
                + "\n\n"
            )
    ranks = {"bound": "the bound", "filter": "the filter's norm", "product": "the product (eq. 2)"}
    ranks |= {"folded": "the product, norms folded in", "score": "SP-LAMP's score"}
    lines = [
        [_name(row["network"]), str(row["summary"]["filters"]), ranks[key], *(f"{value:.2f}" for value in pair)]
        for row in found["rows"]
        for key, pair in row["summary"]["ranks"].items()
    ]
    text += (
        "How well a number ranks the filters by the distortion that their removal makes (rank correlation): within a layer or group of "
        "coupled layers (the mean of them), and over all filters of the network at once. On the pretrained residual networks the "
        f"distortion is the root mean square change of the logits. {machine(found)}.\n\n"
    )
    text += table(["network", "filters", "ranked by", "within groups", "over all"], lines)
    return text + _end("sp_lamp_appendix_a", "sp-lamp-appendix-a", "Bound or product against the distortion, a point for each filter")


def sp_lamp_figures_2_5_6() -> str | None:
    """Staircases of whole networks."""
    found = read("papers-sp-lamp-figures-2-5-6")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        curve = row["curve"]
        yield [
            row["figure"],
            _name(row["network"]),
            _name(row["engine"]),
            f"{row['layer']} (`{row['group']}`)",
            str(row["dense"]),
            str(curve["points"]),
            f"{curve['saved_ms']:.3g} ms",
            percent(curve["slower"], 0),
            percent(curve["largest_drop"], 0),
            str(row.get("step", "–")),
            str(row["unconverged"]),
        ]

    text = (
        "## SP-LAMP, figures 2, 5 and 6: the whole network as a layer loses filters\n\nThe paper shows curves without numbers: an RTX "
        "2080 Ti at a saturating batch for ResNet-18, nn-Meter's predictions for the others. Here the engines of a processor, one thread, "
        "batch 1, each network in turns with the dense one. Saved: the most that the layer alone can save. Slower: points that cost more "
        "than the next wider one. Largest drop: between two neighbouring points, as a share of the whole range. Open: points whose "
        "interval did not come within the tolerance; where most are open, the columns before tell more of the machine's noise than of the "
        f"network. {machine(found)}.\n\n"
    )
    head = ["figure", "network", "engine", "layer", "filters", "points", "saved", "slower", "largest drop", "tables' step", "open"]
    text += measured_table(found, head, cells)
    what = "Change of the network's latency against filters removed; lines: the latency tables"
    return text + _end("sp_lamp_figures_2_5_6", "sp-lamp-figures-2-5-6", what)


def sp_lamp_figure_7() -> str | None:
    """The surface of one kernel."""
    found = read("papers-sp-lamp-figure-7")
    if found is None:
        return None

    def cells(row: Any) -> Iterator[Sequence[str]]:
        fits = [percent(row[key][part]) for key in ("plane", "product", "both") for part in ("variance", "error")]
        yield [_name(row["engine"]), str(len(row["sizes"]) ** 2), *fits, " x ".join(map(str, row["steps"])), percent(row["half_width"])]

    text = (
        "## SP-LAMP, figure 7: convolution, norm and ReLU over both widths\n\nThe paper shows nn-Meter's points at 32x32 and calls the "
        "relation purely linear. Here the kernel alone is measured on the engine, one thread, batch 1. A plane in the two widths, a line "
        "on their product, and both together: the share of the variance that they leave, and their mean relative error; the steps that "
        f"the library's surface finds; the median half-width of the points' 95 % intervals. {machine(found)}.\n\n"
    )
    head = ["engine", "points", "plane leaves", "error", "product leaves", "error", "both leave", "error", "steps", "half-width"]
    return text + measured_table(found, head, cells) + _end("sp_lamp_figure_7", "sp-lamp-figure-7", "Latency against output channels")


def sp_lamp_table_5() -> str | None:
    """What the methods look at."""
    found = read("papers-sp-lamp-table-5")
    if found is None:
        return None
    paper = [
        [
            row["method"],
            *(_tick(row[key]) for key in ("structured", "latency_guided", "consider_connection", "one_filter")),
            row["score"],
            row["solver"],
        ]
        for row in found["published"]
    ]
    here = [
        [
            row["method"],
            *(_tick(row[key]) for key in ("structured", "cost_guided", "score_sees_next", "cost_sees_next")),
            f"{row['smallest_width']} (at {percent(row['lowest_share'])})",
            _tick(row["blocks"]),
            f"`{row['criterion']}`",
            row["solver"],
        ]
        for row in found["rows"]
    ]
    text = (
        "## SP-LAMP, table 5: what the methods look at\n\nThe paper's table:\n\n"
        + table(["method", "structured", "latency guided", "considers connections", "at least one filter", "score", "solver"], paper)
        + "\n\nFound out by asking the methods of this library on ResNet-20, with multiply-adds as the cost: whether a layer that grows "
        "dearer makes another one wider; whether a group's order changes with the weights that read it; whether its cost counts the "
        "layers that only read it; the smallest width at the lowest budget that is taken. LAMP is the structured one (one threshold over "
        "SP-LAMP's scores), HALP's knapsack the exact one, which keeps a channel of every layer; MDP goes by its paper's Taylor score. "
        "SP-LAMP's costs are a linearisation, which takes limits that the network then misses; a run measures and corrects it.\n\n"
        + table(
            ["method", "structured", "cost guided", "score: readers", "cost: readers", "smallest width", "blocks", "criterion", "solver"],
            here,
        )
    )
    return text + "\n\n`benchmarks/papers/sp_lamp_table_5.py`"


def _tick(value: bool) -> str:
    return "yes" if value else "no"


def mdp_appendix_a() -> str | None:
    """The error of the linear estimate."""
    found = read("papers-mdp-appendix-a")
    if found is None:
        return None
    keys = ("tables", "linear, 1 step", "linear, 10 steps", "linear, 30 steps")

    def cells(row: Any) -> Iterator[Sequence[str]]:
        for at in row["summary"]:
            errors = [f"{100 * at[key]:+.1f} %" for key in keys]
            yield [_name(row["network"]), _name(row["engine"]), percent(at["share"], 0), percent(at["removed"]), *errors]

    text = (
        "## MDP, appendix A: the linear latency estimate\n\nThe paper derives that a cost at the input width of the last step is too high "
        "once the layer before is pruned too, the more so at large ratios, and measures nothing. Here networks that keep about a share of "
        "every group's channels, one thread, batch 1: mean signed error against the measured latency, for the bilayer tables, and for the "
        "same tables read at the input widths of the dense network (one step) or of the network one step earlier on the way there. "
        f"{machine(found)}.\n\n"
    )
    text += measured_table(found, ["network", "engine", "channels kept", "latency removed", *keys], cells)
    return text + _end("mdp_appendix_a", "mdp-appendix-a", "Error of the estimates against the latency removed")


def _driven(script: str, heading: str, text: str, what: str = "", *, note: str = "") -> str | None:
    """A section of rows that were pruned, recovered and perhaps trained, with the paper's numbers below."""
    stem = script.replace("_", "-")
    found = read(f"papers-{stem}")
    if found is None:
        return None

    apart = _apart(found["rows"])

    def cells(row: Any) -> Iterator[Sequence[str]]:
        head = [row["label"], _name(row["network"]), row["budget"] or "–", _name(row["engine"]), str(row["seed"])]
        head += ["–" if row.get(name) is None else str(row[name]) for name in apart]
        if "refused" in row:
            yield [*head, f"refused: {row['refused'].replace('|', '/')}", *[""] * 7]
            return
        cut = [entry["accuracy"] for entry in row.get("accuracies", ()) if entry["stage"].startswith("pruned")]
        yield [
            *head,
            percent(row["ratio"]),
            f"{1e3 / row['ms']:.0f}" if row.get("ms") else "–",
            percent(row["macs"] / row["dense_macs"]),
            f"{row['parameters'] / 1e3:,.0f}K",
            str(len(row["blocks_removed"])),
            percent(cut[-1] if cut else None, 2),
            percent(row["top1"], 2),
            f"{row['train_images']:,}" if row["train_images"] else "none",
        ]

    head = ["row", "network", "budget", "engine", "seed", *(name.replace("_", " ") for name in apart)]
    head += ["latency", "im/s", "multiply-adds", "parameters", "blocks gone", "as cut", "top-1", "images trained on"]
    few = sorted({row["stage_images"] for row in found["rows"] if row.get("stage_images") is not None})
    text += f" As cut: on the first {' or '.join(map(str, few))} evaluation images" if few else ""
    seen = sorted({row["test_images"] for row in found["rows"]})
    text += f"; top-1: on {' or '.join(f'{count:,}' for count in seen)} at most." if few else ""
    parts = [f"## {heading}\n\n{text} {machine(found)}.", measured_table(found, head, cells)]
    if note:
        parts.append(note)
    parts += _published(found["published"])
    return "\n\n".join(parts) + _end(script, stem, what)


def _apart(rows: Sequence[Any]) -> list[str]:
    """The settings that rows of one name differ in: only then are they columns."""
    named: dict[tuple[Any, ...], list[Any]] = {}
    for row in rows:
        named.setdefault(tuple(row[name] for name in ("label", "network", "budget", "guided", "engine", "seed")), []).append(row)
    settings = ("width", "base_images", "batch", "device", "score_batches", "recovery_images", "test_images", "stages")
    return [name for name in settings if any(len({row.get(name) for row in same}) > 1 for same in named.values())]


def _published(entries: Iterable[Any]) -> list[str]:
    """The paper's own numbers as tables, one for each set of columns."""
    groups: dict[tuple[str, ...], list[Any]] = {}
    for entry in entries:
        groups.setdefault(tuple(entry), []).append(entry)
    heads = {"source": "the paper's own", "top1": "top-1", "fps": "im/s", "macs": "multiply-adds", "speedup": "speed-up"}
    heads |= {"flops_removed": "multiply-adds removed", "removed": "latency removed", "change": "change of accuracy"}
    return [
        table([heads.get(key, key) for key in keys], [[_shown(key, entry[key]) for key in keys] for entry in rows])
        for keys, rows in groups.items()
    ]


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "–"
    if key == "change":
        return f"{100 * value:+.2f} points"
    if key in ("top1", "base", "flops_removed", "removed"):
        return percent(value, 2)
    if key == "speedup":
        return f"{value:.2f}x"
    if key in ("parameters", "macs"):
        return f"{value / 1e3:,.0f}K" if key == "parameters" else f"{value / 1e6:.2f}M"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)


def sp_lamp_tables_1_2() -> str | None:
    """ImageNet networks by multiply-adds and by speed."""
    text = (
        "Here nothing is trained: cut to the paper's shares, recovered from at most 1,000 unlabelled training images, top-1 on 1,000 "
        "evaluation images, which are easier than the validation set."
    )
    return _driven("sp_lamp_tables_1_2", "SP-LAMP, tables 1 and 2: ResNet-50 and MobileNetV2", text)


def sp_lamp_table_3() -> str | None:
    """ResNet-18 by two counts."""
    found = read("papers-sp-lamp-table-3")
    widths = sorted({row["width"] for row in found["rows"] if row.get("width")}) if found else []
    text = (
        f"ResNet-18 at width {' and '.join(map(str, widths))} to the paper's shares of parameters and multiply-adds at once (4.2 and 2.4 "
        "% of its own at width 64); latency is what comes out."
    )
    return _driven("sp_lamp_table_3", "SP-LAMP, table 3: ResNet-18 on CIFAR-10", text)


def sp_lamp_table_4() -> str | None:
    """ResNet-56 in ten stages."""
    found = read("papers-sp-lamp-table-4")
    stages = ""
    for row in found["rows"] if found else ():
        told = [f"{entry['stage']} {percent(entry['accuracy'], 1)}" for entry in row.get("accuracies", ())]
        stages += f"- {row['label']}, {row['budget']}: {'; '.join(told)}\n" if len(told) > 3 else ""
    note = f"Stage by stage:\n\n{stages.rstrip()}" if stages else ""
    text = "SP-LAMP in ten stages on ResNet-56 (CIFAR-10), guided by latency tables, by a kernel predictor and by multiply-adds."
    return _driven("sp_lamp_table_4", "SP-LAMP, table 4 and figure 4: ResNet-56 in stages", text, "Accuracy against latency", note=note)


def mdp_figure_1() -> str | None:
    """Accuracy against speed."""
    text = (
        "Here a processor, one thread, batch 1, and nothing is trained: recovered from unlabelled training images, top-1 on evaluation "
        "images (for ImageNet 1,000, easier than the validation set)."
    )
    return _driven("mdp_figure_1", "MDP, figure 1, table 1 and appendix D: accuracy against speed", text, "Top-1 against images a second")


def mdp_figure_4() -> str | None:
    """The two parts of MDP."""
    text = "MDP without and with its two parts, the bilayer latency and the grouping of blocks, by Taylor's score."
    return _driven("mdp_figure_4", "MDP, figure 4: what its two parts are worth", text, "Top-1 against measured latency")


def mdp_table_3() -> str | None:
    """Steps."""
    text = "MDP and HALP in 1, 10 and 30 steps; images to train on are shared by the steps."
    return _driven("mdp_table_3", "MDP, table 3: one step or many", text)


def mdp_appendix_c() -> str | None:
    """The structure of the pruned network."""
    text = "The network that MDP leaves, by its default score and by Taylor's; untrained. The paper finds the shallower layers pruned most."
    found = read("papers-mdp-appendix-c")
    lines = [cells for row in (found["rows"] if found else ()) if "groups" in row for cells in _depths(row)]
    note = "Channels by stage of the network:\n\n" + table(["row", "network", "budget", "stage", "channels", "kept", "blocks gone"], lines)
    return _driven(
        "mdp_appendix_c",
        "MDP, appendix C: the structure of the pruned network",
        text,
        "Width of every group, dense and kept",
        note=note if lines else "",
    )


def _depths(row: Any) -> Iterator[Sequence[str]]:
    """For each stage of the network: channels, the share that is left (removed blocks as nothing left), and the blocks that are gone."""
    stages: dict[str, list[Any]] = {}
    for group in row["groups"]:
        parts = group["name"].split(".")
        stage = ".".join(parts[:2]) if parts[0] == "features" else parts[0]
        stages.setdefault(stage if stage.startswith(("layer", "features")) else "stem", []).append(group)
    gone = set(row["blocks_removed"])
    for stage, groups in stages.items():
        dense = sum(group["dense"] * group["rows"] for group in groups)
        kept = sum(group["kept"] * group["rows"] for group in groups if gone.isdisjoint(group["blocks"]))
        blocks = sum(block == stage or block.startswith(f"{stage}.") for block in gone)
        yield [row["label"], _name(row["network"]), row["budget"], stage, str(dense), percent(kept / dense, 0), str(blocks)]


def mdp_appendix_e() -> str | None:
    """Soft masks."""
    text = "MDP without and with soft masks, and SMCP; methods under masks train before the cut, the other after it."
    return _driven("mdp_appendix_e", "MDP, appendix E: soft masks", text)


def mdp_appendix_f() -> str | None:
    """A large network pruned, and small ones."""
    text = "A large network pruned far, beside small ones as they are; latency is that of each as a share of its own dense network."
    return _driven("mdp_appendix_f", "MDP, appendix F: pruned large against small", text, "Top-1 against latency")
