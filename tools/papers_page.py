"""Write docs/papers.md: the tables and figures of the SP-LAMP and MDP papers, their own numbers beside those that scripts here printed.

python tools/papers_page.py             # rewrites the page
python tools/papers_page.py --check     # exits with 1 if the page is not what the results say
"""

from __future__ import annotations

from collections.abc import Callable

import papers_sections as sections
from page_parts import ROOT, read, table, write_or_check

PAGE = ROOT / "docs" / "papers.md"

ITEMS: tuple[tuple[str, str, Callable[[], str | None] | None], ...] = (
    ("SP-LAMP, appendix A", "sp_lamp_appendix_a", sections.sp_lamp_appendix_a),
    ("SP-LAMP, figures 2, 5 and 6", "sp_lamp_figures_2_5_6", sections.sp_lamp_figures_2_5_6),
    ("SP-LAMP, figure 3", "../trajectories", None),
    ("SP-LAMP, figure 7", "sp_lamp_figure_7", sections.sp_lamp_figure_7),
    ("SP-LAMP, tables 1 and 2", "sp_lamp_tables_1_2", sections.sp_lamp_tables_1_2),
    ("SP-LAMP, table 3", "sp_lamp_table_3", sections.sp_lamp_table_3),
    ("SP-LAMP, table 4 and figure 4", "sp_lamp_table_4", sections.sp_lamp_table_4),
    ("SP-LAMP, table 5", "sp_lamp_table_5", sections.sp_lamp_table_5),
    ("MDP, figure 1, table 1 and appendix D", "mdp_figure_1", sections.mdp_figure_1),
    ("MDP, figure 4", "mdp_figure_4", sections.mdp_figure_4),
    ("MDP, table 3", "mdp_table_3", sections.mdp_table_3),
    ("MDP, appendix A", "mdp_appendix_a", sections.mdp_appendix_a),
    ("MDP, appendix B", "../solvers", None),
    ("MDP, appendix C", "mdp_appendix_c", sections.mdp_appendix_c),
    ("MDP, appendix E", "mdp_appendix_e", sections.mdp_appendix_e),
    ("MDP, appendix F", "mdp_appendix_f", sections.mdp_appendix_f),
)


ELSEWHERE = {
    "../trajectories": "[ResNet-56 to half of the multiply-adds](benchmarks.md#ways-to-a-budget)",
    "../solvers": "[The exact solver](benchmarks.md#the-exact-solver-at-width-step-8), beside the paper's about 5 s",
}
"""Scripts outside of ``benchmarks/papers/`` and their sections on the other page."""


def page() -> str:
    """The whole page."""
    written = [(place, script, section() if section is not None else None) for place, script, section in ITEMS]
    rows = []
    for place, script, text in written:
        if script in ELSEWHERE:
            rows.append([place, f"`benchmarks/{script.removeprefix('../')}.py`", ELSEWHERE[script], "–"])
            continue
        found = read(f"papers-{script.replace('_', '-')}")
        hours = sections.hours(found) if found is not None else "–"
        rows.append([place, f"`benchmarks/papers/{script}.py`", "below" if text is not None else "not run yet", hours])
    head = (
        "# The papers' tables and figures\n\nThis page is written by `tools/papers_page.py` from `benchmarks/results/papers-*.json`, "
        "which the named scripts wrote. Numbers of the papers are labelled so: *Layer-adaptive Structured Pruning Guided by Latency* "
        "(SP-LAMP, [arXiv:2305.14403](https://arxiv.org/abs/2305.14403)) and *Multi-Dimensional Pruning* (MDP, "
        "[arXiv:2406.12079](https://arxiv.org/abs/2406.12079)). All others were run here, on processors that were shared with other work; "
        "the time is that of the processor, over all rows, without what a latency store had already.\n\n"
    )
    texts = [text for _, _, text in written if text is not None]
    return head + table(["place", "script", "here", "processor time"], rows) + "\n\n" + "\n\n".join(texts) + "\n"


def main() -> None:
    """Write or check the page."""
    write_or_check(PAGE, page, __doc__)


if __name__ == "__main__":
    main()
