"""What must be 0 in the weights so that removed channels and blocks read as 0: found by walking the recorded run backwards.

Where an operation contracts a group's channels with weights, the slice of the weights that reads them is enough. Where it contracts two
activations (queries with keys) or sums channels, what makes one of them must be 0. What no zero can stand for (a mean or a softmax over the
channels) is refused in words.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from latprune.graph import ModelGraph
from latprune.graph.types import Call, IntArray, Member, Role
from latprune.surgery.mask_coordinates import Coordinates
from latprune.surgery.mask_norms import has_own_forward, is_plain_norm
from latprune.surgery.masked_rules import has_masked_rule

__all__ = ["BlockMask", "GroupMask", "NormUse", "find_block_masks", "find_group_masks"]

_LONGEST = 200
"""Operations in a row that a walk follows backwards."""

_ZERO_STAYS = frozenset(
    "view _unsafe_view reshape _reshape_alias transpose permute t numpy_T swapaxes movedim unsqueeze squeeze expand broadcast_to "
    "clone contiguous slice narrow select split split_with_sizes chunk unsafe_split unsafe_chunk tensor_split unbind alias detach "
    "lift_fresh _to_copy neg roll flip rot90 index index_select gather repeat repeat_interleave tile unfold diagonal as_strided "
    "pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle native_dropout dropout positive relu relu6 gelu silu mish "
    "tanh hardswish leaky_relu elu selu celu prelu abs sqrt square sign sin tan asin atan sinh asinh erf expm1 log1p trunc round "
    "floor ceil softsign hardshrink softshrink tanhshrink max_pool2d_with_indices avg_pool2d _adaptive_avg_pool2d "
    "adaptive_max_pool2d max_pool2d avg_pool1d avg_pool3d max_pool3d_with_indices _adaptive_avg_pool3d upsample_nearest2d "
    "upsample_bilinear2d upsample_bicubic2d upsample_nearest1d upsample_linear1d sum mean amax amin div embedding".split()
)
"""Operations whose result is 0 where their first operand is."""

_CONVOLUTIONS = frozenset("convolution _convolution conv1d conv2d conv3d mkldnn_convolution".split())
_PRODUCTS: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "mm": ((0, -1), (1, -2)),
    "bmm": ((0, -1), (1, -2)),
    "matmul": ((0, -1), (1, -2)),
    "mv": ((0, -1), (1, -1)),
    "linear": ((0, -1), (1, -1)),
    "addmm": ((1, -1), (2, -2)),
    "baddbmm": ((1, -1), (2, -2)),
    "addmv": ((1, -1), (2, -1)),
}
"""Operation -> the two contracted operands, each with its contracted dimension."""
_NORMS = frozenset("native_layer_norm layer_norm _fused_rms_norm rms_norm native_group_norm group_norm".split())
_ATTENTION = ("_scaled_dot_product", "scaled_dot_product")
_BATCH_NORMS = frozenset(
    "native_batch_norm cudnn_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update batch_norm "
    "miopen_batch_norm _batch_norm_no_update".split()
)
_FROZEN_NORMS = frozenset("_native_batch_norm_legit_no_training _batch_norm_no_update".split())
_COUNTED = _NORMS | {"mean"}
_ZERO_IS_NEUTRAL = frozenset("sum linalg_vector_norm norm any".split())
_REDUCTIONS = _ZERO_IS_NEUTRAL | frozenset("mean amax amin var std var_mean std_mean prod logsumexp all max min argmax argmin".split())
_SOFTMAXES = frozenset("_softmax _log_softmax softmax log_softmax _safe_softmax".split())


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


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockMask:
    """How a block is masked: the tensors to be 0, and all parameters that serve it alone; or why it cannot be."""

    zeros: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    reason: str = ""


class _RefusedError(Exception):
    """Why there is no zero; caught in this module."""


def _name(call: Call) -> str:
    return call.op.split(".")[1].rstrip("_")


def _place(call: Call) -> str:
    return f"{_name(call)} in '{call.module}'"


def _tensor_names(model: nn.Module) -> set[str]:
    """Names of parameters and buffers, tied ones under each of their names."""
    return {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))}


def _dynamic(calls: tuple[Call, ...]) -> list[bool]:
    """Which calls compute from the inputs."""
    found: list[bool] = []
    for call in calls:
        found.append(any(s == -2 or (s >= 0 and found[s]) for s in call.sources))
    return found


@dataclass(slots=True, kw_only=True, eq=False)
class _Walk:
    """From an operand backwards to the parameters that make it 0.

    ``carries(call, argument)``: whether the operand holds places that are to be 0. ``along(call, argument, but)``: whether it holds them
    along another dimension than ``but``. ``enters(call)``: whether the walk may go through a call. ``leaf``: checks a parameter.
    """

    calls: tuple[Call, ...]
    dynamic: list[bool]
    carries: Callable[[Call, int], bool]
    along: Callable[[Call, int, int], bool]
    enters: Callable[[Call], bool]
    leaf: Callable[[str], None]
    known: dict[int, frozenset[str] | str] = field(default_factory=dict)

    def zero(self, call: Call, argument: int, depth: int = 0) -> frozenset[str]:
        """Parameters that make an operand 0.

        Raises:
            _RefusedError: There are none.
        """
        source = call.sources[argument]
        if source == -1:
            name = call.names[argument]
            if name is None:
                raise _RefusedError(f"{_place(call)} reads a constant")
            self.leaf(name)
            return frozenset([name])
        if source < 0:
            raise _RefusedError(f"{_place(call)} reads the network's input")
        maker = self.calls[source]
        if depth > _LONGEST:
            raise _RefusedError(f"what {_place(call)} reads is made by more than {_LONGEST} operations in a row")
        if source not in self.known:
            try:
                if not self.enters(maker):
                    raise _RefusedError(f"{_place(call)} reads what is also read elsewhere")
                self.known[source] = self._made_zero(maker, depth + 1)
            except _RefusedError as error:
                self.known[source] = str(error)
        found = self.known[source]
        if isinstance(found, str):
            raise _RefusedError(found)
        return found

    def one_of(self, call: Call, arguments: Collection[int], depth: int = 0) -> frozenset[str]:
        """The first operand that can be made 0, weights before activations."""
        reason = f"no operand of {_place(call)} carries the channels"
        for argument in sorted(arguments, key=lambda k: (call.sources[k] == -2 or self.is_dynamic(call, k), k)):
            try:
                return self.zero(call, argument, depth)
            except _RefusedError as error:
                reason = str(error)
        raise _RefusedError(reason)

    def is_dynamic(self, call: Call, argument: int) -> bool:
        """Whether an operand depends on the inputs."""
        source = call.sources[argument]
        return source == -2 or (source >= 0 and self.dynamic[source])

    def _all_of(self, call: Call, arguments: Collection[int], depth: int) -> frozenset[str]:
        return frozenset().union(*(self.zero(call, k, depth) for k in arguments))

    def _made_zero(self, call: Call, depth: int) -> frozenset[str]:
        """Parameters that make the result of a call 0."""
        name, count = _name(call), len(call.sources)
        if name in _ZERO_STAYS:
            return self.zero(call, 0, depth)
        if name in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
            if not _bounds_hold_zero(name, call.literals):
                raise _RefusedError(f"{_place(call)} makes no 0 of 0")
            return self.zero(call, 0, depth)
        if name == "constant_pad_nd" and not any(isinstance(v, (int, float)) and v for v in call.literals):
            return self.zero(call, 0, depth)
        if name == "pow" and count == 1 and call.literals and isinstance(call.literals[0], (int, float)) and call.literals[0] > 0:
            return self.zero(call, 0, depth)
        if name == "mul":
            return self.one_of(call, [k for k in range(count) if self.carries(call, k)], depth)
        if name in ("add", "sub", "cat", "concat", "stack", "where"):
            operands = range(1, count) if name == "where" else range(count)
            carrying = [k for k in operands if self.carries(call, k)]
            if name in ("add", "sub", "where") and len(carrying) < 2:
                raise _RefusedError(f"{_place(call)} adds what carries no channels")
            return self._all_of(call, carrying, depth)
        if name in _CONVOLUTIONS:
            options = [k for k in (0, 1) if self.along(call, k, 1 if k == 0 else _input_dim(call))]
            return self.one_of(call, options, depth) | self._all_of(call, range(2, count), depth)
        if name in _PRODUCTS:
            options = [k for k, dim in _PRODUCTS[name] if self.along(call, k, dim)]
            bias = [k for k in range(count) if k not in {k for k, _ in _PRODUCTS[name]}]
            return self.one_of(call, options, depth) | self._all_of(call, bias, depth)
        if name.startswith(_ATTENTION):
            return self.zero(call, 2, depth)
        if name in _NORMS | _BATCH_NORMS:
            return self._affine(call, depth)
        raise _RefusedError(f"{_place(call)} makes no 0 of 0")

    def _affine(self, call: Call, depth: int) -> frozenset[str]:
        """Scale and shift of a norm; without them what a norm over the root mean square reads."""
        affine = [k for k in range(1, min(len(call.sources), 3)) if not (call.names[k] or "").rpartition(".")[2].startswith("running_")]
        if affine:
            return self._all_of(call, affine, depth)
        if "rms" in _name(call):
            return self.zero(call, 0, depth)
        raise _RefusedError(f"{_place(call)} has no scale and shift")


def _bounds_hold_zero(name: str, literals: tuple[Any, ...]) -> bool:
    """Whether a range that values are brought into holds 0."""
    if name == "clamp_min":
        return bool(literals) and literals[0] <= 0
    if name == "clamp_max":
        return bool(literals) and literals[0] >= 0
    low, high = (*literals, None, None)[:2]
    return (low is None or low <= 0) and (high is None or high >= 0)


def _input_dim(call: Call) -> int:
    """Input dimension of a convolution's weight."""
    transposed = any(v is True for v in call.literals)
    return 0 if transposed else 1


