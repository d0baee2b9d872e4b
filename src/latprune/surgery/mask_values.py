"""The dense values of what is masked, held beside the parameters, and their places."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latprune.graph.types import Member

__all__ = ["HeldValues", "Slice", "slices_of"]


@dataclass(slots=True, kw_only=True, eq=False)
class Slice:
    """Places of a parameter: positions along one dimension, or the whole.

    Attributes:
        dim: The dimension; -1 for the whole tensor.
        index: ``(n,)`` int64 positions; empty for the whole tensor.
        within: Range of dimension 0 that the positions hold for (grouped convolutions); None for all of it.
    """

    dim: int
    index: Tensor
    within: tuple[int, int] | None = None

    def _of(self, tensor: Tensor) -> Tensor:
        if self.index.device != tensor.device:
            self.index = self.index.to(tensor.device)
        return tensor if self.within is None else tensor.narrow(0, self.within[0], self.within[1] - self.within[0])

    def read(self, tensor: Tensor) -> Tensor:
        """A copy of the values."""
        return tensor.detach().clone() if self.dim < 0 else self._of(tensor.detach()).index_select(self.dim, self.index)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Put values in, in place."""
        if self.dim < 0:
            tensor.copy_(values)
        else:
            self._of(tensor).index_copy_(self.dim, self.index, values)

    def clear(self, tensor: Tensor) -> None:
        """Set the values to 0, in place."""
        if self.dim < 0:
            tensor.zero_()
        else:
            self._of(tensor).index_fill_(self.dim, self.index, 0)


def slices_of(members: Iterable[Member], removed: Mapping[int, npt.NDArray[np.bool_]]) -> dict[str, list[Slice]]:
    """By tensor the places of the members' removed units; places of several groups along one dimension are one slice.

    Args:
        members: Places of groups.
        removed: ``id`` of a member -> ``(units,)`` which units of its group are removed.
    """
    found: dict[tuple[str, int, tuple[int, int] | None], list[npt.NDArray[np.int64]]] = {}
    for member in members:
        at = member.positions[removed[id(member)][member.units]]
        if at.size:
            found.setdefault((member.tensor, member.dim, member.within), []).append(at)
    slices: dict[str, list[Slice]] = {}
    for (tensor, dim, within), positions in found.items():
        index = torch.from_numpy(np.unique(np.concatenate(positions)).astype(np.int64))
        slices.setdefault(tensor, []).append(Slice(dim=dim, index=index, within=within))
    return slices


class HeldValues:
    """One masked parameter: the places that are 0 while the mask is on, those that keep their value, and the dense values of both.

    Args:
        parameter: The parameter (or a constant buffer that is read like one), with its dense values.
        zeros: Places that are 0 while the mask is on; they may overlap.
        fixed: Places that keep their value while the mask is on (hard masks); they may overlap the zeros, which win.
    """

    def __init__(self, parameter: Tensor, zeros: list[Slice], fixed: list[Slice]) -> None:
        self.parameter = parameter
        self.zeros = zeros
        self.fixed = fixed
        self.values: list[Tensor] = []
        self.fixed_values: list[Tensor] = []

    def hide(self) -> None:
        """Take the dense values out of the parameter and hold them; the masked places become 0."""
        self.values = [s.read(self.parameter) for s in self.zeros]
        self.fixed_values = [s.read(self.parameter) for s in self.fixed]
        self.clear()

    def clear(self) -> None:
        """Set the masked places to 0."""
        for s in self.zeros:
            s.clear(self.parameter)

    def show(self) -> None:
        """Put the dense values that are held back into the parameter."""
        self._write_dense(self.parameter)

    def dense(self) -> Tensor:
        """A copy of the parameter with the dense values that are held."""
        copy = self.parameter.detach().clone()
        self._write_dense(copy)
        return copy

    def fix(self) -> None:
        """After an update of the parameter: the fixed places take their values again, the masked ones 0."""
        self._write(self.parameter, self.fixed, self.fixed_values)
        self.clear()

    def _write_dense(self, tensor: Tensor) -> None:
        self._write(tensor, self.fixed, self.fixed_values)
        self._write(tensor, self.zeros, self.values)

    def _write(self, tensor: Tensor, slices: list[Slice], values: list[Tensor]) -> None:
        for k, s in enumerate(slices):
            if values[k].device != self.parameter.device or values[k].dtype != self.parameter.dtype:
                values[k] = values[k].to(self.parameter)
            s.write(tensor, values[k])

    def decay(self, factor: float) -> None:
        """Multiply the held values of the masked places."""
        for value in self.values:
            value.mul_(factor)

    def clear_like(self, tensor: Tensor) -> None:
        """Set all places, masked and fixed, of a tensor of the parameter's shape to 0 (a gradient, a momentum)."""
        for s in (*self.zeros, *self.fixed):
            s.clear(tensor)

    def stored(self, name: str) -> Iterator[tuple[str, Tensor]]:
        """The held values under names for a state dict."""
        for kind, values in (("hidden", self.values), ("fixed", self.fixed_values)):
            for k, value in enumerate(values):
                yield f"{kind}.{k}.{name}", value.detach().clone()

    def load(self, name: str, state: Mapping[str, Any]) -> str:
        """Take the held values from a state dict; the name that is missing or of another shape, empty where all fit."""
        for kind, values in (("hidden", self.values), ("fixed", self.fixed_values)):
            for k, value in enumerate(values):
                found = state.get(f"{kind}.{k}.{name}")
                if found is None or found.shape != value.shape:
                    return f"{kind}.{k}.{name}"
                values[k] = found.to(value).clone()
        return ""
