"""SP-LAMP, tables 1 and 2: ResNet-50 and MobileNetV2 on ImageNet by multiply-adds, ResNet-50 by speed; here untrained plus recovery.

    python benchmarks/papers/sp_lamp_tables_1_2.py --data DATA --threads 2

The paper fine-tunes on ImageNet and reports its validation set; speed is that of a TITAN V. Here nothing is trained: the pretrained
networks (ResNet-50 of another training than torchvision's; MobileNetV2 is torchvision's, and the paper's "MobileNetV2" of 569M
multiply-adds is V1 by its count) are cut to the same shares of the multiply-adds (table 1), and to the paper's speed-ups as shares of the
latency measured on the engine, one thread, batch 1 (table 2), and recovered from at most 1,000 unlabelled training images. Top-1 and top-5
are those on 1,000 evaluation images, which are easier than the validation set: they are compared with each other, and with the paper's
only as a loss.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rows import Row, main_of, options

from latprune.methods import HALP, MDP, SPLAMP, Method, Uniform

PUBLISHED: list[dict[str, Any]] = [
    {"source": "SP-LAMP, table 1", "network": network, "method": method, "base": base, "top1": top1, "flops_removed": removed}
    for network, method, base, top1, removed in (
        ("resnet50", "MetaPruning", 0.766, 0.754, 0.5150),
        ("resnet50", "SP-LAMP, 55 %", 0.7615, 0.7612, 0.5537),
        ("resnet50", "SP-LAMP, 60 %", 0.7615, 0.7604, 0.6014),
        ("resnet50", "HRank", 0.7615, 0.6910, 0.7588),
        ("resnet50", "SP-LAMP, 75 %", 0.7615, 0.7004, 0.7589),
        ("mobilenet", "ResRep", 0.7078, 0.6802, 0.7391),
        ("mobilenet", "SP-LAMP, 75 %", 0.7034, 0.6811, 0.7403),
    )
]
PUBLISHED += [
    {"source": "SP-LAMP, table 2", "network": "resnet50", "method": method, "top1": top1, "fps": fps, "speedup": speedup}
    for method, top1, fps, speedup in (
        ("no pruning", 0.762, 1019, 1.0),
        ("HALP, 80 %", 0.772, 1256, 1.23),
        ("SP-LAMP, 80 %", 0.779, 1307, 1.28),
        ("0.75 x ResNet-50", 0.748, 1467, 1.44),
        ("HALP, 55 %", 0.765, 1630, 1.60),
        ("SP-LAMP, 75 %", 0.761, 1695, 1.66),
        ("0.5 x ResNet-50", 0.720, 2498, 2.45),
        ("HALP, 30 %", 0.743, 2755, 2.70),
        ("SP-LAMP, 50 %", 0.736, 2934, 2.87),
    )
]
METHODS: dict[str, Callable[[], Method]] = {
    "SP-LAMP": lambda: SPLAMP(stages=1),
    "HALP": lambda: HALP(stages=1),
    "uniform": Uniform,
    "MDP": MDP,
}
COUNTED = {"resnet50": ("flops=44.63%", "flops=39.86%", "flops=24.11%"), "mobilenet_v2": ("flops=25.97%",)}
SPEEDS = ("78.13%", "60.24%", "34.84%")
"""Shares of the dense latency at the paper's speed-ups of 1.28, 1.66 and 2.87."""


def main() -> None:
    made = options(__doc__, "sp-lamp-tables-1-2")
    made.add_argument("--networks", nargs="+", default=list(COUNTED), choices=list(COUNTED))
    made.add_argument("--budgets", nargs="+", help="other budgets than the paper's")
    args = made.parse_args()
    rows = []
    for name in args.networks:
        rows.append(Row(label="dense", network=name, method=None))
        for budget in args.budgets or (*COUNTED[name], *(SPEEDS if name == "resnet50" and not args.no_latency else ())):
            rows += [Row(label=label, network=name, method=method, budget=(budget,)) for label, method in METHODS.items()]
    main_of(args, "sp-lamp-tables-1-2", rows, PUBLISHED)


if __name__ == "__main__":
    main()