class _GroupFlow:
    """Walks for one group."""

    def __init__(self, graph: ModelGraph, name: str, coordinates: Coordinates, dynamic: list[bool], model: nn.Module) -> None:
        self.graph = graph
        self.name = name
        self.coordinates = coordinates
        self.model = model
        self.members = graph.groups[name].members
        self.parameters = {n for n, _ in model.named_parameters(remove_duplicate=False)}
        self.tensors = _tensor_names(model)
        self.walk = _Walk(
            calls=graph.calls,
            dynamic=dynamic,
            carries=self._carries,
            along=self._along_another,
            enters=lambda call: True,
            leaf=self._leaf,
        )

    def _leaf(self, tensor: str) -> None:
        if tensor not in self.tensors:
            raise _RefusedError(f"'{tensor}' is no tensor of the model")
        if not any(m.tensor == tensor for m in self.members):
            raise _RefusedError(f"'{tensor}' has no place for single channels")

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
        except _RefusedError as error:
            return GroupMask(reason=str(error))
        return GroupMask(zeros=tuple(zeros.values()), norms=tuple(norms.values()))

    def _read(self, call: Call) -> Iterator[Member]:
        """The places to be 0 so that a contraction or a sum over the channels reads 0."""
        name = _name(call)
        if name in _CONVOLUTIONS:
            yield from self._convolution(call)
        elif name in _PRODUCTS:
            yield from self._product(call, _PRODUCTS[name])
        elif name.startswith(_ATTENTION):
            yield from self._product(call, ((0, -1), (1, -1)))
        elif name in _ZERO_IS_NEUTRAL and any(self._along_dim(call, 0, d) for d in _mixed_dims(call) or ()):
            yield from self._makers(self.walk.zero(call, 0))

    def _convolution(self, call: Call) -> Iterator[Member]:
        if not self._along_dim(call, 0, 1):
            return
        # The inputs of a grouped convolution's weight carry other channels in each group: only its members say which.
        reads = any(m.tensor == call.names[1] and m.role is Role.CONSUMER for m in self.members)
        if reads or self._along_dim(call, 1, _input_dim(call)):
            yield from self._consumers(call, 1)
        elif not self._along_dim(call, 1, 1 - _input_dim(call)):  # else each group of filters carries its own channels on
            raise _RefusedError(f"the weights of {_place(call)} carry no channels")

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
            raise _RefusedError(f"'{tensor}' does not say which of its dimensions {'reads' if consumer else 'makes'} the channels")
        return fitting

    def _statistics(self, call: Call) -> Iterator[NormUse]:
        """Norms whose statistics run over the channels; other operations that mix them are refused."""
        name = _name(call)
        if name in _BATCH_NORMS:
            training = name not in _FROZEN_NORMS and len(call.literals) >= 3 and call.literals[-3] is True
            rank = max((f.ndim for f in call.all_fields[0]), default=0)
            if training and any(self._along_dim(call, 0, d) for d in range(rank) if d != 1):
                raise _RefusedError(f"{_place(call)} standardises over the channels")
            return
        dims = _mixed_dims(call)
        if dims is None:
            known = name in _CONVOLUTIONS or name in _PRODUCTS or name in _ZERO_STAYS or name.startswith(_ATTENTION)
            if not known and name not in _REDUCTIONS and has_masked_rule(call.op):
                raise _RefusedError(f"{_place(call)} has a rule of its own for removed channels, which masks in training do not know")
            return
        if name in _ZERO_IS_NEUTRAL or not any(self._along_dim(call, 0, d) for d in dims):
            return
        why = self._uncountable(call)
        if why:
            raise _RefusedError(f"{_place(call)} runs over the channels, {why}")
        yield from (NormUse(module=call.module, classes=f) for f in call.all_fields[0] if self.coordinates.carries(f, self.name))

    def _uncountable(self, call: Call) -> str:
        """Why a module cannot be made to count kept channels only in an operation; empty where it can."""
        module = self.model.get_submodule(call.module)
        if has_own_forward(module):
            return "and its module has a forward of its own set on the instance"
        if not is_plain_norm(module) and _name(call) not in _COUNTED:
            return "where only norms and means are counted over kept channels"
        for other in self.graph.calls:
            name = _name(other)
            if name not in _COUNTED or other is call:
                continue
            if other.module == call.module:
                alike = name in _NORMS or _mixed_dims(other) == _mixed_dims(call)
                if alike and not _same_fields(other, call):
                    return "and its module computes the like over other channels too"
            elif not is_plain_norm(module) and other.module.startswith(f"{call.module}." if call.module else ""):
                return f"and its module holds others that compute the like ('{other.module}')"
        return ""


