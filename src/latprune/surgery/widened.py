"""The dense network with the weights that a cut network has now: what a further cut has to equal once it is masked."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from latprune.errors import SurgeryError
from latprune.graph import ModelGraph, Selection
from latprune.surgery.kept import TensorPlaces, kept_of
from latprune.surgery.plan import scale_factors

__all__ = ["widened"]


def widened(dense: nn.Module, model: nn.Module, graph: ModelGraph, selection: Selection) -> nn.Module:
    """A copy of ``dense`` with the weights and buffers of ``model`` at the places that ``selection`` keeps.

    ``masked(widened(...), graph, newer)`` is what cutting ``model`` to ``newer``, a part of ``selection``, must equal. What is gone keeps
    the dense values, which the mask hides. Weights that a cut multiplied to keep a scale are divided again, to rounding.

    Args:
        dense: The dense model that was traced.
        model: What cuts to ``selection``, and any training since, made of it.
        graph: The dense graph.
        selection: What ``model`` was cut to.

    Returns:
        A module of the class of ``dense`` on the device and in the type of ``dense``; its training flags are those of ``dense``.

    Raises:
        InvalidArgumentError: The selection does not fit the graph.
        SurgeryError: ``model`` is not ``dense`` cut to ``selection``.

    Example:
        >>> from latprune.surgery import check_equal, masked, prune
        >>> edits = prune(model, graph, selection)
        >>> now = widened(dense, model, graph, selection)
        >>> more = prune(model, graph, narrower, since=selection)
        >>> check_equal(model, masked(now, graph, narrower), x).equal
        True
    """
    kept = kept_of(graph, selection)
    wide = copy.deepcopy(dense)
    present = _tensors(model)
    with torch.no_grad():
        for name, target in _tensors(wide).items():
            if name in kept.gone:
                continue
            now = kept.names.get(name, (name,))[0]
            if now not in present:
                if name not in graph.plan.tensors:
                    continue  # a buffer that runs leave behind
                raise SurgeryError(f"the model has no tensor '{name}', which the selection that it was cut to keeps")
            _put(name, target, present[now].to(device=target.device, dtype=target.dtype), kept.places(name))
        for scaled, factor in scale_factors(graph, kept_of(graph, None), kept):
            tensor = _tensors(wide)[scaled.tensor]
            if scaled.positions is None:
                tensor.div_(factor)
            else:
                at = torch.from_numpy(scaled.positions).to(tensor.device)
                tensor.index_copy_(scaled.dim, at, tensor.index_select(scaled.dim, at) / factor)
    return wide


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def _put(name: str, target: Tensor, values: Tensor, places: TensorPlaces) -> None:
    """Write the values of a cut tensor to their places in the dense one."""
    if places.grouped is None:
        _require_shape(name, values, tuple(int(places.dims[d].sum()) if d in places.dims else n for d, n in enumerate(target.shape)))
        if not places.dims:
            target.copy_(values)
            return
        last = max(places.dims)
        at = [torch.from_numpy(places.dims[d].nonzero()[0]) if d in places.dims else torch.arange(target.shape[d]) for d in range(last + 1)]
        target[tuple(k.to(target.device).view(-1, *[1] * (last - d)) for d, k in enumerate(at))] = values
        return
    rows = torch.from_numpy(places.dims[0])
    columns = int(places.grouped[places.groups_left()[0]].sum())
    _require_shape(name, values, (int(rows.sum()), columns, *target.shape[2:]))
    for group in places.groups_left():
        start, stop = places.rows(group)
        first, last = places.rows_left(group)
        filters = start + rows[start:stop].nonzero()[:, 0]
        inputs = torch.from_numpy(places.grouped[group].nonzero()[0])
        target[filters[:, None].to(target.device), inputs[None].to(target.device)] = values[first:last]


def _require_shape(name: str, values: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(values.shape) != expected:
        raise SurgeryError(
            f"tensor '{name}' has shape {tuple(values.shape)}; of the dense one the selection that the model was cut to leaves {expected}"
        )
