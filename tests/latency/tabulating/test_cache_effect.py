"""Kernels that are faster in a smaller network: found in samples, counted in predictions and when a budget is solved."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch

from latprune.errors import BudgetInfeasibleError, FileFormatError, InvalidArgumentError
from latprune.graph import trace
from latprune.graph.types import Kernel
from latprune.importance import MagnitudeConfig, score
from latprune.latency import KernelSample, LatencyTables, NetworkSample, Residual, TableStats, design_points, kernel_signature
from latprune.latency.cache_effect import CacheEffect, Traffic, full_effect
from latprune.latency.tabulating.fitting import fit_tables
from latprune.methods import MDP, StageContext
from latprune.methods.crowded import CrowdedProposer
from latprune.resources import MultiplyAdds, TabulatedLatency
from latprune.resources.terms import block_variable
from latprune.zoo import cifar_resnet
from support.made_up_machine import BLOCKS, CONTEXT, GROUPS, KERNELS, WIDTHS, MadeUpMachine

STATS = TableStats(
    seconds=0.0, networks=0, measured_networks=0, engine_runs=0, kernels=0, surfaces=0, shared_entries=0, positions_differing=0
)


def samples(machine: MadeUpMachine, count: int, seed: int = 0) -> list[NetworkSample]:
    return [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=seed), count)]


def fitted(known: list[NetworkSample], *, caches: bool = True) -> LatencyTables:
    return fit_tables(
        known, list(KERNELS.values()), list(GROUPS.values()), CONTEXT, residual=Residual.of([], []), stats=STATS, caches=caches
    )


@cache
def crowded_tables(networks: int) -> LatencyTables:
    """Tables of a machine whose kernels owe a fifth of a power to the network around them."""
    return fitted(samples(MadeUpMachine(0, caches=CacheEffect(all=0.2)), networks))


def test_traffic_counts_inputs_outputs_and_weights() -> None:
    traffic = Traffic(inputs=64.0, outputs=16.0, weights=9.0)
    assert [float(part) for part in traffic.elements((3, 5))] == [64 * 3 + 16 * 5, 9 * 15]
    assert traffic.weight_share((3, 5)) == pytest.approx(135 / (192 + 80 + 135))
    grid = traffic.weight_share(np.ix_([3, 4], [5, 6, 7]))
    assert grid.shape == (2, 3) and grid[0, 0] == traffic.weight_share((3, 5))
    assert float(Traffic().weight_share(())) == 0.0


def test_a_steady_machine_has_no_effect() -> None:
    tables = fitted(samples(MadeUpMachine(3, noise=0.03), 96))
    assert not tables.cache_effect
    assert tables.share_of({"a": 8}) == 1.0 and tables.at(0.3) is tables


@pytest.mark.parametrize("true", [CacheEffect(all=0.2), CacheEffect(all=0.1, weights=0.2)])
def test_the_effect_is_found(true: CacheEffect) -> None:
    # How the exponents split hardly shows; their sum at the usual share of weights does.
    usual = 0.6
    found = [fitted(samples(MadeUpMachine(seed, caches=true), 96)).cache_effect for seed in range(5)]
    sums = [effect.all + usual * effect.weights for effect in found]
    assert np.mean(sums) == pytest.approx(true.all + usual * true.weights, rel=0.35)
    assert min(sums) > 0.5 * (true.all + usual * true.weights)


def test_an_effect_that_ends_is_found_with_its_knee() -> None:
    true = CacheEffect(all=0.3, knee=0.5)
    machine = MadeUpMachine(2, caches=true)
    tables = fitted(samples(machine, 96, seed=2))
    assert tables.cache_effect.knee == 0.5
    assert tables.cache_effect.all == pytest.approx(true.all, rel=0.35)
    # Networks above the knee are as crowded as the dense one, so what the tables say of them needs no extrapolation.
    points = [
        point
        for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=5), 64)
        if machine.latency({**WIDTHS, **point.widths}, point.removed) > 0.5 * machine.latency(WIDTHS)
    ]
    found = [tables.predict(p.widths, p.removed) / machine.latency({**WIDTHS, **p.widths}, p.removed) for p in points]
    straight = dataclasses.replace(tables, cache_effect=CacheEffect(all=tables.cache_effect.all))
    without = [straight.predict(p.widths, p.removed) / machine.latency({**WIDTHS, **p.widths}, p.removed) for p in points]
    assert np.mean(np.abs(np.log(found))) < 0.5 * np.mean(np.abs(np.log(without)))


@pytest.mark.parametrize("seed", range(3))
def test_an_effect_that_does_not_end_gets_no_knee(seed: int) -> None:
    tables = fitted(samples(MadeUpMachine(seed, caches=CacheEffect(all=0.2)), 96, seed=seed))
    assert tables.cache_effect and tables.cache_effect.knee is None


def test_what_crowds_a_kernel_ends_at_the_knee() -> None:
    effect = CacheEffect(all=0.5, knee=0.25)
    assert effect.factor(1.0, 0.0) == effect.factor(0.25, 0.0) == 1.0
    assert effect.factor(0.0625, 0.0) == pytest.approx(0.5)
    beyond = CacheEffect(all=0.5, knee=4.0)
    assert beyond.factor(1.0, 0.0) == 1.0 and beyond.factor(9.0, 0.0) == pytest.approx(2.0)


def test_tables_are_read_inside_a_network() -> None:
    tables = crowded_tables(96)
    widths = {"stream": 48, "a": 32}
    share = tables.share_of(widths, ["b"])
    assert share == pytest.approx(tables.predict(widths, ["b"]) / tables.predict())
    inside = tables.at(share)
    full = {**WIDTHS, **widths}
    total = tables.constant_ms + sum(
        inside.cost(name, [axis.size(full, {"b"}) for axis in entry.axes])
        for name, entry in tables.entries.items()
        if "b" not in entry.blocks
    )
    assert tables.predict(widths, ["b"]) == pytest.approx(total, rel=1e-4)
    assert inside.predict(widths, ["b"]) == tables.predict(widths, ["b"])
    assert inside.cost("a.1", (48, 32)) < tables.cost("a.1", (48, 32))
    grid = inside.table("a.1", [48, 64], [16, 32])
    assert grid[0, 1] == pytest.approx(inside.cost("a.1", (48, 32)))
    # A curve stands in the network of its base.
    curve = tables.curve("a", [32], widths, ["b"])
    assert curve[0] == pytest.approx(inside.cost("a.1", (48, 32)) + inside.cost("a.2", (32, 48)))
    with pytest.raises(InvalidArgumentError, match="share"):
        tables.at(0.0)


def test_files_keep_the_effect_and_older_files_have_none() -> None:
    tables = crowded_tables(64)
    again = LatencyTables.from_dict(tables.to_dict())
    assert again.cache_effect == tables.cache_effect
    assert again.predict({"a": 48}, ["b"]) == pytest.approx(tables.predict({"a": 48}, ["b"]))
    bent = dataclasses.replace(tables, cache_effect=CacheEffect(all=0.2, knee=0.5))
    assert LatencyTables.from_dict(bent.to_dict()).cache_effect == bent.cache_effect
    without_knee = tables.to_dict()
    del without_knee["cache_effect"]["knee"]
    assert LatencyTables.from_dict(without_knee).cache_effect == dataclasses.replace(tables.cache_effect, knee=None)
    older = tables.to_dict()
    del older["cache_effect"]
    for entry in older["entries"]:
        del entry["traffic"]
    plain = LatencyTables.from_dict(older)
    assert not plain.cache_effect and plain.share_of({"a": 8}) == 1.0


def test_malformed_effects_name_the_place() -> None:
    written = crowded_tables(64).to_dict()
    for effect in ({"all": 0.6, "weights": 0.5}, {"all": -0.1, "weights": 0.0}, {"all": float("nan"), "weights": 0.0}):
        with pytest.raises(FileFormatError, match="cache_effect"):
            LatencyTables.from_dict({**written, "cache_effect": effect})
    for knee in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(FileFormatError, match="knee"):
            LatencyTables.from_dict({**written, "cache_effect": {"all": 0.1, "weights": 0.0, "knee": knee}})
    del written["entries"][1]["traffic"]
    with pytest.raises(FileFormatError, match=r"entries\[1\]\.traffic"):
        LatencyTables.from_dict(written)


def test_what_surfaces_swallow_is_put_back() -> None:
    # A third of the effect was seen; with that taken off, two thirds of what was seen remain.
    assert full_effect(CacheEffect(all=0.05), CacheEffect(all=0.05 * 2 / 3)).all == pytest.approx(0.15)
    assert full_effect(CacheEffect(all=0.05), CacheEffect(all=0.06)).all == pytest.approx(0.2)
    assert full_effect(CacheEffect(all=0.3), CacheEffect(all=0.25)).all == 0.45
    assert not full_effect(CacheEffect(), CacheEffect(all=0.1))


class Crowded:
    """ResNet-20 on a machine whose kernels cost multiply-adds, and a fifth of a power of the network's latency."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = cifar_resnet(20).eval()
        self.graph = trace(self.model, torch.randn(1, 3, 32, 32))
        self.kernels = [kernel for kernel in self.graph.kernels.values() if kernel.macs and kernel.kind in ("conv", "linear")]
        self.dense = self.graph.dense_widths()
        self.whole = self.total(self.dense, (), 1.0)
        points = design_points(list(self.graph.groups.values()), list(self.graph.blocks.values()), seed=0)
        self.known = [self.sample({**self.dense, **point.widths}, point.removed) for point in islice(points, 48)]

    def running(self, widths: Mapping[str, int], removed: Sequence[str]) -> list[tuple[Kernel, tuple[int, ...]]]:
        return [(k, tuple(axis.size(widths, removed) for axis in k.axes)) for k in self.kernels if not set(k.blocks) & set(removed)]

    def cost(self, kernel: Kernel, sizes: Sequence[int], share: float) -> float:
        return (0.01 + 1e-7 * kernel.macs * float(np.prod(sizes))) * share**0.2

    def total(self, widths: Mapping[str, int], removed: Sequence[str], share: float) -> float:
        return 0.05 + sum(self.cost(kernel, sizes, share) for kernel, sizes in self.running(widths, removed))

    def share(self, widths: Mapping[str, int], removed: Sequence[str] = ()) -> float:
        """True latency, relative to the dense network's."""
        share = 1.0
        for _ in range(40):
            share = self.total(widths, removed, share) / self.whole
        return share

    def sample(self, widths: Mapping[str, int], removed: tuple[str, ...]) -> NetworkSample:
        share = self.share(widths, removed)
        parts = [
            KernelSample(kernel=k.name, signature=kernel_signature(k), sizes=sizes, ms=self.cost(k, sizes, share), steps=1)
            for k, sizes in self.running(widths, removed)
        ]
        times = {"ms": share * self.whole, "reference_ms": self.whole, "runs": 10, "spread": 0.0, "created": 0.0}
        return NetworkSample(fingerprint="made up", widths=widths, removed=removed, kernels=tuple(parts), extra={}, **times)

    def tables(self, *, caches: bool = True) -> LatencyTables:
        kernels, groups = list(self.graph.kernels.values()), list(self.graph.groups.values())
        return fit_tables(self.known, kernels, groups, CONTEXT, residual=Residual.of([], []), stats=STATS, caches=caches)


