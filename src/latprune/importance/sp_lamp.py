"""SP-LAMP: a filter's own weights times the weights that read it, relative to the larger ones of its group (SP-LAMP eq. 2, 3, 23)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.argument_rules import check_flag
from latprune.graph.captured import CapturedNetwork
from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, register
from latprune.importance.filters import producers
from latprune.importance.lamp import ratios_to_larger
from latprune.importance.tensors import check_finite, combine, named_tensors, norm_after, present_units, sum_per_unit, tensor_of
from latprune.program.module import ProgramScope

__all__ = ["SpLampConfig", "sp_lamp_products"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SpLampConfig:
    """SP-LAMP score of each unit.

    Attributes:
        fold_norm: Score the network as the engine runs it: the scale of a batch norm, ``gamma / sqrt(variance + eps)``, belongs to the
            filter before it (as producer and as consumer). Off leaves the printed formula on the stored weights.
        count_layers: The objective (eq. 8) adds up the scores of every layer's filters. A unit that ``n`` filters make together (a channel
            of a residual stream, in ``n`` layers) has one ratio, which counts ``n`` times; counted once, the stream would be the cheapest
            thing to give up in any residual network. Off leaves the ratios between 0 and 1.
    """

    fold_norm: bool = False
    count_layers: bool = True

    def __post_init__(self) -> None:
        check_flag("fold_norm", self.fold_norm)
        check_flag("count_layers", self.count_layers)


class _Weights:
    """Squared weights of the filters, with the following batch norms folded in on request."""

    def __init__(self, model: nn.Module, graph: GroupedModel, config: SpLampConfig) -> None:
        self.tensors = named_tensors(model)
        self._place = {name: index for index, name in enumerate(graph.kernels)}
        self._carried = graph.carried
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
            squared = tensor.detach().abs().double().square()
            scale = self._scales.get(member.kernel)
            output = self._outputs.get(member.tensor, 0)
            if scale is not None and squared.ndim > 1 and squared.shape[output] == scale.numel():
                squared = squared * scale.to(squared.device).reshape([-1 if dim == output else 1 for dim in range(squared.ndim)])
            self._squares[member.tensor] = squared
        return sum_per_unit(self._squares[member.tensor], member, units)

    def carries(self, depthwise: Member, consumer: Member) -> bool:
        """Whether the consumer, inside the depthwise layer's own blocks, reads what that layer makes."""
        if consumer.blocks[: len(depthwise.blocks)] != depthwise.blocks:
            return False
        if self._carried is not None:
            return consumer.kernel in self._carried.get(depthwise.kernel, frozenset())
        return self._place.get(depthwise.kernel, 0) < self._place.get(consumer.kernel, 0)


def _norm_scales(model: nn.Module, graph: GroupedModel) -> dict[str, Tensor]:
    """Kernel -> ``(channels,)`` squared scale of the batch norm that alone reads what it makes, inside the same blocks."""
    scales: dict[str, Tensor] = {}
    for before, after in norm_after(graph).items():
        path = graph.kernels[after].module
        if path is None:
            continue
        module: Any = model.get_submodule(path)
        eps = model.norm_eps(path) if isinstance(model, CapturedNetwork) else getattr(module, "eps", None)
        plain = isinstance(module, (nn.modules.batchnorm._NormBase, ProgramScope))
        if not plain or eps is None or getattr(module, "running_var", None) is None:
            continue
        check_finite(module.running_var, f"{path}.running_var", "buffer")
        scale = 1.0 / (module.running_var.double() + eps)
        if getattr(module, "weight", None) is not None:
            check_finite(module.weight.detach(), f"{path}.weight")
            scale = scale * module.weight.detach().double().square()
        scales[before] = scale
    return scales


def sp_lamp_products(
    model: nn.Module, graph: GroupedModel, group: ChannelGroup, config: SpLampConfig
) -> tuple[Scores, list[tuple[Blocks, Scores]]]:
    """The products ``a_k`` of one group before they are ranked (eq. 2), and what each producer puts in.

    Where the paper leaves the case open: several producers, the sum of their squared norms; several consumers, the sum of theirs; a unit
    that none reads (the last layer; a query or key dimension, which meets its partner in a product), a factor of 1; a depthwise convolution
    multiplies the consumers that it carries the channel to within its own block (appendix A). A unit without a place in the model is 0.

    Returns:
        ``(units,)`` products, and per producer its blocks with its ``(units,)`` squared norm.
    """
    return _products(group, _Weights(model, graph, config))


def _products(group: ChannelGroup, weights: _Weights) -> tuple[Scores, list[tuple[Blocks, Scores]]]:
    units = group.units
    filters = producers(group)
    makers = [(member.blocks, weights.squares(member, units)) for member in filters]
    made: Scores = np.sum([squares for _, squares in makers], axis=0) if makers else present_units(group).astype(np.float64)
    depthwise = [
        (member, np.where(np.bincount(member.units, minlength=units) > 0, weights.squares(member, units), 1.0))
        for member in group.members
        if member.role is Role.DEPTHWISE and not any(member is made_by for made_by in filters)
    ]
    consumers = [member for member in group.members if member.role is Role.CONSUMER]
    factor = np.zeros(units)
    for consumer in consumers:
        carriers = [squares for member, squares in depthwise if weights.carries(member, consumer)]
        factor += weights.squares(consumer, units) * _product(carriers, units)
    unread = ~read_units(group)
    factor[unread] = _product([squares for _, squares in depthwise], units)[unread]
    return made * factor, makers


def read_units(group: ChannelGroup) -> npt.NDArray[np.bool_]:
    """``(units,)``: whether some contraction reads the unit."""
    read = np.zeros(group.units, dtype=np.bool_)
    for member in group.members:
        if member.role is Role.CONSUMER:
            read[member.units] = True
    return read


def _product(factors: list[Scores], units: int) -> Scores:
    return np.asarray(np.prod(factors, axis=0)) if factors else np.ones(units)


def _filters(group: ChannelGroup) -> Scores:
    """``(units,)``: number of filters that make each unit: one per layer, for a head one per channel and projection; at least 1."""
    count = np.zeros(group.units)
    for member in group.members:
        if member.role in (Role.PRODUCER, Role.DEPTHWISE):
            count += np.bincount(member.units, minlength=group.units)
    return np.maximum(count, 1.0)


@register(SpLampConfig, name="sp_lamp")
@torch.no_grad()
def score_sp_lamp(
    model: nn.Module, graph: GroupedModel, config: SpLampConfig, data: Iterable[Any] | None, loss: LossFunction
) -> Importance:
    """``n_u a_u / sum_{v >= u} a_v`` over the units of a group in ascending order (eq. 3 with ``v >= u``; eq. 2, 23 are right as printed).

    ``n_u`` is the number of filters that make the unit, one for each layer that does. Units that are read rank among themselves, and so do
    those that nothing reads (their products lack the second factor and do not compare): a fused projection of queries, keys and values
    scores as three separate ones do. The best ratio of each group is exactly 1. Ties are in the order of their index; in a group of zeros
    the first unit has ratio 1.
    """
    weights = _Weights(model, graph, config)
    units: dict[str, Scores] = {}
    parts: dict[str, list[tuple[Blocks, Scores]]] = {}
    for name, group in graph.groups.items():
        products, parts[name] = _products(group, weights)
        present, read = present_units(group), read_units(group)
        ratios = ratios_to_larger(products, present & read) + ratios_to_larger(products, present & ~read)
        units[name] = ratios * _filters(group) if config.count_layers else ratios
    return combine(units, parts)
