"""What surgery needs of a traced model beside its groups: how tensors, module attributes and residual branches follow a selection.

:func:`latprune.graph.trace` fills a :class:`SurgeryPlan`; :func:`latprune.surgery.prune` reads it. All sizes are those of the traced model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from latprune.graph.types import WidthAxis

__all__ = [
    "BranchCut",
    "FollowingAttribute",
    "ModuleReplacement",
    "PaddingAmount",
    "PartReplacement",
    "Removal",
    "ScaleTarget",
    "ScaledWeights",
    "SurgeryPlan",
    "TailStep",
    "TensorPlan",
    "UnitsOfPlaces",
    "UntouchedAttribute",
]

IntArray = npt.NDArray[np.int64]
ReturnedTensors = tuple[bool, ...] | None
"""What a module returns: None for one tensor, else a tuple with an entry for each place: True for a tensor, False for None."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UnitsOfPlaces:
    """The units of one channel group at the places of a tensor dimension.

    Attributes:
        group: Name of the group.
        units: ``(places,)``, or ``(groups, places)`` for the input dimension of a grouped convolution's weight: the unit at each place,
            -1 where the group has none. A place stays when its units in all groups stay.
    """

    group: str
    units: IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TensorPlan:
    """How one parameter or buffer follows the selection.

    Attributes:
        dims: Dimension that can shrink -> the units of its places; a dimension that is not named stays.
        groups: Number of groups of a grouped convolution whose weight it is, where each group's inputs are chosen on their own (then
            dimension 1 has ``(groups, places)`` units); 0 for every other tensor.
    """

    dims: Mapping[int, tuple[UnitsOfPlaces, ...]]
    groups: int = 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaddingAmount:
    """A module attribute that states an amount of zero channels: it becomes the number of ``places`` that stay."""

    module: str
    attribute: str
    places: tuple[UnitsOfPlaces, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FollowingAttribute:
    """A module attribute (``num_heads``, ``sizes[1]`` for an entry of a list, ``config.hidden_size``) that becomes the size of ``axis``."""

    module: str
    attribute: str
    axis: WidthAxis


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class UntouchedAttribute:
    """An integer that no size of the recorded run came from, and that equals a size which may shrink.

    Attributes:
        module: Path of the module.
        attribute: Its name, as in :class:`FollowingAttribute`; ``config.name`` for an entry of the module's configuration.
        value: What it is.
        dims: Dimensions ``(tensor, dim)`` of that size of the tensors inside of the module.
        uniform: It is a width by its name: it follows as long as all ``dims`` that are left have one size.
    """

    module: str
    attribute: str
    value: int
    dims: tuple[tuple[str, int], ...]
    uniform: bool

    @property
    def name(self) -> str:
        """Path and name in one."""
        return f"{self.module}.{self.attribute}" if self.module else self.attribute


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaleTarget:
    """Positions along ``dim`` of a parameter (None: all of it) whose scaling scales a tensor of the run."""

    tensor: str
    dim: int
    positions: IntArray | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ScaledWeights:
    """The run scales a tensor by a size to the power ``exponent``: the ``targets`` take up the change, so that the product stays.

    Attributes:
        targets: Weights to multiply by ``(dense size / pruned size) ** exponent``.
        exponent: Exponent of the size (-0.5 in scaled dot-product attention).
        axis: The size as a function of the widths.
    """

    targets: tuple[ScaleTarget, ...]
    exponent: float
    axis: WidthAxis


@dataclass(frozen=True, slots=True, kw_only=True)
class TailStep:
    """What follows a residual sum and is kept: a child of the replaced module, or an operation with its literal arguments.

    Attributes:
        module: Path relative to the replaced module; empty for an operation.
        op: Name of the operation; empty for a module.
        args: The operation's arguments after the tensor.
    """

    module: str = ""
    op: str = ""
    args: tuple[int | float | str | bool, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReplacement:
    """A module of a removed branch that is replaced by one that does nothing.

    Attributes:
        module: Its path.
        argument: Which of its tensor arguments (flattened in order) it hands on.
        output: What it returns (:data:`ReturnedTensors`).
        passed: ``(place, argument)``: that place of the tuple is another tensor argument, unchanged (a bias that all layers share).
        zero: ``scalar`` (a zero that broadcasts), ``like`` (zeros of the argument's shape) or empty (the argument itself).
    """

    module: str
    argument: int
    output: ReturnedTensors = None
    passed: tuple[tuple[int, int], ...] = ()
    zero: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleReplacement:
    """A branch goes with the module that holds it: the module's shortcut and what follows the sum take its place.

    Attributes:
        module: Path of the module that goes.
        argument: Which of its tensor arguments (flattened in order) holds the tensor at which branch and shortcut fork.
        shortcut: Paths, relative to the module, of the children that make the shortcut, in order.
        tail: What follows the sum.
        output: What the module returns (:data:`ReturnedTensors`).
    """

    module: str
    argument: int
    shortcut: tuple[str, ...] = ()
    tail: tuple[TailStep, ...] = ()
    output: ReturnedTensors = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchCut:
    """A branch of a captured program, which has no modules to replace: the sum is replaced by its other operand.

    Attributes:
        join: Number of the step that sums branch and shortcut.
        operand: Which operand of the sum is the branch's.
        skipped: Steps after the sum that have no effect on the shortcut alone.
        tensors: Parameters, buffers and constants that only the branch reads.
    """

    join: int
    operand: int
    skipped: tuple[int, ...]
    tensors: tuple[str, ...]


Removal = ModuleReplacement | tuple[PartReplacement, ...] | BranchCut
"""How a residual branch is removed: with the module that holds it, by replacing the modules on it, or from a captured program."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SurgeryPlan:
    """How everything in the model follows a selection of units and blocks.

    Attributes:
        parameters: Names of the parameters, tied ones once.
        within: Path of the sub-module whose operations were recorded; empty for the whole model.
        aliases: Further name of a tied tensor -> its canonical name.
        name_blocks: Each name of a parameter or buffer, the canonical one first -> the blocks that take the name away.
        tensors: Parameters and buffers with a dimension that can shrink.
        removals: Block -> how its branch is removed; lacks blocks that cannot be.
        paddings: Attributes that state amounts of zero channels.
        attributes: Attributes that state sizes which follow the widths.
        untouched: Attributes that the run did not read and that equal a size which may shrink: they may be stale after pruning.
        scales: Weights that take up the change of a scale which follows a size.
    """

    parameters: tuple[str, ...] = ()
    within: str = ""
    aliases: Mapping[str, str] = field(default_factory=dict)
    name_blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    tensors: Mapping[str, TensorPlan] = field(default_factory=dict)
    removals: Mapping[str, Removal] = field(default_factory=dict)
    paddings: tuple[PaddingAmount, ...] = ()
    attributes: tuple[FollowingAttribute, ...] = ()
    untouched: tuple[UntouchedAttribute, ...] = ()
    scales: tuple[ScaledWeights, ...] = ()

    def __repr__(self) -> str:
        """One line."""
        return f"SurgeryPlan({len(self.tensors)} tensors, {len(self.removals)} removals, {len(self.attributes)} attributes)"