@pytest.fixture(scope="module")
def crowded() -> Crowded:
    return Crowded()


@pytest.fixture(scope="module")
def context(crowded: Crowded) -> StageContext:
    tables = crowded.tables()
    assert tables.cache_effect.all > 0.05
    groups = crowded.graph.groups.values()
    choices = {g.name: tuple(sorted({max(1, g.columns // 4), max(1, g.columns // 2), g.columns})) for g in groups}
    importance = score(crowded.model, crowded.graph, MagnitudeConfig())
    return StageContext(
        graph=crowded.graph,
        importance=importance,
        resource=TabulatedLatency(crowded.graph, tables),
        choices=choices,
        widths=crowded.graph.dense_widths(),
    )


def _tables(context: StageContext) -> LatencyTables:
    assert isinstance(context.resource, TabulatedLatency)
    return context.resource.tables


def test_networks_as_solvers_make_them_come_out_right(crowded: Crowded, context: StageContext) -> None:
    """Narrow early and dense late, or the other way round: the sizes of their kernels tell nothing of the network around them."""
    plain, errors = crowded.tables(caches=False), []
    for early, late in ((0.25, 1.0), (1.0, 0.25), (0.15, 1.0), (1.0, 0.15), (0.25, 0.5), (0.5, 0.25)):
        widths = {name: max(1, round(width * (late if "layer3" in name else early))) for name, width in crowded.dense.items()}
        errors.append([abs(tables.predict(widths) / tables.dense_ms / crowded.share(widths) - 1.0) for tables in (_tables(context), plain)])
    with_it, without = np.mean(errors, axis=0)
    assert with_it < 0.04 and with_it < 0.7 * without, (with_it, without)


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4, 0.25])
def test_the_solvers_network_costs_what_the_tables_predict(context: StageContext, share: float) -> None:
    proposer, random = MDP().prepare(context), np.random.default_rng(0)
    assert isinstance(proposer, CrowdedProposer)
    limit = share * _tables(context).predict()
    found = proposer.propose(limit)
    assert found.predicted == pytest.approx(context.predict(found.widths, found.removed_blocks))
    assert 0.7 * limit <= found.predicted <= limit * (1 + 1e-5)
    # No network that the tables put under the limit, as it stands in itself, is worth more.
    assert found.solution is not None and found.problem is not None and found.solution.gain is not None
    for _ in range(300):
        widths = {name: int(random.choice(options)) for name, options in context.choices.items()}
        removed = [block for block in context.removable if random.random() < 0.2]
        if context.predict(widths, removed) <= limit:
            assignment = {**widths, **{block_variable(block): int(block not in removed) for block in context.removable}}
            assert found.problem.evaluate(assignment).gain <= found.solution.gain * (1 + 1e-9)


@pytest.mark.parametrize(("resource", "method"), [("latency", MDP()), ("latency", MDP(blocks=False)), ("flops", MDP())])
def test_a_network_is_widened_up_to_a_higher_limit_and_narrowed_down_to_a_lower_one(
    context: StageContext, resource: str, method: MDP
) -> None:
    inside = context if resource == "latency" else dataclasses.replace(context, resource=MultiplyAdds(context.graph))
    dense = inside.predict(context.graph.dense_widths())
    proposer = method.prepare(inside)
    found = proposer.propose(0.4 * dense)
    for limit in (found.predicted * (1 + 1e-6), 0.6 * dense):
        wider = proposer.widened(found, limit)
        assert wider is not None
        assert all(wider.widths[name] >= found.widths[name] for name in found.widths)
        assert set(wider.removed_blocks) <= set(found.removed_blocks)
        assert found.predicted * (1 - 1e-9) <= wider.predicted <= limit * (1 + 1e-5)
        best, at = proposer.propose(limit).solution, wider.solution
        assert best is not None and best.gain is not None and at is not None and at.gain is not None and at.gain <= best.gain * (1 + 1e-9)
        assert wider.problem is not None and wider.problem.to_dict()
    assert wider.predicted > 1.15 * found.predicted
    unsolved = proposer.widened(dataclasses.replace(found, problem=None, solution=None), 0.6 * dense)  # whoever found it
    assert unsolved is not None and (unsolved.widths, unsolved.removed_blocks) == (wider.widths, wider.removed_blocks)
    narrower = proposer.narrowed(wider, 0.8 * wider.predicted)
    assert narrower is not None and 0.6 * wider.predicted < narrower.predicted <= 0.8 * wider.predicted * (1 + 1e-5)
    assert all(narrower.widths[name] <= wider.widths[name] for name in wider.widths)
    assert set(narrower.removed_blocks) >= set(wider.removed_blocks)
    with pytest.raises(BudgetInfeasibleError):
        proposer.narrowed(wider, 0.001 * dense)


def test_the_floor_can_be_proposed(context: StageContext) -> None:
    proposer = MDP(blocks=False).prepare(context)
    with pytest.raises(BudgetInfeasibleError) as caught:
        proposer.propose(0.01 * _tables(context).predict())
    floor = caught.value.floor["latency"]
    smallest = proposer.propose(floor * (1 + 1e-6))
    assert all(width == min(context.choices[name]) for name, width in smallest.widths.items())
    assert context.predict(smallest.widths) == pytest.approx(floor)
    with pytest.raises(BudgetInfeasibleError):
        proposer.propose(0.999 * floor)
    assert floor <= proposer.propose(1.1 * floor).predicted <= 1.1 * floor * (1 + 1e-5)


def test_without_an_effect_one_problem_does(context: StageContext) -> None:
    assert not isinstance(MDP().prepare(dataclasses.replace(context, resource=MultiplyAdds(context.graph))), CrowdedProposer)


@pytest.mark.parametrize("exponent", [0.1, 0.3, 0.4, 0.45])
def test_the_floor_of_linear_costs_can_be_proposed_where_its_network_lies_below_the_limit(
    crowded: Crowded, context: StageContext, exponent: float
) -> None:
    """Every layer at its dense input: the smallest network costs less than the least limit that such a problem takes."""
    tables = dataclasses.replace(_tables(context), cache_effect=CacheEffect(all=exponent))
    linear = dataclasses.replace(
        context,
        resource=TabulatedLatency(crowded.graph, tables),
        choices={name: (1, context.widths[name]) for name in context.choices},
    )
    proposer = MDP(blocks=False, bilayer=False).prepare(linear)
    assert isinstance(proposer, CrowdedProposer)
    smallest = linear.predict(dict.fromkeys(linear.choices, 1))
    for share in (1.01, 0.5):
        with pytest.raises(BudgetInfeasibleError) as caught:
            proposer.propose(share * smallest)
        floor = caught.value.floor["latency"]
        assert floor > 1.01 * smallest and f"{floor:g}" in str(caught.value)
        assert proposer.propose(floor * (1 + 1e-6)).predicted == pytest.approx(smallest)
