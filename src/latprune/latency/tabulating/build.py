"""Building the latency tables of a model on a target: measure, fit, check on the next networks, until the check is good enough."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

from latprune.errors import FileFormatError, InvalidArgumentError, TableError
from latprune.latency.engines import get_engine
from latprune.latency.measuring.context import target_context
from latprune.latency.measuring.design import DesignPoint, design_points
from latprune.latency.measuring.held_types import settled_target
from latprune.latency.measuring.sampling import NetworkSampler
from latprune.latency.measuring.signature import network_fingerprint
from latprune.latency.samples import ContextInfo, NetworkSample
from latprune.latency.storing.store import Store
from latprune.latency.tabulating.fit_cache import KeptFit, keep_fit, kept_fit
from latprune.latency.tabulating.repeats import as_repeat, with_repeats
from latprune.latency.tabulating.table_builder import TableBuilder, fewest_networks
from latprune.latency.tabulating.tables import LatencyTables, Residual
from latprune.latency.target import Target
from latprune.progress import stretch

if TYPE_CHECKING:
    from latprune.graph import ModelGraph

__all__ = ["TableProgress", "build_tables", "require_same_network", "stored_tables"]


_LONG, _GOOD = 100.0, 0.03
"""Seconds of measuring after which a mean error up to this ends it, though more networks would still lower it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableProgress:
    """Where a build stands: networks measured (stored ones included) of at most ``limit``, seconds, and the last check's residual."""

    networks: int
    limit: int
    seconds: float
    residual: Residual | None


def build_tables(
    model: nn.Module,
    graph: ModelGraph,
    example_inputs: Any,
    target: Target,
    *,
    store: Store | None = None,
    progress: Callable[[TableProgress], None] | None = None,
    seed: int = 0,
    time_limit: float | None = None,
    max_networks: int = 128,
    extend: bool = False,
) -> LatencyTables:
    """Latency tables of ``model`` on ``target``, from in-place profiles of width-varied networks.

    Networks are measured in batches. Each batch is first predicted from the tables fitted to all before it, which gives an honest residual,
    and then joins the fit; batches go on until the mean error is at most 1.5 % (3 % after 100 seconds of measuring), no longer falls, or a
    limit is reached. Every
    network is written to the store when it has been measured, so an interrupted build goes on where it stopped, and a store that holds
    enough networks of this structure (same engine version, device, threads, batch, precision, machine) answers without running the engine.

    A network that is far off the tables before it (an interrupted run, or something that is really so) is measured again, up to twice,
    before it joins the check and the fit; what counts is the median.

    Args:
        model: The dense model; it is left as it is.
        graph: Its trace.
        example_inputs: What the network is run on.
        target: Engine and conditions; for a model held in fp16 or bf16, in that precision where the engine runs it as it is (torch).
        store: Where samples are read and written; None keeps nothing.
        progress: Called after each network.
        seed: Seed of the design; the same seed gives the same networks.
        time_limit: Seconds for measuring, after which nothing is measured again; as many networks as a fit and its check take always are.
        max_networks: Networks at most.
        extend: Measure up to ``max_networks`` even where the residual is good.

    Returns:
        The tables; their ``residual`` comes from networks that had no part in the fit that predicted them.

    Raises:
        EngineError: The engine cannot convert or run the model.
        MissingExtraError: The engine is not installed.

    Example:
        >>> graph = latprune.graph.trace(model, x)  # doctest: +SKIP
        >>> tables = build_tables(model, graph, x, Target(engine="openvino"), store=Store())  # doctest: +SKIP
        >>> tables.predict({"layer1.0.conv1": 32}, ["layer3.2"])  # doctest: +SKIP
    """
    if max_networks < fewest_networks():
        raise InvalidArgumentError(f"max_networks (={max_networks}) must be at least {fewest_networks()}")
    start = time.perf_counter()
    target = settled_target(model, target)
    context = target_context(target)
    fingerprint = network_fingerprint(list(graph.kernels.values()), example_inputs, target)
    if store is not None:
        kept = kept_fit(store, context, fingerprint, graph)
        if kept is not None and (kept.tables.stats.networks >= max_networks or (kept.settled and not extend)):
            stats = dataclasses.replace(kept.tables.stats, seconds=time.perf_counter() - start, measured_networks=0, engine_runs=0)
            return dataclasses.replace(kept.tables, stats=stats)
    stored = _networks(store, context, fingerprint, graph) if store is not None else []
    samples, written = with_repeats(stored), len(stored)
    sampler: NetworkSampler | None = None

    def take(point: DesignPoint, first: NetworkSample | None = None) -> NetworkSample:
        nonlocal sampler, written
        if sampler is None:
            sampler = NetworkSampler(model, graph, example_inputs, target, get_engine(target.engine))
        sample = sampler.sample(point)
        if first is not None:
            sample = as_repeat(sample, first)
        if store is not None:
            written += store.add(context, [sample])
        return sample

    def content() -> bool:
        """Whether the wait has been long and the tables are good: a search measures what it delivers, and corrects the rest."""
        good = builder.residual is not None and builder.residual.mean_absolute <= _GOOD
        return good and not extend and sampler is not None and time.perf_counter() - start > _LONG

    def late() -> bool:
        return time_limit is not None and time.perf_counter() - start > time_limit

    builder = TableBuilder(graph, context, samples, extend=extend)
    told = ExitStack()
    try:
        points = design_points(list(graph.groups.values()), list(graph.blocks.values()), seed=seed)
        for _ in samples:
            next(points)
        work = told.enter_context(stretch("latency tables", unit=f"networks of at most {max_networks}", timed=True))
        while not builder.done(max_networks) and not content():
            if late() and len(builder.samples) >= fewest_networks():
                break
            builder.add(
                take(next(points)), again=lambda first: take(DesignPoint(widths=first.widths, removed=first.removed), first), late=late
            )
            work.reached(len(builder.samples), **({"mean_error": builder.residual.mean_absolute} if builder.residual is not None else {}))
            if progress is not None:
                progress(
                    TableProgress(
                        networks=len(builder.samples), limit=max_networks, seconds=time.perf_counter() - start, residual=builder.residual
                    )
                )
    finally:
        told.close()
        if sampler is not None:
            sampler.close()
    measured = len(builder.samples) - len(samples)
    tables = builder.tables(measured=measured, runs=sampler.runs if sampler is not None else 0)
    if store is not None:
        keep_fit(store, context, fingerprint, graph, KeptFit(tables=tables, settled=builder.settled or content()), measured=written)
    return dataclasses.replace(tables, stats=dataclasses.replace(tables.stats, seconds=time.perf_counter() - start))


