"""Budgets on what is counted: every method on every network, and several limits at once, with what the solver proves and what it takes.

Each row is one call of ``latprune.prune`` on random weights with half of the multiply-adds or parameters, one problem with two or three
limits, or one problem at 24 limits from 4 to 96 %. CPU seconds of this process on one thread; rows that are in the results file already are
not run again. A method that solves while it trains solves once, at the budget, with the gradients of the same batch.

Run: ``python benchmarks/counted.py [--only resnet50 ...] [--methods mdp ...]``; ``--methods`` without a name solves alone.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latprune import prune
from latprune.errors import LatpruneError
from latprune.importance import MagnitudeConfig, TaylorConfig, score
from latprune.latency import machine_name
from latprune.methods import (
    HALP,
    MDP,
    SMCP,
    SPLAMP,
    FromScratch,
    GlobalThreshold,
    Greedy,
    Lamp,
    Limit,
    Method,
    RandomChoice,
    SinglePass,
    SoftMasks,
    StageContext,
    Uniform,
    assemble,
)
from latprune.problem import Problem, Resource, Solution
from latprune.resources import MultiplyAdds, Parameters
from latprune.resources.terms import product_terms
from latprune.solve import solve
from latprune.storage import write_atomic
from solver_problems import build, dense_use, traced, with_second_engine

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.vision import torchvision  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "counted.json"
PRUNED = ("resnet50", "mobilenet_v2", "vit_b_16", "densenet121")
NETWORKS = ("resnet18", "resnet34", "resnet50", "resnet152", "mobilenet_v2", "vit_b_16", "densenet121")
METHODS: dict[str, Callable[[], Method]] = {
    "mdp": lambda: MDP(score=TaylorConfig()),
    "mdp, measured": MDP,
    "mdp, channels only": lambda: MDP(score=TaylorConfig(), blocks=False),
    "mdp, linear": lambda: MDP(score=TaylorConfig(), bilayer=False),
    "sp_lamp": SPLAMP,
    "halp, 3 steps": lambda: HALP(stages=3),
    "smcp": SMCP,
    "lamp": Lamp,
    "global": GlobalThreshold,
    "greedy": Greedy,
    "uniform": Uniform,
    "random": RandomChoice,
    "from_scratch": lambda: FromScratch(structure="uniform"),
}
RESOURCES = ("flops", "params")
TIME_LIMIT = 60.0
"""Seconds of one solve at most, as of ``latprune.prune``."""
LIMITS = ("parameters + multiply-adds", "latency + parameters", "two targets", "latency + parameters + multiply-adds")


def model_of(network: str) -> nn.Module:
    """The network with seeded random weights."""
    torch.manual_seed(0)
    if network == "vit_b_16":
        torchvision()  # timm imports it, and it may need its plain operators first
        import timm

        model: nn.Module = timm.create_model("vit_base_patch16_224")
    else:
        model = getattr(torchvision().models, network)()
    return model.eval()


def pruned(network: str, method: str, resource: str) -> dict[str, Any]:
    """One call of ``prune`` at half of the resource."""
    model, inputs = model_of(network), torch.randn(1, 3, 224, 224)
    data = [(torch.randn(2, 3, 224, 224), torch.tensor([1, 2]))]
    chosen = METHODS[method]()
    started = time.process_time()
    solving: list[float] = []
    with timed_solves(solving):
        try:
            result = prune(
                model,
                inputs,
                budget=f"{resource}=50%",
                method=chosen,
                schedule=SinglePass() if isinstance(chosen.schedule, SoftMasks) else None,
                data=data,
                recover=False,
                measure_latency=False,
            )
        except LatpruneError as error:
            seconds = time.process_time() - started
            return {"answer": f"{type(error).__name__}: {error}", "seconds": seconds, "solve_seconds": sum(solving)}
    seconds = time.process_time() - started
    solution = result.record.solution or {}
    dense, now = result.record.dense, result.record.pruned
    return {
        "answer": "pruned",
        "status": solution.get("status"),
        "gap": solution.get("gap"),
        "solver": solution.get("solver"),
        "solves": len(solving),
        "solve_seconds": sum(solving),
        "seconds": seconds,
        "delivered": now.counted(resource) / dense.counted(resource),
        "phases": {phase.name: phase.seconds for phase in result.record.stages},
        "blocks_removed": len(result.record.blocks_removed),
    }


class timed_solves:  # noqa: N801
    """While open, appends the CPU seconds of every solve of a method's proposer to a list."""

    def __init__(self, seconds: list[float]) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        import latprune.methods.solved as module

        self.module, self.plain = module, module.solve

        def timed(*args: Any, **options: Any) -> Solution:
            started = time.process_time()
            try:
                return self.plain(*args, **options)
            finally:
                self.seconds.append(time.process_time() - started)

        module.solve = timed  # type: ignore[attr-defined]

    def __exit__(self, *_: object) -> None:
        self.module.solve = self.plain  # type: ignore[attr-defined]


def counted_context(network: str, resource: str = "params") -> StageContext:
    """A stage over every width, with magnitude's scores."""
    model, graph = model_of(network), traced(network)
    choices = {name: tuple(range(group.min_width, group.columns + 1)) for name, group in graph.groups.items()}
    importance = score(model, graph, MagnitudeConfig())
    limited = Parameters(graph) if resource == "params" else MultiplyAdds(graph)
    return StageContext(graph=graph, importance=importance, resource=limited, choices=choices, widths=graph.dense_widths())


