"""What a traced model is to the rest of the library: channel groups, kernels, removable blocks and reasons.

Vocabulary
----------
*Unit*: the smallest set of channels that may be removed alone. *Channel group*: a ``rows x columns`` grid of units; its *width* ``w`` means
that every row keeps exactly ``w`` of its columns (plain channel groups have one row; the equal head sizes of an attention layer are a group
with one row per head). Unit ``u`` stands at row ``u // columns``, column ``u % columns``. A position of a tensor dimension is kept when
every unit that it belongs to is kept (a position of an attention projection belongs to its head and to its place within the head).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "Block",
    "Call",
    "ChannelGroup",
    "Kernel",
    "KeptWhole",
    "Member",
    "Piece",
    "Role",
    "Selection",
    "WidthAxis",
]

IntArray = npt.NDArray[np.int64]


class Role(StrEnum):
    """What a tensor dimension does with the channels of a group."""

    PRODUCER = "producer"
    """Output dimension of a contraction: the filter that makes the channel."""
    CONSUMER = "consumer"
    """Input dimension of a contraction: the slice that reads the channel."""
    NORM = "norm"
    """Per-channel scale, shift or statistics of a normalisation layer."""
    DEPTHWISE = "depthwise"
    """Per-channel filter that carries the channel on."""
    BIAS = "bias"
    """Per-channel bias of a contraction."""
    OTHER = "other"
    """Anything else per channel (layer scale, position embedding, PReLU slope)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Member:
    """The places of one tensor dimension that belong to one channel group.

    Attributes:
        tensor: Qualified name of the parameter or buffer (the canonical one where tensors are tied).
        dim: Dimension of that tensor.
        positions: ``(n,)`` increasing positions along ``dim``.
        units: ``(n,)`` unit of the group at each position (several positions may carry one unit: flatten into linear).
        role: What the dimension does with the channels.
        kernel: Name of the kernel that owns the tensor (a norm layer is a kernel of its own).
        blocks: Removable blocks that the kernel lies in, outermost first.
        within: For an input dimension of a grouped convolution: the range ``(start, stop)`` of dimension 0 for which ``positions`` hold
            (each group of output filters reads its own input channels); None where the whole tensor is meant.
        norms: For filters and biases of a contraction: the norms that the channels at these positions go straight into, where nothing else
            reads them; empty where something does. None where the flow of data is not known.
    """

    tensor: str
    dim: int
    positions: IntArray
    units: IntArray
    role: Role
    kernel: str
    blocks: tuple[str, ...] = ()
    within: tuple[int, int] | None = None
    norms: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ChannelGroup:
    """Channels that must be kept or removed together, in all the tensors that carry them.

    Attributes:
        name: Name of the first kernel that produces the channels (unique; stable from run to run).
        rows: Number of rows; each keeps the same number of units.
        columns: Units per row: the largest width.
        min_width: Smallest width that may be chosen (at least 1).
        kind: ``channels``, ``heads``, ``head_dim``, ``embedding``, ...: for people to read.
        members: All tensor dimensions that carry the channels.
    """

    name: str
    rows: int
    columns: int
    min_width: int
    kind: str
    members: tuple[Member, ...]

    def __repr__(self) -> str:
        """One line; members are not listed."""
        size = f"{self.rows} rows of {self.columns} units" if self.rows > 1 else f"{self.columns} units"
        return f"ChannelGroup({self.name!r}, {self.kind}, {size}, at least {self.min_width}, {len(self.members)} members)"

    @property
    def units(self) -> int:
        """Number of units, ``rows * columns``."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """``factor`` times the product of the widths (units kept) of ``groups``, counted only while all ``blocks`` are present."""

    groups: tuple[str, ...]
    factor: int = 1
    blocks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthAxis:
    """A dimension's size as a function of the groups' widths: ``constant + sum of pieces``.

    A plain dimension is one piece with factor 1. A concat is several pieces; flatten has factor ``height * width``; an attention projection
    is the product ``heads * head_dim``. A piece counts ``width`` per row times ``rows`` through ``factor``.
    """

    pieces: tuple[Piece, ...] = ()
    constant: int = 0

    def size(self, widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> int:
        """Size for ``widths`` (group name -> width) with ``removed_blocks`` gone."""
        removed = set(removed_blocks)
        total = self.constant
        for piece in self.pieces:
            if removed.isdisjoint(piece.blocks):
                product = piece.factor
                for group in piece.groups:
                    product *= widths[group]
                total += product
        return total

    @property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups that the size depends on, in order, without repeats."""
        return tuple(dict.fromkeys(name for piece in self.pieces for name in piece.groups))


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """A computation that the engine spends time on, with the axes that its cost depends on.

    Attributes:
        name: Module path where a module owns the weights (``layer1.0.conv1``), with ``#k`` for its k-th further call; else the op's place.
        kind: ``conv``, ``depthwise``, ``linear``, ``norm``, ``attention``, ``matmul``, ``elementwise``, ``pool``, ...
        module: Path of the owning module, or None.
        axes: Width axes that the cost depends on: ``(in, out)`` for a contraction, ``(width,)`` for depthwise, norm and elementwise,
            up to three for attention.
        blocks: Removable blocks that it lies in, outermost first; it runs only while all are present.
        macs: Multiply-adds per inference of the example batch divided by the product of the dense axis sizes, so that the multiply-adds
            at any widths are ``macs * prod(axis sizes)``.
        attributes: Everything else that identifies the kernel to an engine: ``kernel_size``, ``stride``, ``padding``, ``dilation``,
            ``groups``, ``input_shape``, ``output_shape`` (dense shapes), ``bias``. JSON-able.
        caller: Path of the module whose forward runs it, where that is not ``module``: a weight that two modules share (a language model's
            embedding and its head), or one that a parent's forward reads. Engines name a step after the caller.
        read: Whether an output depends on it. Engines that compile a network leave the others out (a second head whose scores are dropped).
    """

    name: str
    kind: str
    module: str | None
    axes: tuple[WidthAxis, ...]
    blocks: tuple[str, ...]
    macs: float
    attributes: Mapping[str, Any] = field(default_factory=dict)
    caller: str | None = None
    read: bool = True


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call:
    """One recorded operation of the captured run, in order: what a masked executor needs to follow the same run.

    Attributes:
        index: Position in the recorded sequence.
        op: Name of the operator overload (``aten.convolution.default``).
        module: Path of the innermost module that was running.
        fields: One entry per tensor argument (flattened in order): an int64 array of the tensor's rank, of size 1 on each dimension that
            carries no channels, holding the *coordinate class* of each place (-1: carries none); None where the whole tensor carries none.
        output_fields: The same for each tensor result.
        all_fields: For each tensor argument all of its fields: a weight has one for each dimension, an activation mostly one (``fields``
            then holds it; of several, ``fields`` holds the one that varies along the most dimensions).
        all_output_fields: The same for each tensor result (the state of a recurrence over channels has two).
        blocks: Removable blocks that the call lies in, outermost first.
        joins: Name of the block whose branch joins its shortcut here -> index (among the tensor arguments) of the branch's operand.
        sources: For each tensor argument the index of the call that made it; -1 for a parameter, buffer or constant, -2 for an input (of
            the model, or of the sub-module that is pruned).
        names: For each tensor argument the parameter or buffer that it is, or is computed from alone; None for the others.
        literals: The positional arguments that are no tensors.
    """

    index: int
    op: str
    module: str
    fields: tuple[IntArray | None, ...]
    output_fields: tuple[IntArray | None, ...]
    blocks: tuple[str, ...] = ()
    joins: Mapping[str, int] = field(default_factory=dict)
    all_fields: tuple[tuple[IntArray, ...], ...] = ()
    all_output_fields: tuple[tuple[IntArray, ...], ...] = ()
    sources: tuple[int, ...] = ()
    names: tuple[str | None, ...] = ()
    literals: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A residual branch that can be removed: the shortcut (identity, projection or padding) stays.

    Attributes:
        name: Path of the module that holds it (with a suffix where one module holds several branches).
        kernels: Names of the kernels that go with it.
        parents: Blocks that contain it, outermost first.
        shortcut: ``identity``, ``projection`` or ``pad``.
        removable: False where it must stay (for instance named in ``keep``), with ``reason``.
        reason: Why it must stay, in words; empty where it may go.
    """

    name: str
    kernels: tuple[str, ...]
    parents: tuple[str, ...] = ()
    shortcut: str = "identity"
    removable: bool = True
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptWhole:
    """Something that cannot be pruned: ``what`` (module path, tensor dimension or group), its ``channels``, and the ``reason`` in words."""

    what: str
    channels: int
    parameters: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selection:
    """What is kept: unit indices per group and the blocks that go.

    Attributes:
        kept: Group name -> ``(width * rows,)`` increasing unit indices to keep. A group that is not named stays whole.
        removed_blocks: Names of the blocks to remove.
    """

    kept: Mapping[str, IntArray]
    removed_blocks: frozenset[str] = frozenset()

    def __repr__(self) -> str:
        """One line; units are not shown."""
        kept = sum(units.size for units in self.kept.values())
        return f"Selection({kept} units kept in {len(self.kept)} narrowed groups, {len(self.removed_blocks)} blocks removed)"
