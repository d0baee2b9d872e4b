"""Pruning problems of known networks, from the library's own traced graphs and seeded staircase latency tables.

A table is ``overhead + rate * multiply-adds(ceil(size / lanes) * lanes per axis) * (1 + noise)``: an engine's vector width makes the
stairs, the noise makes it neither monotone nor smooth, as measured tables are. The importance of a layer's share of a group is a
heavy-tailed score per unit, sorted and cumulated.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from latprune.graph import Kernel, ModelGraph, Role, trace
from latprune.methods.terms import block_variable, cost_terms
from latprune.problem import Problem, Resource, Term, Variable

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.vision import torchvision  # noqa: E402

LANES = 8
OVERHEAD_MS, MS_PER_MAC, NOISE = 0.004, 2.5e-8, 0.03

NETWORKS = ("resnet50", "resnet101", "resnet152", "mobilenet_v2", "vit_b_16", "densenet121")


def traced(network: str) -> ModelGraph:
    """The graph of a network with random weights at 224 x 224 (ResNet-56: at 32 x 32)."""
    torch.set_num_threads(1)
    if network == "resnet56":
        from latprune.zoo import cifar_resnet

        return trace(cifar_resnet(depth=56).eval(), torch.zeros(1, 3, 32, 32))
    if network == "vit_b_16":
        torchvision()  # timm imports it, and it may need its plain operators first
        import timm

        model = timm.create_model("vit_base_patch16_224")
    else:
        model = getattr(torchvision().models, network)()
    return trace(model.eval(), torch.zeros(1, 3, 224, 224))


def widths(columns: int, kind: str, step: int) -> tuple[int, ...]:
    """Multiples of ``step`` up to all columns; every number of heads."""
    step = 1 if kind == "heads" else step
    return tuple(sorted({*range(step, columns + 1, step), columns}))


def staircase(kernel: Kernel, rng: np.random.Generator, *sizes: np.ndarray) -> np.ndarray:
    """Milliseconds on the grid of the kernel's axis sizes."""
    work = np.array(kernel.macs * MS_PER_MAC)
    for size in sizes:
        work = np.multiply.outer(work, np.ceil(size / LANES) * LANES)
    return (OVERHEAD_MS + work) * (1 + NOISE * rng.standard_normal(work.shape))


def build(graph: ModelGraph, step: int, fraction: float, seed: int = 0) -> Problem:
    """MDP's problem on ``graph``: gains gated by blocks, pairwise or wider tables, a limit of ``fraction`` of the dense latency."""
    rng = np.random.default_rng(seed)
    choices = {name: widths(g.columns, g.kind, step) for name, g in graph.groups.items()}
    removable = [name for name, block in graph.blocks.items() if block.removable]
    variables = [Variable(name=name, choices=options) for name, options in choices.items()]
    variables += [Variable(name=block_variable(block), kind="block", choices=(0, 1)) for block in removable]
    gains = []
    for name, group in graph.groups.items():
        homes = sorted({tuple(b for b in m.blocks if b in removable) for m in group.members if m.role is Role.PRODUCER})
        for home in homes:
            scores = np.sort(rng.lognormal(0.0, 1.0, group.columns))[::-1] * rng.uniform(0.5, 2.0) / group.columns**0.5
            table = np.cumsum(scores)[np.array(choices[name]) - 1]
            gains.append(Term(name=name, over=(name,), gate=tuple(block_variable(b) for b in home), table=table))
    terms: list[Term] = []
    constant = 0.05
    for kernel in graph.kernels.values():
        if kernel.macs:
            more, fixed = cost_terms(kernel, partial(staircase, kernel, rng), choices, removable)
            terms += more
            constant += fixed
    resource = Resource(name="latency", unit="ms", constant=constant, terms=tuple(terms))
    problem = Problem(variables=tuple(variables), gains=tuple(gains), costs=(resource,))
    return problem.replace_limits({"latency": fraction * dense_use(problem, "latency")})


def dense_use(problem: Problem, resource: str) -> float:
    """What the network uses with everything kept."""
    return problem.evaluate({v.name: v.choices[-1] for v in problem.variables}).costs[resource]


def with_second_engine(problem: Problem, fraction: float, seed: int = 0) -> Problem:
    """The problem with a second engine, whose kernels scale differently, limited to ``fraction`` of its own dense latency."""
    rng = np.random.default_rng(seed)
    terms = tuple(
        Term(
            name=t.name, over=t.over, gate=t.gate, table=t.table ** rng.uniform(0.6, 1.2) * (1 + NOISE * rng.standard_normal(t.table.shape))
        )
        for t in problem.costs[0].terms
    )
    both = Problem(
        variables=problem.variables, gains=problem.gains, costs=(*problem.costs, Resource(name="second", unit="ms", terms=terms))
    )
    return both.replace_limits({"second": fraction * dense_use(both, "second")})


def linearised(problem: Problem, fraction: float) -> Problem:
    """HALP's form of a problem: every block stays, every kernel reads only its output width, its input stays dense."""
    kept = {v.name for v in problem.variables if v.kind == "width"}

    def unary(term: Term) -> Term:
        axes: Sequence[int] = range(len(term.over) - 1)
        table = term.table
        for _ in axes:
            table = table.take(-1, axis=0)
        return Term(name=term.name, over=term.over[-1:], table=table)

    costs = tuple(
        Resource(
            name=r.name,
            unit=r.unit,
            constant=r.constant,
            terms=tuple(unary(t) for t in r.terms if isinstance(t.over[-1], str) and t.over[-1] in kept),
        )
        for r in problem.costs
    )
    result = Problem(
        variables=tuple(v for v in problem.variables if v.name in kept),
        gains=tuple(Term(name=t.name, over=t.over, table=t.table) for t in problem.gains),
        costs=costs,
    )
    return result.replace_limits({"latency": fraction * dense_use(result, "latency")})
