"""MDP, table 3: one step or many: MDP and HALP in 1, 10 and 30 steps.

    python benchmarks/papers/mdp_table_3.py --data DATA --train-images 150000

The paper: ResNet-50 on ImageNet to 30 % of the latency, single-pass MDP better than its own 30 steps, HALP worse with fewer steps and under
the budget in a single one; the text has lost the numbers. Here: ResNet-56 on CIFAR-10 by default, a share of the measured latency that the
channels alone can reach on this engine. The images to train on are shared by the steps, so that every row sees as many; the paper's single
pass scores with all samples of an epoch, here ``--score-batches``.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from rows import Row, main_of, options

from latprune.importance import TaylorConfig
from latprune.methods import HALP, MDP

PUBLISHED: list[dict[str, Any]] = [
    {"source": "MDP, table 3", "what": "numbers lost in the text at hand; order of the rows in the paper's words"}
]
STEPS = (1, 10, 30)


def main() -> None:
    made = options(__doc__, "mdp-table-3")
    made.add_argument("--network", default="resnet56", choices=["resnet20", "resnet56", "resnet50"])
    made.add_argument("--budget", default="50%")
    args = made.parse_args()
    rows = [Row(label="dense", network=args.network, method=None)]
    for steps in STEPS:
        rows += [
            Row(label=f"HALP, {steps}", network=args.network, method=partial(HALP, stages=steps), budget=(args.budget,)),
            Row(
                label=f"MDP, {steps}", network=args.network, method=partial(MDP, score=TaylorConfig(), stages=steps), budget=(args.budget,)
            ),
        ]
    main_of(args, "mdp-table-3", rows, PUBLISHED)


if __name__ == "__main__":
    main()
