"""Batch norms of a recovered network on its own statistics, without a change of what it computes: the form that training can start from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from latprune.train.batches import forward

__all__ = ["Norm", "norms_on_own_statistics", "own_norms"]

_WIDE = (torch.float32, torch.float64)
_ARGUMENTS = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps", "cudnn_enabled"),
}


@torch.no_grad()
def norms_on_own_statistics(model: nn.Module, batches: Iterable[Any], *, within: str = "") -> int:
    r"""Give every batch norm the statistics that it meets, and its weight and bias the values with which it computes what it did.

    A strategy fits layers to the dense network's results with the norms' statistics :math:`\mu, \sigma^2` as they are. What the norms then
    meet differs: a fit explains less than all of the variance. In training mode a norm goes by what it meets, :math:`m, v`, so that the
    first step would start from another network than the recovered one. With

    .. math:: \gamma' = \gamma \sqrt{\frac{v + \epsilon}{\sigma^2 + \epsilon}}, \qquad
              \beta' = \beta + \gamma \frac{m - \mu}{\sqrt{\sigma^2 + \epsilon}}

    and :math:`m, v` as running statistics the network computes the same in evaluation mode, up to rounding, and in training mode too, up
    to the differences between batches.

    Left alone: norms without weight and bias or without running statistics, those whose weight other norms share or which the model
    computes, and those held in less than 32 bits, whose rounding would show.

    Args:
        model: The network, in evaluation mode; parameters and buffers are changed in place.
        batches: Inputs of batches; what a norm meets is their average, by elements per channel.
        within: Path of the part of the model whose norms are changed; all of it by default.

    Returns:
        The number of norms that were changed.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).eval()
        >>> norms_on_own_statistics(model, [torch.randn(4, 1, 8, 8)])
        1
    """
    norms = own_norms(model, batches, within=within)
    for norm in norms:
        norm.change()
    return len(norms)


@torch.no_grad()
def own_norms(model: nn.Module, batches: Iterable[Any], *, within: str = "") -> list[Norm]:
    """The batch norms that can change basis alone, with what they meet; arguments as for :func:`norms_on_own_statistics`."""
    part = model.get_submodule(within)
    own = {id(tensor) for tensor in (*part.parameters(), *part.buffers())}
    with _Watched() as watched:
        for inputs in batches:
            forward(model, inputs)
    shared = [id(norm.weight) for norm in watched.norms.values()]
    return [
        norm
        for norm in watched.norms.values()
        if shared.count(id(norm.weight)) == 1 and norm.elements and own >= {id(tensor) for tensor in norm.tensors}
    ]


@dataclass(slots=True, eq=False)
class Norm:
    """One norm, by its running mean: its tensors, and sums of what it met, weighted by elements per channel."""

    mean: Tensor
    variance: Tensor
    weight: Tensor
    bias: Tensor
    eps: float
    elements: int = 0
    means: Tensor = field(default_factory=lambda: torch.zeros(()))
    variances: Tensor = field(default_factory=lambda: torch.zeros(()))

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Running mean and variance, weight, bias."""
        return self.mean, self.variance, self.weight, self.bias

    def meet(self, values: Tensor) -> None:
        """Take in ``(images, channels, ...)`` values; a single element per channel has no variance."""
        columns = values.transpose(0, 1).flatten(1).double()
        count = columns.shape[1]
        if count < 2:
            return
        self.means = self.means.to(columns) + count * columns.mean(1)
        self.variances = self.variances.to(columns) + count * columns.var(1)
        self.elements += count

    @torch.no_grad()
    def change(self) -> None:
        """Take what was met as statistics, and weight and bias with which the norm computes what it did."""
        met, spread = self.means / self.elements, self.variances / self.elements
        mean, variance, weight, bias = (tensor.double() for tensor in self.tensors)
        old = (variance + self.eps).sqrt()
        self.bias.copy_(bias + weight * (met - mean) / old)
        self.weight.copy_(weight * (spread + self.eps).sqrt() / old)
        self.mean.copy_(met)
        self.variance.copy_(spread)


class _Watched(TorchFunctionMode):
    """Sees every batch norm that runs by its running statistics, be it a module's or a captured program's."""

    def __init__(self) -> None:
        super().__init__()
        self.norms: dict[int, Norm] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        names = _ARGUMENTS.get(func)
        if names is not None:
            found = {"training": False, "weight": None, "bias": None, "eps": 1e-5, **dict(zip(names, args, strict=False)), **given}
            mean, variance, weight, bias = (_wide(found.get(name)) for name in ("running_mean", "running_var", "weight", "bias"))
            if not found["training"] and mean is not None and variance is not None and weight is not None and bias is not None:
                norm = self.norms.setdefault(id(mean), Norm(mean, variance, weight, bias, float(found["eps"])))
                norm.meet(found["input"])
        return func(*args, **given)


def _wide(value: Any) -> Tensor | None:
    """A tensor of at least 32 bits; None for anything else."""
    return value if isinstance(value, Tensor) and value.dtype in _WIDE else None
