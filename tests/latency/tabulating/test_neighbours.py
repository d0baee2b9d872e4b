"""Kernels that cost something else where the block beside them is gone: found in samples, counted in predictions and in problems."""

from __future__ import annotations

from functools import partial
from itertools import islice, product

import numpy as np
import pytest

from latprune.latency import LatencyTables, NetworkSample, Residual, TableStats, design_points
from latprune.latency.tabulating.fitting import fit_tables, predicted_and_measured
from latprune.latency.tabulating.neighbours import Condition, Neighbour, Observation, active, candidate_conditions, find_neighbours
from latprune.problem import Problem, Resource, Variable
from latprune.resources.terms import block_variable, cost_terms
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, MadeUpMachine, axis, kernel

STATS = TableStats(
    seconds=0.0, networks=0, measured_networks=0, engine_runs=0, kernels=0, surfaces=0, shared_entries=0, positions_differing=0
)


def samples(machine: MadeUpMachine, count: int, seed: int = 0) -> list[NetworkSample]:
    return [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=seed), count)]


def fitted(known: list[NetworkSample], *, beside: bool = True) -> LatencyTables:
    return fit_tables(
        known, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=STATS, beside=beside
    )


def test_conditions_go_through_removed_blocks_up_to_what_always_runs() -> None:
    order = [
        kernel("stem", (axis("a"),)),
        *(kernel(f"{block}.{part}", (axis("a"),), (block,)) for block in "abc" for part in (1, 2)),
        kernel("shortcut", (axis("a"),)),
        kernel("d.1", (axis("a"),), ("d",)),
    ]
    found = candidate_conditions(order)
    assert found["b.1"] == [
        Condition(met="c", side="after", place=1, removed=("c",)),
        Condition(met="a", side="before", place=0, removed=("a",)),
    ]
    assert [item.removed for item in found["a.2"]] == [("b",), ("b", "c")]
    assert [(item.side, item.removed) for item in found["shortcut"]] == [
        ("after", ("d",)),
        ("before", ("c",)),
        ("before", ("c", "b")),
    ]
    assert "d.1" not in found


def test_inside_a_nest_only_what_the_kernel_is_not_in_counts() -> None:
    order = [kernel("a.1", (axis("a"),), ("outer", "a")), kernel("b.1", (axis("a"),), ("outer", "b")), kernel("c.1", (axis("a"),), ("c",))]
    found = candidate_conditions(order)
    assert [item.removed for item in found["a.1"]] == [("b",), ("b", "c")]
    assert [item.removed for item in found["c.1"]] == [("b",), ("b", "a")]


def test_equal_kernels_share_what_the_same_neighbour_does_to_them() -> None:
    random = np.random.default_rng(0)
    conditions = {
        "a": [Condition(met="c", side="after", place=0, removed=("b", "c"))],
        "b": [Condition(met="c", side="after", place=0, removed=("c",)), Condition(met="a", side="before", place=0, removed=("a",))],
    }
    observations = []
    for gone, name in product((frozenset(), frozenset("c"), frozenset("bc"), frozenset("a")), "ab"):
        if name not in gone:
            shifted = "c" in gone and (name == "b" or "b" in gone)
            for _ in range(3):
                spent = float(np.exp(random.normal(-0.7 if shifted else 0.0, 0.02)))
                observations.append(Observation(kernel=name, spent=spent, fitted=1.0, removed=gone))
    found = find_neighbours({"kind": observations}, conditions)
    # Three samples each would not be enough: the two positions share their samples.
    assert {name: [item.removed for item in items] for name, items in found.items()} == {"a": [("b", "c")], "b": [("c",)]}
    assert found["a"][0].factor == found["b"][0].factor == pytest.approx(np.exp(-0.7), rel=0.03)
    assert active(found["a"], {"b", "c"}) == (found["a"][0].factor, 0.0) and active(found["a"], {"c"}) == (1.0, 0.0)


