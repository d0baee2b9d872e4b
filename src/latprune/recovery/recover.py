"""The front door: recover the accuracy of a pruned network without training."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.graph import ModelGraph, Selection
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.moved_buffers import MovedBuffers
from latprune.graph.tensors import tensors_in
from latprune.program.module import ProgramModule
from latprune.progress import speaker
from latprune.recovery.batches import calibration_batches, count
from latprune.recovery.contract import Progress, Recovery, Situation, get_strategy
from latprune.recovery.norm_basis import norms_on_own_statistics
from latprune.recovery.report import RecoveryReport
from latprune.states import state_tensors
from latprune.train.batches import forward

__all__ = ["output_error", "outputs_of", "recover"]

_UNDONE = "undone: the error of the outputs on images that were held out would grow; give more images"


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
) -> RecoveryReport:
    """Bring a pruned network back towards what the dense one computes, from unlabelled images, without training.

    Only values of weights and biases change, in place; no parameter is added and no shape changes, so tables and measured latency hold.
    Batch norms then have the recovered network's own statistics, so that training goes on from it, whether they move or are fixed.
    Where the outputs' error would grow, or the call does not come to its end (an error, an interruption), the values are as they were.

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

    Returns:
        What was done, layer by layer.

    Raises:
        InvalidArgumentError: The networks do not fit the graph and the selection, there is no data, the data's own code fails, or the
            dense network does not run on a batch, which is named.
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
    fitted: list[Any] = []
    held: list[Any] = []
    if data is not None:
        fitted, held = calibration_batches(data, images, device, size=only, whole=only is not None, model=dense)
    situation = Situation(
        pruned=pruned,
        dense=dense,
        graph=graph,
        selection=selection,
        fitted=fitted,
        held_out=held,
        seed=seed,
        say=speaker(progress),
    )
    modes = [(m, m.training) for net in (pruned, dense) for m in net.modules()]
    shapes = _shapes(pruned)
    saved = {name: value.detach().clone() for name, value in _values(pruned)}
    moved = MovedBuffers(pruned, dense)
    undo = ExitStack()
    undo.enter_context(preserved_state(dense))
    undo.enter_context(preserved_buffers(dense))
    try:
        pruned.eval()
        dense.eval()
        watched = held or fitted
        before = output_error(pruned, dense, watched)
        layers = chosen.run(situation)
        moved.put_back()
        _check_structure(pruned, shapes, chosen.name)
        if any(layer.action for layer in layers):
            norms_on_own_statistics(pruned, situation.fitted, within=situation.within)
        after = output_error(pruned, dense, watched)
        if before is not None and after is not None and not after <= before:
            # Each layer alone was no worse; where all together are, too few images were fitted to, and the network stays as it was.
            _put_back(pruned, saved)
            layers = [replace(layer, action="", reason=layer.reason or _UNDONE) for layer in layers]
            after = before
    except BaseException:
        _put_back(pruned, saved)
        raise
    finally:
        moved.put_back()
        undo.close()
        for module, training in modes:
            module.training = training
    return RecoveryReport(
        strategy=chosen.name,
        images=sum(count(b) for b in situation.fitted),
        held_out=sum(count(b) for b in situation.held_out),
        seconds=time.perf_counter() - start,
        layers=tuple(layers),
        settings=chosen.settings(),
        output_before=before,
        output_after=after,
    )


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_tensors(model).items()}


def _check_structure(model: nn.Module, shapes: Mapping[str, tuple[int, ...]], strategy: str) -> None:
    """Refuse what would make another network of it, whose latency is another: a tensor more or less, or one of another shape."""
    now = _shapes(model)
    other = [name for name in {**shapes, **now} if shapes.get(name) != now.get(name)]
    if other:
        was, here = (found.get(other[0], "absent") for found in (shapes, now))
        raise LatpruneError(f"strategy '{strategy}' changed the network's structure, not only values: '{other[0]}' was {was} and is {here}")


def _values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


@torch.no_grad()
def _put_back(model: nn.Module, saved: Mapping[str, Tensor]) -> None:
    for name, value in _values(model):
        if name in saved and saved[name].shape == value.shape:
            value.copy_(saved[name])


def outputs_of(value: Any) -> list[Tensor]:
    """The floating-point tensors of a model's output."""
    return [t for t in tensors_in(value) if t.is_floating_point()]


class _Variation:
    """Squared distance of outputs from their mean over all images, of however many batches, and from zero."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, tuple[int, ...]], tuple[Tensor, Tensor, float, int]] = {}
        self._size = 0.0

    def add(self, place: int, values: Tensor) -> None:
        """Take in one batch of the output at ``place``, ``(images, ...)``; images of another shape have a mean of their own."""
        values = values.double() if values.dim() else values.double().reshape(1)
        self._size += float(values.square().sum())
        key = (place, tuple(values.shape[1:]))
        # Sums are of differences from the first image, so that a large mean costs no digits.
        first, total, squares, count = self._sums.get(key, (values[0], torch.zeros_like(values[0]), 0.0, 0))
        apart = values - first
        self._sums[key] = (first, total + apart.sum(0), squares + float(apart.square().sum()), count + values.shape[0])

    @property
    def value(self) -> float:
        """The variation; of images that are all alike, or a single one, the square of the outputs themselves."""
        found = sum(squares - float(total.square().sum()) / count for _, total, squares, count in self._sums.values())
        return found if found > 1e-12 * self._size else self._size


@torch.no_grad()
def output_error(pruned: nn.Module, dense: nn.Module, batches: list[Any]) -> float | None:
    """Squared error of the outputs relative to the dense outputs' variation; None where they have other shapes (or there is no batch)."""
    error, variation = 0.0, _Variation()
    for inputs in batches:
        mine, theirs = outputs_of(forward(pruned, inputs)), outputs_of(forward(dense, inputs))
        if len(mine) != len(theirs) or any(a.shape != b.shape for a, b in zip(mine, theirs, strict=True)):
            return None
        for place, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            error += float((a.double() - b.double()).square().sum())
            if b.numel():
                variation.add(place, b)
    return error / variation.value if variation.value > 0 else None
