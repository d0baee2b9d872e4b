"""Which channels of the dense network's features a pruned network kept, for learning from them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import ModelGraph, Selection
from latprune.recovery.pairing import UNKNOWN, Pairing
from latprune.recovery.stepper import Sequence_, record_operations
from latprune.train.teaching import KeptChannels

__all__ = ["kept_channels", "stream_modules", "streams_of"]


def kept_channels(
    dense: nn.Module, graph: ModelGraph, selection: Selection, inputs: Any, modules: Iterable[str]
) -> dict[str, KeptChannels]:
    """The channels that a selection keeps of what modules of the dense network return, for :func:`latprune.train.finetune`'s ``kept``.

    Args:
        dense: The dense network.
        graph: Its trace.
        selection: What the pruned network was cut to.
        inputs: One batch of inputs.
        modules: Paths of modules, as in ``named_modules()``.

    Returns:
        Module -> kept channels of the (first) tensor that it returns; modules that keep all have no entry.

    Raises:
        InvalidArgumentError: A module does not run once with a tensor as its result, lies in a removed block, its channels lie on
            several dimensions, or the operation that makes its result is none of the traced ones.

    Example:
        >>> kept = kept_channels(dense, graph, selection, x, ["layer2", "layer3"])
        >>> kept["layer2"].index.tolist()
        [0, 1, 2, 3, 4, 5, 6, 7]

        Give them to the training: ``finetune(pruned, loader, recipe, teacher=dense, kept=kept)``.
    """
    run = record_operations(dense, inputs, str(graph.plan.within or ""))
    pairing = Pairing(graph, Selection(kept=selection.kept), run, run, dense, dense)
    found = {}
    for name in modules:
        at = run.returned.get(name)
        if at is None:
            raise InvalidArgumentError(f"features name the module '{name}', which does not run exactly once with a tensor as its result")
        if _inside(selection.removed_blocks, graph, pairing, at):
            raise InvalidArgumentError(f"features name the module '{name}', which lies in a removed block")
        if not pairing.known(at):
            raise InvalidArgumentError(f"features name the module '{name}': {UNKNOWN}")
        mask = pairing.mask(at)
        carrying = _carrying(mask)
        if mask is None or not carrying:  # all are kept, or there is but one
            continue
        if len(carrying) > 1:
            raise InvalidArgumentError(f"features name the module '{name}', whose channels lie on several dimensions of its result")
        found[name] = KeptChannels(dim=carrying[0], index=mask.reshape(-1).nonzero().reshape(-1))
    return found


def stream_modules(dense: nn.Module, graph: ModelGraph, selection: Selection | None, inputs: Any) -> tuple[str, ...]:
    """The modules that return a stream: the sum at the end of a residual branch, and what follows it in the same module.

    They are what ``Distillation(features="streams")`` stands for.

    Args:
        dense: The dense network.
        graph: Its trace.
        selection: What the pruned network was cut to; None for the dense network.
        inputs: One batch of inputs.

    Returns:
        Paths of modules that run once and return a tensor whose channels lie on one dimension, in the order in which they end; empty for a
        network without residual branches.

    Example:
        >>> stream_modules(dense, graph, selection, x)
        ('layer1.0', 'layer2.0', 'layer3.0')
    """
    run = record_operations(dense, inputs, str(graph.plan.within or ""))
    pairing = Pairing(graph, Selection(kept=selection.kept if selection else {}), run, run, dense, dense)
    removed = selection.removed_blocks if selection else frozenset[str]()
    return tuple(path for path, at in streams_of(run, pairing).items() if not _inside(removed, graph, pairing, at))


def streams_of(run: Sequence_, pairing: Pairing) -> dict[str, int]:
    """The modules that return a stream whose channels lie on one dimension at most -> the dense operation that makes it, in order.

    Args:
        run: Recorded run of the dense network.
        pairing: Its operations.
    """
    calls = pairing.graph.calls
    sums = {calls[c].module for c in pairing.call_of.values() if calls[c].joins}
    found = {path: at for path, at in run.returned.items() if path in sums and pairing.known(at) and len(_carrying(pairing.mask(at))) <= 1}
    return dict(sorted(found.items(), key=lambda entry: entry[1]))


def _inside(removed: frozenset[str], graph: ModelGraph, pairing: Pairing, at: int) -> bool:
    """Whether an operation of the dense network lies in a removed block."""
    call = pairing.call_of.get(at)
    return call is not None and not removed.isdisjoint(graph.calls[call].blocks)


def _carrying(mask: Tensor | None) -> list[int]:
    """Dimensions that channels lie on, where not all are kept."""
    return [] if mask is None else [dim for dim, extent in enumerate(mask.shape) if extent > 1]