def test_noise_makes_no_neighbours() -> None:
    known = samples(MadeUpMachine(3, noise=0.05), 96)
    assert not any(entry.neighbours for entry in fitted(known).entries.values())


def test_a_machine_that_fuses_another_way_is_predicted_better() -> None:
    beside = {"a.2": ("b", 0.3), "b.1": ("a", 3.0)}
    known, unseen = samples(MadeUpMachine(0, beside=beside), 96), samples(MadeUpMachine(1, beside=beside), 90, seed=99)
    unseen = [sample for sample in unseen if len(sample.removed) == 1]
    tables, plain = fitted(known), fitted(known, beside=False)
    assert {name: [item.removed for item in entry.neighbours] for name, entry in tables.entries.items() if entry.neighbours} == {
        "a.2": [("b",)],
        "b.1": [("a",)],
    }
    assert tables.entries["a.2"].neighbours[0].factor == pytest.approx(0.3, rel=0.15)
    assert tables.entries["b.1"].neighbours[0].factor == pytest.approx(3.0, rel=0.25)
    with_it, without = (Residual.of(*predicted_and_measured(item, unseen)).mean_absolute for item in (tables, plain))
    assert with_it < 0.04 and with_it < 0.4 * without
    # What is read per kernel is the kernel with its neighbours in place.
    assert tables.cost("a.2", (96, 128)) == pytest.approx(MadeUpMachine(beside=beside).cost("a.2", (96, 128), ()), rel=0.1)
    whole, gone = tables.curve("stream", [64, 128]), tables.curve("stream", [64, 128], removed_blocks=["b"])
    predicted = [tables.predict({"stream": width}, ["b"]) for width in (64, 128)]
    assert np.diff(gone)[0] == pytest.approx(predicted[1] - predicted[0])
    assert np.diff(whole)[0] != pytest.approx(np.diff(gone)[0])
    again = LatencyTables.from_dict(tables.to_dict())
    assert again.predict({"a": 48}, ["b"]) == pytest.approx(tables.predict({"a": 48}, ["b"]))
    older = tables.to_dict()
    for entry in older["entries"]:
        del entry["neighbours"]
    assert not any(entry.neighbours for entry in LatencyTables.from_dict(older).entries.values())


def test_a_step_of_its_own_is_added_whatever_the_kernel_computes() -> None:
    """A small and a large kernel stand beside the gap; both pay the same for what they write."""
    random = np.random.default_rng(0)
    conditions = {name: [Condition(met="c", side="after", place=0, removed=("c",))] for name in ("small", "large")}
    observations = []
    for gone in (frozenset(), frozenset("c")):
        for name, fitted in (("small", 0.05), ("large", 0.4)):
            for width in (0.25, 0.5, 0.75, 1.0):
                spent = fitted * width + (0.2 * width if gone else 0.0)
                observations.append(
                    Observation(
                        kernel=name, spent=spent * np.exp(random.normal(0, 0.02)), fitted=fitted * width, removed=gone, written=width
                    )
                )
    found = find_neighbours({"kind": observations}, conditions)
    assert found["small"] == found["large"] and len(found["small"]) == 1
    assert found["small"][0].factor == 1.0 and found["small"][0].added_ms == pytest.approx(0.2, rel=0.05)


