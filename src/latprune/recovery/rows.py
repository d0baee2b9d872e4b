"""A layer's inputs and targets as rows of a regression, a sample of them where there are many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.recovery.sites import Site

__all__ = ["Sampler", "from_matrix", "to_matrix"]


def to_matrix(site: Site) -> Tensor:
    """The layer's weight as ``(groups, inputs per group, outputs per group)``, a copy in float64."""
    assert site.weight is not None
    weight = site.weight.detach().double()
    if not site.convolution:
        return weight.reshape(1, *weight.shape).clone()
    groups, transposed = int(site.options[5]), bool(site.options[3])
    if transposed:
        # (inputs, outputs / groups, kernel): as an ordinary convolution with the kernel turned around.
        dims = tuple(range(2, weight.dim()))
        grouped = weight.flip(dims).reshape(groups, -1, *weight.shape[1:])  # (groups, inputs / groups, outputs / groups, kernel)
        grouped = grouped.transpose(1, 2)
        return grouped.reshape(groups, grouped.shape[1], -1).transpose(1, 2).contiguous()
    return weight.reshape(groups, weight.shape[0] // groups, -1).transpose(1, 2).contiguous()


def from_matrix(site: Site, matrix: Tensor) -> Tensor:
    """The inverse of :func:`to_matrix`, in the weight's shape."""
    assert site.weight is not None
    shape = site.weight.shape
    if not site.convolution:
        return matrix.reshape(shape)
    groups, transposed = int(site.options[5]), bool(site.options[3])
    if transposed:
        dims = tuple(range(2, len(shape)))
        grouped = matrix.transpose(1, 2).reshape(groups, shape[1], shape[0] // groups, *shape[2:])
        return grouped.transpose(1, 2).reshape(shape).flip(dims)
    return matrix.transpose(1, 2).reshape(shape)


@dataclass(slots=True, eq=False)
class Sampler:
    """Draws rows of a layer, the same ones for its input and its target.

    Args:
        site: The layer.
        share: Share of the places of one batch that is taken.
        generator: Source of the draw.
    """

    site: Site
    share: float
    generator: torch.Generator

    def rows(self, x: Tensor, values: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Sampled rows.

        Args:
            x: The layer's input.
            values: Tensors in the shape of the layer's result.

        Returns:
            ``(rows, groups, inputs per group)`` and for each of ``values`` ``(rows, outputs)``.
        """
        if not self.site.convolution:
            x = x.reshape(-1, x.shape[-1])
            values = [v.reshape(-1, v.shape[-1]) for v in values]
            if self.share < 1:
                at = self._draw(x.shape[0]).to(x.device)
                x, values = x[at], [v[at] for v in values]
            return x.unsqueeze(1), values
        groups = int(self.site.options[5])
        patches = _patches(x, self.site)  # (n, channels, *places, *kernel), a view
        dims = (patches.dim() - 2) // 2
        places = patches.shape[2 : 2 + dims]
        total = 1
        for extent in places:
            total *= int(extent)
        at = (self._draw(total) if self.share < 1 else torch.arange(total)).to(x.device)
        where = torch.unravel_index(at, tuple(places))
        index: tuple[Any, ...] = (slice(None), slice(None), *where)
        taken = patches[index]  # (n, channels, sampled, *kernel)
        n, channels, sampled = taken.shape[:3]
        taken = taken.reshape(n, groups, channels // groups, sampled, -1)  # (n, groups, channels / groups, sampled, taps)
        taken = taken.permute(0, 3, 1, 2, 4).reshape(n * sampled, groups, -1)
        drawn = [v[index].permute(0, 2, 1).reshape(n * sampled, -1) for v in values]
        return taken, drawn

    def _draw(self, count: int) -> Tensor:
        wanted = max(1, min(count, round(count * self.share)))
        return torch.randperm(count, generator=self.generator)[:wanted].sort().values


def _patches(x: Tensor, site: Site) -> Tensor:
    """All patches that a convolution reads, as a view ``(n, channels, *places, *kernel)`` of the padded input."""
    stride, padding, dilation, transposed, extra = (site.options[k] for k in (0, 1, 2, 3, 4))
    assert site.weight is not None
    kernel = site.weight.shape[2:]
    dims = len(kernel)
    if x.dim() == dims + 1:
        x = x.unsqueeze(0)
    per = [tuple(int(v) for v in (p * dims if len(p) == 1 else p)) for p in (stride, padding, dilation, extra)]
    steps, pads, spread, more = per
    if transposed:
        spaced = x.new_zeros(*x.shape[:2], *((n - 1) * s + 1 for n, s in zip(x.shape[2:], steps, strict=True)))
        spaced[(slice(None), slice(None), *(slice(None, None, s) for s in steps))] = x
        x = spaced
        around = [(d * (k - 1) - p, d * (k - 1) - p + m) for d, k, p, m in zip(spread, kernel, pads, more, strict=True)]
        steps = (1,) * dims
    else:
        around = [(p, p) for p in pads]
    flat = [amount for pair in reversed(around) for amount in pair]
    if any(flat):
        x = F.pad(x, flat)
    for d in range(dims):
        x = x.unfold(2 + d, spread[d] * (int(kernel[d]) - 1) + 1, steps[d])
    for d in range(dims):
        if spread[d] > 1:
            x = x[(Ellipsis, *(slice(None, None, spread[d]) if e == d else slice(None) for e in range(dims)))]
    return x