def problem_of(network: str, limits: str) -> Problem:
    """A problem with several limits, each at half of the dense use (a second target at 60 %)."""
    if limits == "parameters + multiply-adds":
        context = counted_context(network)
        problem = assemble(replace(context, limits=(Limit(resource=MultiplyAdds(context.graph), value=1.0),)), limit=1.0)
        return problem.replace_limits({r.name: 0.5 * dense_use(problem, r.name) for r in problem.costs})
    graph = traced(network)
    problem = build(graph, 8, 0.5)
    if limits == "two targets":
        return with_second_engine(problem, 0.6)
    choices = {v.name: v.choices for v in problem.variables}
    removable = [v.name.removeprefix("block:") for v in problem.variables if v.kind == "block"]
    parts = [product_terms(n, axes, 1.0, choices, removable, graph.tensor_blocks.get(n, ())) for n, axes in graph.tensor_axes.items()]
    params = Resource(name="params", constant=sum(fixed for _, fixed in parts), terms=tuple(t for terms, _ in parts for t in terms))
    costs = [*problem.costs, params]
    if limits.endswith("multiply-adds"):
        counted = [product_terms(k.name, k.axes, k.macs, choices, removable, k.blocks) for k in graph.kernels.values() if k.macs]
        costs.append(Resource(name="flops", constant=sum(f for _, f in counted), terms=tuple(t for terms, _ in counted for t in terms)))
    several = Problem(variables=problem.variables, gains=problem.gains, costs=tuple(costs))
    return several.replace_limits({r.name: 0.5 * dense_use(several, r.name) for r in costs[1:]})


def several(network: str, limits: str) -> dict[str, Any]:
    """One solve under several limits."""
    problem = problem_of(network, limits)
    started = time.process_time()
    solution = solve(problem, time_limit=120)
    seconds = time.process_time() - started
    shares = {r.name: solution.costs[r.name] / r.limit for r in problem.costs if solution.costs and r.limit}
    return {"status": solution.status, "gap": solution.gap, "solver": solution.solver, "seconds": seconds, "used": shares}


def every_limit(network: str, resource: str) -> dict[str, Any]:
    """The same problem at many limits, each solved alone."""
    problem = assemble(counted_context(network, resource), limit=1.0)
    name = problem.costs[0].name
    dense = dense_use(problem, name)
    seconds, gaps = [], []
    for percent in range(4, 100, 4):
        started = time.process_time()
        solution = solve(problem.replace_limits({name: percent / 100 * dense}), time_limit=TIME_LIMIT)
        seconds.append(time.process_time() - started)
        gaps.append(solution.gap if solution.status != "infeasible" else 0.0)
    return {
        "answer": f"{len(gaps)} limits",
        "proven": sum(1 for gap in gaps if gap == 0.0),
        "gap": max(math.inf if gap is None else gap for gap in gaps),
        "limits": len(gaps),
        "seconds": statistics.median(seconds),
        "most_seconds": max(seconds),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=NETWORKS, choices=NETWORKS)
    parser.add_argument("--methods", nargs="*", choices=list(METHODS), help=f"by default all, on {', '.join(PRUNED)}")
    parser.add_argument("--again", action="store_true", help="run rows again that the file has")
    parser.add_argument("--output", type=Path, default=RESULTS, help="file of the rows (default: %(default)s)")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows: dict[str, dict[str, Any]] = json.loads(options.output.read_text()) if options.output.exists() else {}
    wanted: dict[str, Callable[[], dict[str, Any]]] = {}
    if "resnet50" in options.only:
        wanted |= {f"resnet50 | {limits}": partial(several, "resnet50", limits) for limits in LIMITS}
    for network in options.only:
        wanted |= {f"{network} | every limit | {resource}": partial(every_limit, network, resource) for resource in RESOURCES}
    networks = [network for network in options.only if network in PRUNED or options.methods is not None]
    for method in METHODS if options.methods is None else options.methods:
        for network in networks:
            for resource in RESOURCES:
                wanted[f"{network} | {method} | {resource}"] = partial(pruned, network, method, resource)
    for name, work in wanted.items():
        if name not in rows or options.again:
            rows[name] = work() | {"machine": machine_name()}
            write_atomic(options.output, json.dumps(rows, indent=1) + "\n")
        print(f"{name}: {said(rows[name])}", flush=True)


def said(row: dict[str, Any]) -> str:
    """A row in words."""
    parts = [str(row.get("answer", "")), str(row.get("status") or ""), f"gap {row['gap']:.1e}" if row.get("gap") is not None else ""]
    parts += [f"solve {row['solve_seconds']:.2f} s" if row.get("solve_seconds") else "", f"{row['seconds']:.1f} s CPU"]
    parts += [f"at most {row['most_seconds']:.1f} s, {row['proven']} proven"] if "proven" in row else []
    parts += [f"delivered {row['delivered']:.2%}" if "delivered" in row else ""]
    phases = row.get("phases", {})
    parts += [", ".join(f"{name} {seconds / sum(phases.values()):.0%}" for name, seconds in phases.items())]
    parts += [", ".join(f"{k} {v:.4%}" for k, v in row.get("used", {}).items())]
    return ", ".join(p for p in parts if p)


if __name__ == "__main__":
    main()
