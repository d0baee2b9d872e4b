"""Gradients of layers in front of batch norms, scaled by what masks leave of the spread that the norms divide by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latprune.graph import ModelGraph
from latprune.graph.types import Role
from latprune.surgery.mask_values import HeldValues

__all__ = ["NormScaling"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Weight:
    """The weight of a contraction whose results one batch norm reads straight.

    Attributes:
        inputs: Its dimension that inputs are contracted along.
        summed: The dimensions that one output channel is summed over: ``inputs``, and a convolution's window.
        norm: Path of the norm's module.
    """

    inputs: int
    summed: tuple[int, ...]
    norm: str

    def left(self, held: HeldValues) -> Tensor:
        """``||W * m|| / ||W||`` per output channel, broadcastable to the weight; 1 where ``W`` is 0. ``m`` masks inputs alone."""
        dense = held.dense()
        energy = dense.to(torch.promote_types(dense.dtype, torch.float32)).square_()
        whole = energy.sum(self.summed, keepdim=True)
        for place in held.zeros:
            if place.dim == self.inputs:
                place.clear(energy)
        return torch.where(whole > 0, energy.sum(self.summed, keepdim=True) / whole, torch.ones_like(whole)).sqrt_()


class NormScaling:
    """Scales gradients of weights whose inputs are masked and whose results a batch norm normalises.

    A norm gives ``y = gamma (x - mu) / sigma + beta``. What inputs of the layer in front are masked, ``sigma`` loses their share, and all
    gradients of the layer's weights, of masked ones too, grow by its inverse. For inputs of like spread that share is
    ``r = ||W * m|| / ||W||`` per output channel, with ``m`` 0 at masked inputs, and the gradient of the channel's weights is multiplied by
    it. ``r`` is 1 where ``W`` is 0, and 0 where no input is left: results there are constant, and a gradient that only holds for changes
    as small as the norm's epsilon moves nothing.

    Left as they are: layers whose results go elsewhere too or into no batch norm (:attr:`latprune.graph.ModelGraph.norms`, which knows none
    of grouped transposed convolutions), layers whose results alone are masked, and norms that are in evaluation mode, as these divide by a
    constant.

    Args:
        model: The model that ``graph`` was traced from.
        graph: Its traced graph.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph) -> None:
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._model = model
        found = {name: weight for name, weight in _normalised(graph).items() if name in parameters}
        self.weights = frozenset(found)
        """Names of the weights whose gradients it scales."""
        self._weights = {id(parameters[name]): weight for name, weight in found.items()}

    @torch.no_grad()
    def apply(self, held: HeldValues) -> None:
        """Scale the gradient of a masked parameter, in place; its masked values are hidden at the moment."""
        weight, gradient = self._weights.get(id(held.parameter)), held.parameter.grad
        if weight is None or gradient is None or not any(place.dim == weight.inputs for place in held.zeros):
            return
        if self._model.get_submodule(weight.norm).training:
            gradient.mul_(weight.left(held).to(gradient.dtype))


def _normalised(graph: ModelGraph) -> dict[str, _Weight]:
    """Weights in front of batch norms by name."""
    found: dict[str, _Weight] = {}
    for member in (member for group in graph.groups.values() for member in group.members if member.role is Role.CONSUMER):
        after = (graph.norms or {}).get(member.kernel)
        if after is None or graph.kernels[after].attributes.get("op") != "batch_norm":
            continue
        window = len(graph.kernels[member.kernel].attributes.get("kernel_size", ()))
        found[member.tensor] = _Weight(
            inputs=member.dim, summed=(member.dim, *range(2, 2 + window)), norm=graph.kernels[after].module or ""
        )
    return found
