"""MDP, appendix E (figure 6b): soft masks: MDP with and without them, and SMCP.

    python benchmarks/papers/mdp_appendix_e.py --data DATA --train-images 150000

The paper: ResNet-50 on ImageNet, a plot without numbers; soft masks help little at modest ratios and clearly at high speeds. Here:
ResNet-56 on CIFAR-10 by default. A method under soft masks trains before the cut, the others after it, all on ``--train-images``; without
training only the rows that need none run.
"""

from __future__ import annotations

from collections.abc import Callable

from rows import Row, main_of, options

from latprune.importance import TaylorConfig
from latprune.methods import MDP, SMCP, Method, SoftMasks

PUBLISHED = [{"source": "MDP, figure 6(b)", "what": "points without numbers; soft masks gain most at high speeds"}]
METHODS: dict[str, Callable[[], Method]] = {
    "MDP": lambda: MDP(score=TaylorConfig()),
    "MDP, soft masks": lambda: MDP(score=TaylorConfig(), soft_masks=SoftMasks()),
    "SMCP": SMCP,
}


def main() -> None:
    made = options(__doc__, "mdp-appendix-e")
    made.add_argument("--network", default="resnet56", choices=["resnet20", "resnet56", "resnet50"])
    made.add_argument("--budgets", nargs="+", default=["70%", "50%", "35%"])
    args = made.parse_args()
    rows = [Row(label=label, network=args.network, method=method, budget=(b,)) for b in args.budgets for label, method in METHODS.items()]
    main_of(args, "mdp-appendix-e", rows, PUBLISHED)


if __name__ == "__main__":
    main()
