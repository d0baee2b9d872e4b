"""What must be 0 in the weights so that the removed channels of a group read as 0.

Where an operation contracts the channels with weights, the slice of the weights that reads them is enough. Where it contracts two
activations (queries with keys) or sums channels, what makes one of them must be 0. Norms and means over the channels count the kept ones
only; what else mixes them (a softmax over channels) is refused in words.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from torch import nn

from latprune.graph import ModelGraph
from latprune.graph.types import Call, IntArray, Member, Role
from latprune.surgery.mask_coordinates import Coordinates
from latprune.surgery.mask_norms import has_own_forward, is_plain_norm
from latprune.surgery.mask_operations import (
    ATTENTION,
    BATCH_NORMS,
    CONVOLUTIONS,
    COUNTED,
    FROZEN_NORMS,
    NORMS,
    PRODUCTS,
    REDUCTIONS,
    ZERO_IS_NEUTRAL,
    ZERO_STAYS,
    input_dim,
    mixed_dims,
    name_of,
    place_of,
)
from latprune.surgery.mask_walk import RefusedError, Walk, dynamic_calls, tensor_names
from latprune.surgery.masked_rules import has_masked_rule

__all__ = ["GroupMask", "NormUse", "find_group_masks"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class NormUse:
    """A module with a norm or mean that runs over coordinates of a group.

    Attributes:
        module: Its path.
        classes: Coordinate class of each place of what it reads, broadcastable to it (-1: carries none).
    """

    module: str
    classes: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GroupMask:
    """How a group is masked: the places to be 0 for its removed units, and the norms that must not count them; or why it cannot be."""

    zeros: tuple[Member, ...] = ()
    norms: tuple[NormUse, ...] = ()
    reason: str = ""


def find_group_masks(model: nn.Module, graph: ModelGraph) -> dict[str, GroupMask]:
    """For every group how it is masked, or why it cannot be."""
    coordinates = Coordinates(graph.class_units)
    dynamic = dynamic_calls(graph.calls)
    return {name: _GroupFlow(graph, name, coordinates, dynamic, model).mask() for name in graph.groups}


class _GroupFlow:
    """Walks for one group."""

    def __init__(self, graph: ModelGraph, name: str, coordinates: Coordinates, dynamic: list[bool], model: nn.Module) -> None:
        self.graph = graph
        self.name = name
        self.coordinates = coordinates
        self.model = model
        self.members = graph.groups[name].members
        self.parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
        self.tensors = tensor_names(model)
        self.walk = Walk(
            calls=graph.calls,
            dynamic=dynamic,
            carries=self._carries,
            along=self._along_another,
            enters=lambda call: True,
            leaf=self._leaf,
        )

    def _leaf(self, tensor: str) -> None:
        if tensor not in self.tensors:
            raise RefusedError(f"'{tensor}' is no tensor of the model")
        if not any(m.tensor == tensor for m in self.members):
            raise RefusedError(f"'{tensor}' has no place for single channels")

    def _carries(self, call: Call, argument: int) -> bool:
        """Whether an operand carries the group's channels."""
        return any(self.coordinates.carries(f, self.name) for f in call.all_fields[argument])

    def _along_dim(self, call: Call, argument: int, dim: int) -> bool:
        """Whether the channels of an operand lie along a dimension."""
        return any(self.coordinates.along(f, self.name, dim) for f in call.all_fields[argument])

    def _along_another(self, call: Call, argument: int, but: int) -> bool:
        for f in call.all_fields[argument]:
            if any(self.coordinates.along(f, self.name, d) for d in range(f.ndim) if d != but % f.ndim):
                return True
        return False

    def mask(self) -> GroupMask:
        """How the group is masked."""
        zeros: dict[int, Member] = {id(m): m for m in self.members if m.role is Role.CONSUMER and m.tensor in self.parameters}
        norms: dict[tuple[str, int], NormUse] = {}
        try:
            for call in self.graph.calls:
                if not any(self.coordinates.carries(f, self.name) for fields in call.all_fields for f in fields):
                    continue
                zeros.update((id(m), m) for m in self._read(call))
                norms.update(((use.module, id(use.classes)), use) for use in self._statistics(call))
        except RefusedError as error:
            return GroupMask(reason=str(error))
        return GroupMask(zeros=tuple(zeros.values()), norms=tuple(norms.values()))

    def _read(self, call: Call) -> Iterator[Member]:
        """The places to be 0 so that a contraction or a sum over the channels reads 0."""
        name = name_of(call)
        if name in CONVOLUTIONS:
            yield from self._convolution(call)
        elif name in PRODUCTS:
            yield from self._product(call, PRODUCTS[name])
        elif name.startswith(ATTENTION):
            yield from self._product(call, ((0, -1), (1, -1)))
        elif name in ZERO_IS_NEUTRAL and any(self._along_dim(call, 0, d) for d in mixed_dims(call) or ()):
            yield from self._makers(self.walk.zero(call, 0))

    def _convolution(self, call: Call) -> Iterator[Member]:
        if not self._along_dim(call, 0, 1):
            return
        # The inputs of a grouped convolution's weight carry other channels in each group: only its members say which.
        reads = any(m.tensor == call.names[1] and m.role is Role.CONSUMER for m in self.members)
        if reads or self._along_dim(call, 1, input_dim(call)):
            yield from self._consumers(call, 1)
        elif not self._along_dim(call, 1, 1 - input_dim(call)):  # else each group of filters carries its own channels on
            raise RefusedError(f"the weights of {place_of(call)} carry no channels")

    def _product(self, call: Call, sides: tuple[tuple[int, int], tuple[int, int]]) -> Iterator[Member]:
        reading = [k for k, dim in sides if self._along_dim(call, k, dim)]
        if not reading:
            return
        for k, _ in sides:
            if not self.walk.is_dynamic(call, k):
                yield from self._consumers(call, k)
                return
        # Only one of the two factors is made 0: its gradient needs the other one's values.
        yield from self._makers(self.walk.one_of(call, reading))

    def _consumers(self, call: Call, argument: int) -> Iterator[Member]:
        for tensor in self.walk.zero(call, argument):
            yield from self._members_of(tensor, consumer=True)

    def _makers(self, tensors: Collection[str]) -> Iterator[Member]:
        for tensor in tensors:
            yield from self._members_of(tensor, consumer=False)

    def _members_of(self, tensor: str, *, consumer: bool) -> list[Member]:
        """The group's places in a parameter where it reads (or makes) the channels; a tied one may have one role for both."""
        mine = [m for m in self.members if m.tensor == tensor]
        fitting = [m for m in mine if (m.role is Role.CONSUMER) is consumer]
        if not fitting and len({m.dim for m in mine}) == 1:
            fitting = mine
        if not fitting:
            raise RefusedError(f"'{tensor}' does not say which of its dimensions {'reads' if consumer else 'makes'} the channels")
        return fitting

    def _statistics(self, call: Call) -> Iterator[NormUse]:
        """Norms whose statistics run over the channels; other operations that mix them are refused."""
        name = name_of(call)
        if name in BATCH_NORMS:
            training = name not in FROZEN_NORMS and len(call.literals) >= 3 and call.literals[-3] is True
            rank = max((f.ndim for f in call.all_fields[0]), default=0)
            if training and any(self._along_dim(call, 0, d) for d in range(rank) if d != 1):
                raise RefusedError(f"{place_of(call)} standardises over the channels")
            return
        dims = mixed_dims(call)
        if dims is None:
            known = name in CONVOLUTIONS or name in PRODUCTS or name in ZERO_STAYS or name.startswith(ATTENTION)
            if not known and name not in REDUCTIONS and has_masked_rule(call.op):
                raise RefusedError(f"{place_of(call)} has a rule of its own for removed channels, which masks in training do not know")
            return
        if name in ZERO_IS_NEUTRAL or not any(self._along_dim(call, 0, d) for d in dims):
            return
        why = self._uncountable(call)
        if why:
            raise RefusedError(f"{place_of(call)} runs over the channels, {why}")
        yield from (NormUse(module=call.module, classes=f) for f in call.all_fields[0] if self.coordinates.carries(f, self.name))

    def _uncountable(self, call: Call) -> str:
        """Why a module cannot be made to count kept channels only in an operation; empty where it can."""
        module = self.model.get_submodule(call.module)
        if has_own_forward(module):
            return "and its module has a forward of its own set on the instance"
        if not is_plain_norm(module) and name_of(call) not in COUNTED:
            return "where only norms and means are counted over kept channels"
        for other in self.graph.calls:
            name = name_of(other)
            if name not in COUNTED or other is call:
                continue
            if other.module == call.module:
                alike = name in NORMS or mixed_dims(other) == mixed_dims(call)
                if alike and not _same_fields(other, call):
                    return "and its module computes the like over other channels too"
            elif not is_plain_norm(module) and other.module.startswith(f"{call.module}." if call.module else ""):
                return f"and its module holds others that compute the like ('{other.module}')"
        return ""


def _same_fields(one: Call, other: Call) -> bool:
    mine, theirs = one.all_fields[0], other.all_fields[0]
    return len(mine) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
