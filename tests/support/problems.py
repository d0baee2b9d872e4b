"""Random small problems with every feature of the format, and the brute force that answers them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from latprune.problem import Axis, Problem, Resource, Sum, SumMember, Term, Variable


@dataclass(frozen=True)
class Truth:
    """Best gain (None: infeasible) and the lowest use of each resource."""

    gain: float | None
    floor: dict[str, float]


def all_indices(problem: Problem) -> np.ndarray:
    ranges = [range(len(v.choices)) for v in problem.variables]
    return np.array(list(itertools.product(*ranges)), dtype=np.int64).reshape(-1, len(ranges))


def brute_force(problem: Problem) -> Truth:
    found = problem.evaluate_many(all_indices(problem))
    allowed = np.isfinite(found.gain) & np.all([np.isfinite(c) for c in found.costs.values()], axis=0)
    floor = {name: float(cost[allowed].min()) if allowed.any() else np.inf for name, cost in found.costs.items()}
    gain = float(found.gain[found.satisfied].max()) if found.satisfied.any() else None
    return Truth(gain=gain, floor=floor)


def random_problem(seed: int, *, resources: int | None = None, unary: bool = False) -> Problem:
    """A problem with at most a few thousand assignments and every feature of the format: ties, negatives and forbidden entries too."""
    rng = np.random.default_rng(seed)
    integers = rng.random() < 0.5
    blocks = [Variable(name=f"b{i}", kind="block", choices=(0, 1)) for i in range(rng.integers(0, 4))]
    widths = []
    for i in range(rng.integers(1, 6 if len(blocks) < 2 else 5)):
        count = int(rng.integers(1, 5))
        start = 0 if rng.random() < 0.3 else 4
        widths.append(Variable(name=f"w{i}", choices=tuple(int(c) for c in start + 4 * np.sort(rng.choice(6, count, replace=False)))))
    variables = [*blocks, *widths]
    rng.shuffle(variables)  # type: ignore[arg-type]
    by_name = {v.name: v for v in variables}

    def some_gate(most: int) -> tuple[str, ...]:
        if not blocks or rng.random() < 0.45:
            return ()
        count = int(rng.integers(1, min(most, len(blocks)) + 1))
        return tuple(blocks[int(i)].name for i in rng.choice(len(blocks), count, replace=False))

    def some_axis() -> tuple[Axis, int]:
        if not unary and rng.random() < 0.3:
            members = []
            for _ in range(rng.integers(1, 4)):
                name = widths[int(rng.integers(len(widths)))].name
                members.append(SumMember(name=name, gate=some_gate(2) if rng.random() < 0.4 else ()))
            largest = sum(by_name[m.name].choices[-1] for m in members)
            at = {largest, *(int(v) for v in rng.integers(0, largest + 1, rng.integers(0, 5)))}
            return Sum(members=tuple(members), at=tuple(sorted(at))), len(at)
        pool = variables if rng.random() < 0.35 and not unary else widths
        variable = pool[int(rng.integers(len(pool)))]
        return variable.name, len(variable.choices)

    def table(shape: list[int], *, low: int, high: int, forbid: float | None) -> np.ndarray:
        values = rng.integers(low, high, shape).astype(float) if integers else rng.uniform(low, high, shape)
        if rng.random() < 0.3:
            values = np.maximum.accumulate(values, axis=-1)
        if forbid is not None and rng.random() < 0.1:
            values[rng.random(shape) < 0.2] = forbid
        return values

    def some_term(kind: str) -> Term:
        axes: list[tuple[Axis, int]] = []
        for _ in range(1 if unary else int(rng.choice([1, 1, 2, 2, 3]))):
            axis = some_axis()
            if isinstance(axis[0], str) and axis[0] in [a for a, _ in axes]:
                continue
            axes.append(axis)
        low = -3 if rng.random() < 0.3 else 0
        values = table([n for _, n in axes], low=low, high=8, forbid=None if unary else (-np.inf if kind == "gain" else np.inf))
        gate = some_gate(1 if unary else 2)
        if unary and blocks:
            # A layer lies in one block or in none.
            home = [(), *((b.name,) for b in blocks)]
            gate = home[int(axes[0][0][1:]) % len(home)]  # type: ignore[index]
        return Term(name=kind, over=tuple(a for a, _ in axes), gate=gate, table=values)

    gains = [some_term("gain") for _ in range(rng.integers(1, 6))]
    costs = []
    for r in range(int(rng.choice([1, 1, 1, 2])) if resources is None else resources):
        terms = tuple(some_term("cost") for _ in range(rng.integers(1, 6)))
        constant = float(rng.integers(-2, 3)) if rng.random() < 0.5 else 0.0
        costs.append(Resource(name=f"r{r}", unit="ms", limit=0.0, constant=constant, terms=terms))
    problem = Problem(variables=tuple(variables), gains=tuple(gains), costs=tuple(costs))
    found = problem.evaluate_many(all_indices(problem))
    limits: dict[str, float | None] = {}
    for resource in problem.costs:
        values = np.unique(found.costs[resource.name][np.isfinite(found.costs[resource.name])])
        if not len(values):
            values = np.zeros(1)
        kind = rng.random()
        if kind < 0.15:
            limits[resource.name] = float(values[0])
        elif kind < 0.25:
            limits[resource.name] = float(values[-1])
        elif kind < 0.35:
            limits[resource.name] = float(values[0]) - 0.5
        elif kind < 0.4:
            limits[resource.name] = None
        else:
            # Away from attained costs, and often low.
            k = int(len(values) * rng.random() ** 1.5)
            k = min(k, len(values) - 1)
            limits[resource.name] = float(
                values[k] if integers and rng.random() < 0.5 else (values[k] + values[min(k + 1, len(values) - 1)]) / 2
            )
    return problem.replace_limits(limits)


def medium_problem(seed: int) -> Problem:
    """A residual network in small: stages of a few blocks, a shared hub each, noisy staircase pairs, a concat tail; about 30 variables.

    Too large for brute force; its limit lies away from attained costs because its costs are random.
    """
    rng = np.random.default_rng(seed)
    variables: list[Variable] = []
    gains: list[Term] = []
    terms: list[Term] = []

    def width(name: str, most: int) -> Variable:
        count = int(rng.integers(3, most + 1))
        variable = Variable(name=name, choices=tuple(range(8, 8 * count + 1, 8)))
        variables.append(variable)
        gains.append(Term(name=name, over=(name,), table=np.cumsum(np.sort(rng.lognormal(0, 1, count))[::-1])))
        return variable

    def kernel(reads: Variable, writes: Variable, gate: tuple[str, ...]) -> None:
        a, b = np.array(reads.choices), np.array(writes.choices)
        stairs = np.outer(np.ceil(a / 16), np.ceil(b / 16)) * rng.uniform(0.05, 0.2) + 0.05
        terms.append(
            Term(name="kernel", over=(reads.name, writes.name), gate=gate, table=stairs * (1 + 0.05 * rng.standard_normal(stairs.shape)))
        )

    previous = width("stem", 6)
    for stage in range(int(rng.integers(1, 4))):
        hub = width(f"hub{stage}", 8)
        kernel(previous, hub, ())
        for block in range(int(rng.integers(1, 4))):
            name = f"block{stage}.{block}"
            variables.append(Variable(name=name, kind="block", choices=(0, 1)))
            inner = width(f"inner{stage}.{block}", 6)
            gains[-1] = Term(name=inner.name, over=(inner.name,), gate=(name,), table=gains[-1].table)
            kernel(hub, inner, (name,))
            kernel(inner, hub, (name,))
        previous = hub
    if rng.random() < 0.5:
        parts = [previous, width("branch1", 4), width("branch2", 4)]
        total = sum(p.choices[-1] for p in parts)
        at = tuple(range(16, total + 16, 16))
        table = 0.3 * np.arange(1, len(at) + 1) * (1 + 0.05 * rng.standard_normal(len(at)))
        terms.append(Term(name="concat", over=(Sum(members=tuple(p.name for p in parts), at=at),), table=table))  # type: ignore[arg-type]
    problem = Problem(
        variables=tuple(variables), gains=tuple(gains), costs=(Resource(name="latency", unit="ms", constant=0.1, terms=tuple(terms)),)
    )
    dense = problem.evaluate({v.name: v.choices[-1] for v in variables}).costs["latency"]
    return problem.replace_limits({"latency": float(dense * rng.uniform(0.15, 0.9))})
