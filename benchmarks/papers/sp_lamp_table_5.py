"""SP-LAMP, table 5: what LAMP, HALP and SP-LAMP look at, here found out by asking the methods, MDP and SMCP beside them.

    python benchmarks/papers/sp_lamp_table_5.py --data DATA

The paper ticks boxes. Here each is tried on ResNet-20 (pretrained, 512 training images), with multiply-adds as the cost so that nothing has
to be measured; a method takes latency and counted costs in the same way.

- structured: the cut network has narrower layers.
- cost guided: of two networks proposed for the same share of the cost, the second with one layer four times as dear, some layer is wider.
- score sees the next layer: a group's order changes with the weights that read its channels.
- cost sees the next layer: what a group's width costs changes with the price of a layer that only reads it.
- at least one filter: the smallest width at the lowest budget that the method takes.
- solver: the one that answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ResultFile, network, parser, said, timed

import latprune.methods.solved as solved
from latprune.errors import BudgetInfeasibleError
from latprune.graph import ModelGraph, Role, Selection, trace
from latprune.importance import Importance, TaylorConfig, score
from latprune.methods import HALP, MDP, SMCP, SPLAMP, Lamp, Method, SoftMasks
from latprune.methods.base import Proposal, StageContext, selection_of
from latprune.problem import Problem
from latprune.resources import MultiplyAdds
from latprune.surgery import prune
from latprune.train.batches import FirstBatches
from latprune.zoo import cifar10_train

METHODS: dict[str, Callable[[], Method]] = {
    "LAMP": Lamp,
    "HALP": lambda: HALP(stages=1),
    "SP-LAMP": lambda: SPLAMP(stages=1),
    "SMCP": lambda: SMCP(masks=SoftMasks()),
    "MDP": lambda: MDP(score=TaylorConfig()),
}
PUBLISHED = [
    {"source": "SP-LAMP, table 5", "method": "LAMP", "structured": False, "score": "LAMP", "latency_guided": False,
     "consider_connection": False, "one_filter": True, "solver": "–"},
    {"source": "SP-LAMP, table 5", "method": "HALP", "structured": True, "score": "l2-norm", "latency_guided": True,
     "consider_connection": False, "one_filter": False, "solver": "0-1 knapsack"},
    {"source": "SP-LAMP, table 5", "method": "SP-LAMP", "structured": True, "score": "SP-LAMP", "latency_guided": True,
     "consider_connection": True, "one_filter": True, "solver": "group knapsack"},
]  # fmt: skip
"""The paper calls HALP's score the l2-norm here and Taylor's (eq. 27) in its text."""


def main() -> None:
    made = parser(__doc__, "sp-lamp-table-5")
    made.add_argument("--data", type=Path, required=True, help="folder with cifar10_train.npz and weights/")
    args = made.parse_args()
    torch.set_num_threads(args.threads)
    file = ResultFile(args.output, "papers-sp-lamp-table-5", key=("method",), published=PUBLISHED)
    for name, method in METHODS.items():
        if not file.has(method=name):
            with timed() as took:
                found = asked(method(), args.data)
            file.add({"method": name, **found, **took})
    print(said(HEAD, [line(row) for row in file.rows]))


def asked(method: Method, data: Path) -> dict[str, Any]:
    """What one method does."""
    model, x = network("resnet20", data)
    graph = trace(model, x)
    batches = FirstBatches(cifar10_train(str(data), augment=False), 4)
    scores = score(model, graph, method.importance, batches)
    half = 0.5 * graph.macs(graph.dense_widths())
    with seen() as problems:
        found = proposal(method, graph, scores, half)
    smallest, share = lowest(method, graph, scores)
    before = sum(parameter.numel() for parameter in model.parameters())
    moved = score_sees_readers(method, model, graph, batches)
    prune(model, graph, selection_of(graph, scores.units, found, Selection(kept={})))
    return {
        "criterion": type(method.importance).__name__,
        "structured": sum(parameter.numel() for parameter in model.parameters()) < before,
        "cost_guided": cost_guided(method, graph, scores, found),
        "score_sees_next": moved,
        "cost_sees_next": cost_sees_readers(method, graph, scores) if problems else False,
        "smallest_width": smallest,
        "lowest_share": share,
        "solver": str(found.solution.solver) if found.solution is not None else "none",
        "blocks": any(variable.kind == "block" for problem in problems for variable in problem.variables),
    }


def proposal(method: Method, graph: ModelGraph, scores: Importance, limit: float) -> Proposal:
    """The network that a method proposes under a limit on multiply-adds."""
    choices = {name: tuple(range(group.min_width, group.columns + 1)) for name, group in graph.groups.items()}
    context = StageContext(
        graph=graph, importance=scores, resource=MultiplyAdds(graph), choices=choices, widths=graph.dense_widths(), time_limit=20.0
    )
    return method.prepare(context).propose(limit)


@contextmanager
def seen() -> Iterator[list[Problem]]:
    """The problems that are solved meanwhile."""
    found, plain = list[Problem](), solved.solve

    def watched(problem: Problem, *args: Any, **options: Any) -> Any:
        found.append(problem)
        return plain(problem, *args, **options)

    solved.solve = watched  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        solved.solve = plain  # type: ignore[attr-defined]


def dearer(graph: ModelGraph, kernel: str, factor: float = 4.0) -> ModelGraph:
    """The same graph with one kernel ``factor`` times as dear."""
    priced = dataclasses.replace(graph.kernels[kernel], macs=factor * graph.kernels[kernel].macs)
    return dataclasses.replace(graph, kernels={**graph.kernels, kernel: priced})


def cost_guided(method: Method, graph: ModelGraph, scores: Importance, found: Proposal) -> bool:
    """Whether a dearer layer makes another one wider; one fixed order of units under a threshold gives networks that lie in each other."""
    for name in list(graph.groups)[1::3]:
        priced = dearer(graph, name)
        other = proposal(method, priced, scores, 0.5 * priced.macs(priced.dense_widths()))
        changes = [other.widths[group] - found.widths[group] for group in graph.groups]
        if min(changes) < 0 < max(changes):
            return True
    return False


def score_sees_readers(method: Method, model: torch.nn.Module, graph: ModelGraph, batches: Any) -> bool:
    """Whether the order within a group of a residual branch changes with the weights that read it."""
    name, reader = branch(graph)
    weight = dict(model.named_parameters())[f"{reader}.weight"]
    before = np.argsort(score(model, graph, method.importance, batches).units[name])
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[:, ::2] *= 0.1
    after = np.argsort(score(model, graph, method.importance, batches).units[name])
    with torch.no_grad():
        weight.copy_(kept)
    return not bool(np.array_equal(before, after))


def branch(graph: ModelGraph) -> tuple[str, str]:
    """A group that one layer alone reads, and that layer."""
    for name, group in graph.groups.items():
        readers = {member.kernel for member in group.members if member.role is Role.CONSUMER}
        if len(readers) == 1:
            return name, readers.pop()
    raise SystemExit("no group has a single reader")


def cost_sees_readers(method: Method, graph: ModelGraph, scores: Importance) -> bool:
    """Whether the method's own problem charges a group for the layer that only reads it."""
    name, reader = branch(graph)
    saved = []
    for priced in (graph, dearer(graph, reader)):
        with seen() as problems:
            proposal(method, priced, scores, 0.5 * priced.macs(priced.dense_widths()))
        problem = problems[0]
        dense = {variable.name: len(variable.choices) - 1 for variable in problem.variables}
        saved.append(cost_of(problem, dense) - cost_of(problem, {**dense, name: dense[name] // 2}))
    return bool(saved[1] > 1.01 * saved[0])


def cost_of(problem: Problem, at: Mapping[str, int]) -> float:
    """The budget's cost of an assignment, given by places in the choices."""
    chosen = {variable.name: variable.choices[at[variable.name]] for variable in problem.variables}
    return problem.evaluate(chosen).costs[problem.costs[0].name]


def lowest(method: Method, graph: ModelGraph, scores: Importance) -> tuple[int, float]:
    """The smallest width of a layer at the lowest of a few shares of the cost that the method takes, and that share."""
    dense = graph.macs(graph.dense_widths())
    for share in (0.002, 0.005, 0.01, 0.02, 0.05, 0.1):
        try:
            found = proposal(method, graph, scores, share * dense)
        except BudgetInfeasibleError:
            continue
        return min(found.widths.values()), share
    raise SystemExit(f"{method!r} takes no budget down to 10 %")


HEAD = ["method", "criterion", "structured", "cost guided", "score sees next", "cost sees next", "smallest width", "at", "blocks", "solver"]


def line(row: Mapping[str, Any]) -> list[str]:
    """A row as cells."""
    ticks = ["yes" if row[key] else "no" for key in ("structured", "cost_guided", "score_sees_next", "cost_sees_next")]
    blocks = "yes" if row["blocks"] else "no"
    return [row["method"], row["criterion"], *ticks, str(row["smallest_width"]), f"{row['lowest_share']:.1%}", blocks, row["solver"]]


if __name__ == "__main__":
    main()