def _same_fields(one: Call, other: Call) -> bool:
    mine, theirs = one.all_fields[0], other.all_fields[0]
    return len(mine) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def _mixed_dims(call: Call) -> range | list[int] | None:
    """Dimensions of its first operand over which an operation mixes places; None where it mixes none."""
    name = _name(call)
    rank = max((f.ndim for f in call.all_fields[0]), default=0) if call.all_fields else 0
    if name in ("native_layer_norm", "layer_norm", "_fused_rms_norm", "rms_norm"):
        return range(rank - len(call.literals[0]), rank)
    if name in ("native_group_norm", "group_norm"):
        return [1]
    if name in _SOFTMAXES:
        return [int(call.literals[0])]
    if name not in _REDUCTIONS or (name in ("max", "min") and len(call.sources) > 1):
        return None
    at = 1 if name in ("linalg_vector_norm", "norm") else 0
    dim = call.literals[at] if len(call.literals) > at else None
    if isinstance(dim, int) and not isinstance(dim, bool):
        return [dim]
    return [int(d) for d in dim] if isinstance(dim, (list, tuple)) and dim else range(rank)


def find_group_masks(model: nn.Module, graph: ModelGraph) -> dict[str, GroupMask]:
    """For every group how it is masked, or why it cannot be."""
    coordinates = Coordinates(graph.class_units)
    dynamic = _dynamic(graph.calls)
    return {name: _GroupFlow(graph, name, coordinates, dynamic, model).mask() for name in graph.groups}


