"""The front door: recover the accuracy of a pruned network without training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.graph import ModelGraph, Selection
from latprune.graph.conditions import preserved_state
from latprune.graph.moved_buffers import MovedBuffers
from latprune.program.module import ProgramModule
from latprune.progress import speaker
from latprune.recovery.backing_off import INCOMPARABLE
from latprune.recovery.batches import Piece, calibration_pieces, count
from latprune.recovery.contract import Progress, Recovery, Situation, get_strategy
from latprune.recovery.norm_basis import norms_on_own_statistics
from latprune.recovery.output_error import no_worse, output_error, outputs_of
from latprune.recovery.report import LayerRecovery, RecoveryReport
from latprune.recovery.retracing import graph_on
from latprune.recovery.values import Values
from latprune.recovery.watching import Watch
from latprune.states import state_tensors
from latprune.train.precision import mixed_precision

__all__ = ["output_error", "outputs_of", "recover"]


def recover(
    pruned: nn.Module,
    dense: nn.Module,
    data: Iterable[Any] | None,
    *,
    graph: ModelGraph,
    selection: Selection,
    strategy: str | Recovery = "refit",
    images: int = 2048,
    seed: int = 0,
    progress: Progress | None = None,
    accept: Callable[[], Any] | None = None,
) -> RecoveryReport:
    """Bring a pruned network back towards what the dense one computes, from unlabelled images, without training.

    Only values of weights and biases change, in place; no parameter is added and no shape changes, so tables and measured latency hold.
    Batch norms then have the recovered network's own statistics, so that training goes on from it, whether they move or are fixed.
    Where the outputs' error would grow, or the call does not come to its end (an error, an interruption), the values are as they were.
    Where outputs cannot be compared (boxes in varying number, integers) the result of the sub-module that was pruned is, or else those of
    the last layers; where nothing can be, a strategy that does not check each layer changes nothing.

    Args:
        pruned: The pruned network.
        dense: The dense network that it was cut from.
        data: Any iterable of batches of inputs: tensors or arrays, tuples or lists whose first entry holds the inputs, or mappings (labels
            are ignored). None for a strategy that needs none.
        graph: Trace of the dense network.
        selection: What the pruned network was cut to.
        strategy: ``"refit"``, ``"map"``, ``"shift"``, ``"norms"``, ``"fold"``, ``"distil"``, or an object such as ``Refit(ridge=1e-2)``.
        images: Images that are taken from the data, at most; a tenth of them is held out.
        seed: Seed of everything random.
        progress: Called with one line of text as the work goes on.
        accept: Called when the recovered values are in place; where it raises, the values are put back, and the error is raised.

    Returns:
        What was done, layer by layer.

    Raises:
        InvalidArgumentError: The networks do not fit the graph and the selection, there is no data, the data's own code fails, a batch
            holds single examples or values that are not finite, or the dense network does not run on a batch or gives values that are not
            finite; the batch is named.
        LatpruneError: A strategy of one's own added a tensor or changed a shape.

    Example:
        >>> report = recover(pruned, dense, images, graph=graph, selection=selection)  # doctest: +SKIP
        >>> print(report)  # doctest: +SKIP
    """
    chosen = get_strategy(strategy)
    start = time.perf_counter()
    if data is None and chosen.needs_data:
        raise InvalidArgumentError(f"strategy '{chosen.name}' needs data: give batches of inputs, or take strategy='fold'")
    parameter = next((p for p in pruned.parameters()), None)
    device = parameter.device if parameter is not None else torch.device("cpu")
    only = pruned.only_batch if isinstance(pruned, ProgramModule) else None
    shapes = _shapes(pruned)
    with mixed_precision(device.type, "fp32"), _put_back_unless_done(pruned, dense) as held:
        fitted: list[Piece] = []
        held_out: list[Piece] = []
        if data is not None:
            fitted, held_out = calibration_pieces(
                data, images, device, size=only, whole=only is not None, model=dense, shapes=graph.input_shapes
            )
        situation = Situation(
            pruned=pruned,
            dense=dense,
            graph=graph_on(graph, selection, dense, fitted[0].inputs) if fitted else graph,
            selection=selection,
            fitted=[piece.inputs for piece in fitted],
            held_out=[piece.inputs for piece in held_out],
            seed=seed,
            say=speaker(progress),
        )
        pruned.eval()
        dense.eval()
        watch = Watch(situation, held_out or fitted, held.values)
        situation.watch = watch
        if watch.place or not fitted or chosen.checks_layers:
            layers = chosen.run(situation)
            held.moved.put_back()
            _check_structure(pruned, shapes, chosen.name)
            if any(layer.action for layer in layers):
                norms_on_own_statistics(pruned, situation.fitted, within=situation.within)
            after, harm = _judged(watch, held.values, checked=chosen.checks_layers or not fitted)
        else:
            layers, after, harm = [LayerRecovery(layer="all layers", reason=f"refused: {INCOMPARABLE}")], None, ""
        if harm:
            held.values.put_back()
            layers = [replace(layer, action="", reason=layer.reason or f"undone: {harm}") for layer in layers]
            after = watch.before
        if accept is not None:
            accept()
        report = RecoveryReport(
            strategy=chosen.name,
            images=sum(count(b) for b in situation.fitted),
            held_out=sum(count(b) for b in situation.held_out),
            seconds=time.perf_counter() - start,
            layers=tuple(layers),
            settings=chosen.settings(),
            output_before=_known(watch.before),
            output_after=_known(after),
            compared=watch.place,
        )
    return report


def _judged(watch: Watch, start: Values, *, checked: bool) -> tuple[float | None, str]:
    """The error now, and why the recovered values cannot stay; empty where they may.

    ``checked`` says that they may where nothing can be compared: each layer was, or there are no images.
    """
    if spoiled := start.spoiled():
        return None, f"'{spoiled}' would hold values that are not finite"
    after = watch.error()
    # Each layer alone was no worse; where all together are, too few images were fitted to, and the network stays as it was.
    if after is None or watch.before is None:
        return after, "" if checked else INCOMPARABLE
    if no_worse(after, watch.before):
        return after, ""
    return after, f"the error of the {watch.place} on images that were held out would grow; give more images"


def _known(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Held:
    values: Values
    moved: MovedBuffers


@contextmanager
def _put_back_unless_done(pruned: nn.Module, dense: nn.Module) -> Iterator[_Held]:
    """Both networks come out in the modes that they had, the dense one with its state, and the pruned one with its values unless
    everything inside, and putting the dense network back, came to its end.

    Done is said at one place, after the last operation on a tensor; whatever interrupts before it, here too, the rest is put back all the
    same.
    """
    modes = [(module, module.training) for network in (pruned, dense) for module in network.modules()]
    values, buffers, moved = Values(pruned), Values(dense, buffers=True), MovedBuffers(pruned, dense)
    done = False
    with ExitStack() as last:
        last.callback(torch.clear_autocast_cache)  # of a context that a caller has open: it has copies of the weights before
        for module, training in modes:
            last.callback(setattr, module, "training", training)
        last.enter_context(preserved_state(dense))
        try:
            yield _Held(values=values, moved=moved)
            moved.put_back()
            buffers.put_back()
            done = True
        finally:
            if not done:
                with ExitStack() as undo:  # runs all of them, whichever fails
                    undo.callback(buffers.put_back)
                    undo.callback(values.put_back)
                    undo.callback(moved.put_back)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_tensors(model).items()}


def _check_structure(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], strategy: str) -> None:
    """Refuse what would make another network of it, whose latency is another: a tensor more or less, or one of another shape."""
    now = _shapes(model)
    other = [name for name in {**shapes, **now} if shapes.get(name) != now.get(name)]
    if other:
        was, here = (found.get(other[0], "absent") for found in (shapes, now))
        raise LatpruneError(f"strategy '{strategy}' changed the network's structure, not only values: '{other[0]}' was {was} and is {here}")