def test_a_machine_that_runs_another_step_beside_a_gap_is_predicted_better() -> None:
    added = {"a.2": ("b", 0.3)}
    known, unseen = samples(MadeUpMachine(0, added=added), 96), samples(MadeUpMachine(1, added=added), 90, seed=99)
    unseen = [sample for sample in unseen if sample.removed == ("b",)]
    tables, plain = fitted(known), fitted(known, beside=False)
    (item,) = tables.entries["a.2"].neighbours
    assert item.removed == ("b",) and item.factor == 1.0 and item.added_ms == pytest.approx(0.3, rel=0.1)
    with_it, without = (Residual.of(*predicted_and_measured(one, unseen)).mean_absolute for one in (tables, plain))
    assert with_it < 0.04 and with_it < 0.6 * without
    machine, sizes = MadeUpMachine(added=added), (48, 64)
    assert tables.cost("a.2", sizes, ["b"]) == pytest.approx(machine.cost("a.2", sizes, ("b",)), rel=0.1)
    assert tables.cost("a.2", sizes, ["b"]) - tables.cost("a.2", sizes) == pytest.approx(0.15 * tables.scale, rel=0.1)
    assert tables.cost("a.2", (48, 0), ["b"]) == tables.cost("a.2", (0, 64), ["b"]) == 0.0
    ((blocks, change),) = tables.changes("a.2")
    grid = change([0, 24, 96], [0, 32, 64, 128])
    assert blocks == ("b",) and grid.shape == (3, 4) and not grid[0].any() and not grid[:, 0].any()
    for row, first in enumerate((24, 96), start=1):
        for column, last in enumerate((32, 64, 128), start=1):
            more = tables.cost("a.2", (first, last), ["b"]) - tables.cost("a.2", (first, last))
            assert grid[row, column] == pytest.approx(more) and more > 0
    again = LatencyTables.from_dict(tables.to_dict())
    assert again.entries["a.2"].neighbours == (item,)
    gone = tables.curve("stream", [64, 128], removed_blocks=["b"])
    assert np.diff(gone)[0] == pytest.approx(np.diff([tables.predict({"stream": width}, ["b"]) for width in (64, 128)])[0])
    older = tables.to_dict()
    for entry in older["entries"]:
        entry["neighbours"] = [[["b"], 1.5]]
    assert LatencyTables.from_dict(older).entries["a.2"].neighbours == (Neighbour(removed=("b",), factor=1.5),)


def test_problems_count_neighbours_as_predictions_do() -> None:
    item = kernel("a.1", (axis("stream"), axis("a")), ("a",))
    neighbours = [
        Neighbour(removed=("b",), factor=0.4),
        Neighbour(removed=("b", "c"), factor=1.3, added_ms=7.0),
        Neighbour(removed=("d",), factor=0.5),
    ]
    choices = {"stream": (64, 128), "a": (32, 96)}

    def table(*sizes: np.ndarray) -> np.ndarray:
        return 1.0 + np.multiply.outer(sizes[0].astype(float), sizes[1].astype(float))

    def change(neighbour: Neighbour, *sizes: np.ndarray) -> np.ndarray:
        return (neighbour.factor - 1.0) * table(*sizes) + neighbour.added_ms * np.broadcast_to(sizes[1] / 96, [len(s) for s in sizes])

    removable = ("a", "b", "c")
    changes = [(neighbour.removed, partial(change, neighbour)) for neighbour in neighbours]
    terms, constant = cost_terms(item.name, item.axes, table, choices, removable, item.blocks, changes)
    variables = [Variable(name=name, choices=options) for name, options in choices.items()]
    variables += [Variable(name=block_variable(block), kind="block", choices=(0, 1)) for block in removable]
    costs = (Resource(name="latency", unit="ms", constant=constant, terms=tuple(terms)),)
    problem = Problem(variables=tuple(variables), gains=(), costs=costs)
    for stream, a, *present in product((64, 128), (32, 96), (0, 1), (0, 1), (0, 1)):
        removed = {block for block, there in zip(removable, present, strict=True) if not there}
        # Block d has no variable: it stays, and what its removal would change is never met.
        factor, added = active(neighbours, removed)
        expected = 0.0 if "a" in removed else (1.0 + stream * a) * factor + added * a / 96
        assignment = {"stream": stream, "a": a} | {block_variable(block): there for block, there in zip(removable, present, strict=True)}
        assert problem.evaluate(assignment).costs["latency"] == pytest.approx(expected)
