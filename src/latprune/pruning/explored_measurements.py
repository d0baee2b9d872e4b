"""Some of an exploration's networks, measured beside the dense one and evaluated after the cut and after recovery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn

from latprune.export.record import LatencyRecord
from latprune.graph.types import Selection
from latprune.methods import StageContext, selection_of
from latprune.pruning.explored_points import FrontierNetwork
from latprune.pruning.fitting import Evaluate
from latprune.recovery import recover
from latprune.rounding import ALMOST_NOTHING
from latprune.train.contracts import accuracy_of

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner

__all__ = ["measured_networks"]


def measured_networks(
    pruner: Pruner,
    context: StageContext,
    found: Sequence[FrontierNetwork],
    *,
    count: int,
    evaluate: Evaluate | None,
    data: Iterable[Any] | None = None,
) -> Iterator[dict[int, dict[str, Any]]]:
    """Measure ``count`` networks, evenly spread between the smallest and the dense one.

    Args:
        pruner: The pruner.
        context: What the networks were found in.
        found: The networks.
        count: How many are measured.
        evaluate: Accuracy of a network; None asks for none.
        data: Batches to recover with before the accuracy is asked again, by the pruner's strategy of recovery; None recovers nothing.

    Yields:
        After each of them all results so far: place in ``found`` (-1: the dense network) -> fields of an ``ExploredPoint``.
    """
    smaller = [place for place, network in enumerate(found) if network.value < context.current * (1.0 - ALMOST_NOTHING)]
    if not count or not smaller:
        return

    def accuracy(network: nn.Module, moment: str = "accuracy") -> dict[str, float]:
        if evaluate is None:
            return {}
        with pruner.clock.timed("evaluate"):
            return {moment: accuracy_of(evaluate, network.eval())}

    strategy = pruner.options.strategy
    recovers = (
        evaluate is not None and strategy is not None and (data is not None or not strategy.needs_data) and pruner.method.keeps_weights
    )

    values = np.asarray([found[place].value for place in smaller])
    wanted = np.linspace(values[0], context.current, count + 2)[1:-1].tolist()
    chosen = dict.fromkeys(smaller[int(np.abs(values - value).argmin())] for value in wanted)
    results: dict[int, dict[str, Any]] = {}
    whole = accuracy(pruner.dense_model)
    for number, place in enumerate(chosen, start=1):
        proposal = found[place].proposal
        ranking = pruner.method.rank(context, proposal.removed_blocks)
        selection = selection_of(pruner.graph, ranking, proposal, Selection(kept={}))
        network = pruner._search.network(selection)
        trial = pruner.trial(network)
        results[place] = {"latency": LatencyRecord(**trial.pruned.to_dict()), **accuracy(network)}
        if recovers:
            assert strategy is not None
            with pruner.clock.timed("recover"):
                recover(network, pruner.dense_model, data, graph=pruner.graph, selection=selection, strategy=strategy, seed=pruner.seed)
            results[place] |= accuracy(network, "recovered_accuracy")
        results[-1] = {"latency": LatencyRecord(**trial.dense.to_dict()), **whole}
        pruner._progress(f"measured {number} of {len(chosen)} networks: {trial.pruned.ms:.4g} ms, dense {trial.dense.ms:.4g} ms")
        yield results
