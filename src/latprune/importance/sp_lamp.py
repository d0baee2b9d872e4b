"""SP-LAMP: a filter's own weights times the weights that read it, relative to the larger ones of its group (SP-LAMP eq. 2, 3, 23)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.lamp import ratios_to_larger
from latprune.importance.magnitude import producers
from latprune.importance.tensors import check_finite, combine, named_tensors, sum_per_unit, tensor_of
from latprune.program.module import ProgramModule, ProgramScope

__all__ = ["SpLampConfig", "sp_lamp_products"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpLampConfig:
    """SP-LAMP score of each unit.

    Attributes:
        fold_norm: Score the network as the engine runs it: the scale of a batch norm, ``gamma / sqrt(variance + eps)``, belongs to the
            filter before it (as producer and as consumer). Off leaves the printed formula on the stored weights.
    """

    fold_norm: bool = False


class _Weights:
    """Squared weights of the filters, with the following batch norms folded in on request."""

    def __init__(self, model: nn.Module, graph: GroupedModel, config: SpLampConfig) -> None:
        self.tensors = named_tensors(model)
        self.place = {name: index for index, name in enumerate(graph.kernels)}
        self._scales = _norm_scales(model, graph) if config.fold_norm else {}
        self._outputs = {
            member.tensor: member.dim for group in graph.groups.values() for member in group.members if member.role is Role.PRODUCER
        }
        self._squares: dict[str, Tensor] = {}

    def squares(self, member: Member, units: int) -> Scores:
        """``(units,)``: squared norm of each unit's part of the member's tensor."""
        tensor = tensor_of(self.tensors, member)
        if member.tensor not in self._squares:
            check_finite(tensor.detach(), member.tensor)
            squared = tensor.detach().double().square()
            scale = self._scales.get(member.kernel)
            output = self._outputs.get(member.tensor, 0)
            if scale is not None and squared.ndim > 1 and squared.shape[output] == scale.numel():
                squared = squared * scale.to(squared.device).reshape([-1 if dim == output else 1 for dim in range(squared.ndim)])
            self._squares[member.tensor] = squared
        return sum_per_unit(self._squares[member.tensor], member, units)


def _norm_scales(model: nn.Module, graph: GroupedModel) -> dict[str, Tensor]:
    """Kernel -> ``(channels,)`` squared scale of the batch norm that runs directly after it, inside the same blocks."""
    scales: dict[str, Tensor] = {}
    kernels = list(graph.kernels.values())
    for before, after in zip(kernels, kernels[1:], strict=False):
        if before.kind == "norm" or after.module is None or before.blocks != after.blocks:
            continue
        module: Any = model.get_submodule(after.module)
        eps = model.norm_eps(after.module) if isinstance(model, ProgramModule) else getattr(module, "eps", None)
        plain = isinstance(module, (nn.modules.batchnorm._NormBase, ProgramScope))
        if not plain or eps is None or getattr(module, "running_var", None) is None:
            continue
        check_finite(module.running_var, f"{after.module}.running_var", "buffer")
        scale = 1.0 / (module.running_var.double() + eps)
        if getattr(module, "weight", None) is not None:
            check_finite(module.weight.detach(), f"{after.module}.weight")
            scale = scale * module.weight.detach().double().square()
        scales[before.name] = scale
    return scales


def sp_lamp_products(
    model: nn.Module, graph: GroupedModel, group: ChannelGroup, config: SpLampConfig
) -> tuple[Scores, list[tuple[Blocks, Scores]]]:
    """The products ``a_k`` of one group before they are ranked (eq. 2), and what each producer puts in.

    Where the paper leaves the case open: several producers, the sum of their squared norms; several consumers, the sum of theirs; none, a
    factor of 1 (the last layer); a depthwise convolution multiplies the consumers that run after it within its own block (appendix A: it
    carries the channel on to them).

    Returns:
        ``(units,)`` products, and per producer its blocks with its ``(units,)`` squared norm.
    """
    return _products(group, _Weights(model, graph, config))


def _products(group: ChannelGroup, weights: _Weights) -> tuple[Scores, list[tuple[Blocks, Scores]]]:
    units = group.units
    filters = producers(group)
    makers = [(member.blocks, weights.squares(member, units)) for member in filters]
    made: Scores = np.sum([squares for _, squares in makers], axis=0) if makers else np.ones(units)
    depthwise = [
        (member, np.where(np.bincount(member.units, minlength=units) > 0, weights.squares(member, units), 1.0))
        for member in group.members
        if member.role is Role.DEPTHWISE and not any(member is made_by for made_by in filters)
    ]
    consumers = [member for member in group.members if member.role is Role.CONSUMER]
    if not consumers:
        return made * _product([squares for _, squares in depthwise], units), makers
    read = np.zeros(units)
    for consumer in consumers:
        carriers = [squares for member, squares in depthwise if _carries_to(member, consumer, weights.place)]
        read += weights.squares(consumer, units) * _product(carriers, units)
    return made * read, makers


def _carries_to(depthwise: Member, consumer: Member, place: Mapping[str, int]) -> bool:
    inside = consumer.blocks[: len(depthwise.blocks)] == depthwise.blocks
    return inside and place.get(depthwise.kernel, 0) < place.get(consumer.kernel, 0)


def _product(factors: list[Scores], units: int) -> Scores:
    return np.asarray(np.prod(factors, axis=0)) if factors else np.ones(units)


@register(SpLampConfig)
@torch.no_grad()
def score_sp_lamp(
    model: nn.Module, graph: GroupedModel, config: SpLampConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """``a_u / sum_{v >= u} a_v`` over the units of a group in ascending order (eq. 3 with ``v >= u``; eq. 2 and 23 are right as printed).

    The best unit of each group scores exactly 1. Ties are in the order of their index; in a group of zeros the first unit scores 1.
    """
    weights = _Weights(model, graph, config)
    units: dict[str, Scores] = {}
    parts: dict[str, list[tuple[Blocks, Scores]]] = {}
    for name, group in graph.groups.items():
        products, parts[name] = _products(group, weights)
        units[name] = ratios_to_larger(products)
    return combine(units, parts)
