"""Write docs/benchmarks.md from the committed results of the benchmarks, so that every figure in it is one that a script printed.

python tools/benchmark_page.py             # rewrites the page
python tools/benchmark_page.py --check     # exits with 1 if the page is not what the results say
"""

from __future__ import annotations

from collections.abc import Callable

import comparison_section
import counted_sections
import detection_sections
import framework_sections
import graph_sections
import latency_sections
import main_job_sections
import method_sections
import recovery_sections
import stage_sections
import time_sections
from page_parts import ROOT, write_or_check

PAGE = ROOT / "docs" / "benchmarks.md"

SECTIONS: tuple[Callable[[], str | None], ...] = (
    comparison_section.equal_latency,
    recovery_sections.recovery,
    recovery_sections.recovery_imagenet,
    recovery_sections.recovery_made,
    recovery_sections.recovery_text,
    recovery_sections.recovery_curves,
    recovery_sections.recovery_comparing,
    recovery_sections.recovery_finetuning,
    method_sections.methods,
    method_sections.defaults,
    stage_sections.trajectories,
    counted_sections.counted,
    counted_sections.explorer,
    stage_sections.soft_masks,
    time_sections.first_network,
    time_sections.filled_store,
    main_job_sections.resnet56,
    latency_sections.budgets,
    latency_sections.tables,
    latency_sections.prediction,
    latency_sections.predictor,
    latency_sections.neighbours,
    latency_sections.settling,
    latency_sections.page_faults,
    graph_sections.agreement,
    graph_sections.solvers,
    graph_sections.zoo,
    graph_sections.onnx_in,
    graph_sections.capture,
    framework_sections.frameworks,
    main_job_sections.taylor,
    detection_sections.ssd,
    detection_sections.streaming,
    detection_sections.augmentation,
)


def page() -> str:
    """The whole page."""
    head = (
        "# Benchmarks\n\n"
        "This page is written by `tools/benchmark_page.py` from `benchmarks/results/`, which the named scripts wrote. Machines "
        "were shared and noisy; ratios come from interleaved measurements within one run."
    )
    return "\n\n".join([head, *(text for text in (section() for section in SECTIONS) if text is not None)]) + "\n"


def main() -> None:
    """Write or check the page."""
    write_or_check(PAGE, page, __doc__)


if __name__ == "__main__":
    main()