def stored_tables(graph: ModelGraph, example_inputs: Any, context: ContextInfo, store: Store) -> LatencyTables:
    """Tables from what a store holds for ``context``, without any engine: for a device that is not at hand.

    Raises:
        TableError: The store holds fewer than two batches of networks of this structure and context.
    """
    fingerprint = network_fingerprint(list(graph.kernels.values()), example_inputs, context.target)
    kept = kept_fit(store, context, fingerprint, graph)
    if kept is not None:
        return kept.tables
    stored = _networks(store, context, fingerprint, graph)
    samples = with_repeats(stored)
    if len(samples) < fewest_networks():
        raise TableError(
            f"{store.path} holds {len(samples)} networks of it for {context.target} (version {context.version}, {context.machine}); "
            f"tables need {fewest_networks()}: measure more"
        )
    builder = TableBuilder(graph, context, samples)
    tables = builder.tables(measured=0, runs=0)
    keep_fit(store, context, fingerprint, graph, KeptFit(tables=tables, settled=builder.settled), measured=len(stored))
    return tables


def _networks(store: Store, context: ContextInfo, fingerprint: str, graph: ModelGraph) -> list[NetworkSample]:
    """The networks of a structure in a store, which may have come from a file that someone edited."""
    found = store.networks(context, fingerprint)
    for number, network in enumerate(found, start=1):
        for name, group in graph.groups.items():
            if not 1 <= network.widths.get(name, 0) <= group.columns:
                raise FileFormatError(
                    f"store {store.path}: network {number} of {len(found)} of this model for {context.target} has the width "
                    f"{network.widths.get(name)} in group {name!r}, which must be from 1 to {group.columns}; it was imported from an "
                    "altered file. Use another store, or restore a copy"
                )
    return found


def require_same_network(tables: LatencyTables, graph: ModelGraph, example_inputs: Any, target: Target, *, kept: bool = False) -> None:
    """Refuse tables that were measured under other conditions or on another network.

    Args:
        tables: The tables.
        graph: The dense network.
        example_inputs: What it runs on.
        target: The conditions wanted.
        kept: Whether ``graph`` holds groups whole that the tables may vary.

    Raises:
        InvalidArgumentError: The tables are for another target, another structure, or other input shapes.
    """
    if tables.target != target:
        raise InvalidArgumentError(
            f"tables hold for {tables.target}, but the target is {target}: latencies of one say nothing of the other. Ask for the tables' "
            "own target, or measure tables for this one"
        )
    if tables.fingerprint == network_fingerprint(list(graph.kernels.values()), example_inputs, target):
        return
    dense = graph.dense_widths()
    for name, entry in tables.entries.items():
        kernel = graph.kernels.get(name)
        found = tuple(axis.size(dense) for axis in kernel.axes) if kernel is not None else None
        if found != entry.dense:
            says = f"has dense sizes {list(found)}" if found is not None else "does not exist"
            raise InvalidArgumentError(
                f"tables are of another network: their kernel {name!r} has dense sizes {list(entry.dense)}, in this model it {says}; build "
                "tables of this model"
            )
    if not kept:
        raise InvalidArgumentError(
            "tables are of another network: its kernels are as large as this model's, but its input shapes, its blocks or the way in which "
            "it was timed differ; build tables of this model on these example inputs"
        )
