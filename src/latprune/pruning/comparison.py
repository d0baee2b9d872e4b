"""``compare()``: several networks for one task, measured in turns on one target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from latprune.errors import CaptureError, InvalidArgumentError, LatpruneError
from latprune.graph.trace import trace
from latprune.latency import Measurement, Target, get_engine, measure
from latprune.latency.engines.inputs import check_network
from latprune.latency.measuring.held_types import settled_target
from latprune.modes import preserved_modes
from latprune.train.contracts import accuracy_of

__all__ = ["Compared", "compare"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One network of a comparison.

    Attributes:
        name: Its name.
        latency: Measured in turns with the others; its ratio is to the first.
        parameters: Number of parameters.
        macs: Multiply-adds of one inference of the example batch; None where the network cannot be traced.
        accuracy: A fraction, where an evaluation was given.
    """

    name: str
    latency: Measurement
    parameters: int
    macs: float | None
    accuracy: float | None = None


def compare(
    networks: Mapping[str, nn.Module],
    example_inputs: Any,
    target: Target,
    *,
    evaluate: Callable[[nn.Module], float] | None = None,
    max_seconds: float = 60.0,
    seed: int = 0,
) -> list[Compared]:
    """Measure networks in turns, so that what disturbs the machine disturbs all of them alike.

    Networks may come from anywhere: results of :func:`latprune.prune`, a model pruned by another tool or by hand, the dense one.

    Args:
        networks: Name -> network; ratios are to the first.
        example_inputs: What all of them run on.
        target: Engine and conditions. Networks that are all held in fp16, or all in bf16, run in that where the engine takes it (torch);
            where they differ, all run in the target's precision.
        evaluate: Accuracy of a network.
        max_seconds: Seconds of measuring at most.
        seed: Seed of the order within rounds.

    Raises:
        InvalidArgumentError: Fewer than two networks, or ``evaluate`` fails or gives no fraction.
        CaptureError: One of them does not run on the inputs, or returns no tensor.
        EngineError: The engine does not run one of them.

    Example:
        >>> compare({"dense": dense, "ours": ours, "theirs": theirs}, x, latprune.Target())  # doctest: +SKIP
    """
    if len(networks) < 2:
        raise InvalidArgumentError(f"networks (={list(networks)}) must be at least two, to be compared")
    for name, network in networks.items():
        try:
            check_network(network, example_inputs, target)
        except CaptureError as error:
            raise CaptureError(f"network '{name}': {error}") from error
    accuracies = {name: accuracy_of(evaluate, network) for name, network in networks.items()} if evaluate is not None else {}
    engine = get_engine(target.engine)
    first, *others = [settled_target(network, target) for network in networks.values()]
    target = first if all(other == first for other in others) else target
    compiled = {}
    try:
        for name, network in networks.items():
            with preserved_modes(network):
                compiled[name] = engine.compile(network.eval(), example_inputs, target)
        found = measure(compiled, reference=next(iter(networks)), tolerance=0.005, max_seconds=max_seconds, seed=seed)
    finally:
        for each in compiled.values():
            each.close()
    return [
        Compared(
            name=name,
            latency=found[name],
            parameters=sum(parameter.numel() for parameter in network.parameters()),
            macs=_macs(network, example_inputs),
            accuracy=accuracies.get(name),
        )
        for name, network in networks.items()
    ]


def _macs(network: nn.Module, example_inputs: Any) -> float | None:
    try:
        graph = trace(network, example_inputs)
    except LatpruneError:
        return None
    return graph.macs(graph.dense_widths())