def find_block_masks(model: nn.Module, graph: ModelGraph) -> dict[str, BlockMask]:
    """For every removable block how it is masked, or why it cannot be."""
    dynamic = _dynamic(graph.calls)
    users = _users(graph.calls, dynamic)
    parameters, tensors = {n for n, _ in model.named_parameters(remove_duplicate=False)}, _tensor_names(model)
    joins = {block: (call, operand) for call in graph.calls for block, operand in call.joins.items()}
    masks: dict[str, BlockMask] = {}
    for name, block in graph.blocks.items():
        if not block.removable:
            continue
        own = frozenset(t for t, calls in users.items() if t in tensors and all(name in c.blocks for c in calls))
        walk = _Walk(
            calls=graph.calls,
            dynamic=dynamic,
            carries=lambda call, argument: True,
            along=lambda call, argument, but: True,
            enters=partial(_inside, name, dynamic),
            leaf=partial(_check_own, own),
        )
        try:
            masks[name] = BlockMask(zeros=tuple(sorted(walk.zero(*joins[name]))), own=tuple(sorted(own & parameters)))
        except _RefusedError as error:
            masks[name] = BlockMask(reason=str(error))
    return masks


def _inside(block: str, dynamic: list[bool], call: Call) -> bool:
    return block in call.blocks or not dynamic[call.index]


def _check_own(own: Collection[str], tensor: str) -> None:
    if tensor not in own:
        raise _RefusedError(f"'{tensor}' does not serve the block alone")


def _users(calls: tuple[Call, ...], dynamic: list[bool]) -> dict[str, list[Call]]:
    """For each parameter and buffer the calls that compute with it and the inputs, also by way of what is computed from it alone."""
    made_from: list[frozenset[str]] = []
    users: dict[str, list[Call]] = {}
    for call in calls:
        read: set[str] = set()
        for source, name in zip(call.sources, call.names, strict=True):
            if source == -1 and name is not None:
                read.add(name)
            elif source >= 0 and not dynamic[source]:
                read |= made_from[source]
        made_from.append(frozenset() if dynamic[call.index] else frozenset(read))
        if dynamic[call.index]:
            for name in read:
                users.setdefault(name, []).append(call)
    return users
