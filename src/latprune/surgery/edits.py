"""Architecture edits as data: what surgery changed, in a versioned JSON form that replays on a freshly constructed model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field, ValidationError

from latprune.errors import FileFormatError
from latprune.file_model import StrictFileModel

__all__ = ["ArchitectureEdits", "AttributeEdit", "BlockEdit", "BranchEdit", "EditStep", "FoldEdit", "PartEdit", "ScaleEdit", "TensorEdit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorEdit:
    """A parameter or buffer that is sliced.

    Attributes:
        name: Canonical name.
        shape: Shape before.
        keep: Dimension -> kept positions, increasing.
        grouped: For the weight of a grouped convolution: for each kept group ``(first row, stop row, kept input columns)`` of the dense
            weight. The rows to keep are those of ``keep[0]``.
    """

    name: str
    shape: tuple[int, ...]
    keep: Mapping[int, tuple[int, ...]]
    grouped: tuple[tuple[int, int, tuple[int, ...]], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AttributeEdit:
    """An attribute of a module that is set: ``before`` -> ``after`` (integers or lists of integers).

    ``name`` is ``config.hidden_size`` for an entry of the configuration that the module keeps; the model gets a copy of that object.
    """

    module: str
    name: str
    before: int | tuple[int, ...]
    after: int | tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartEdit:
    """A module of a removed branch that is replaced by one that does nothing.

    Attributes:
        module: Its path.
        argument: Which of its tensor arguments (flattened in order) it hands on.
        output: What it returns: None for a tensor, else one entry for each place of a tuple: True for the tensor, False for None.
        passed: ``(place, argument)``: that place of the tuple is another tensor argument, unchanged (a bias that all layers share).
        zero: ``scalar`` (a zero that broadcasts), ``like`` (zeros of the argument's shape) or empty (the argument itself).
    """

    module: str
    argument: int = 0
    output: tuple[bool, ...] | None = None
    passed: tuple[tuple[int, int], ...] = ()
    zero: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEdit:
    """A residual branch that is removed.

    Either ``module`` is replaced by its shortcut and what follows the sum, or (``module`` empty) each of ``parts`` by a module that does
    nothing.

    Attributes:
        name: Name of the block.
        module: Path of the module that is replaced; empty where only parts are.
        argument: Which of its tensor arguments (flattened in order) enters the shortcut.
        output: What it returns; see :class:`PartEdit`.
        shortcut: Paths, relative to the module, of the children that make the shortcut, in order.
        tail: What follows the sum: ``{"module": path}`` or ``{"op": name, "args": [...]}``.
        parts: Modules of the branch that are replaced.
    """

    name: str
    module: str = ""
    argument: int = 0
    output: tuple[bool, ...] | None = None
    shortcut: tuple[str, ...] = ()
    tail: tuple[Mapping[str, Any], ...] = ()
    parts: tuple[PartEdit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BranchEdit:
    """A residual branch that is removed from a captured program.

    Attributes:
        name: Name of the block.
        join: Number of the step that sums branch and shortcut.
        operand: Which operand of the sum is the branch's; the other takes the sum's place.
        skipped: Steps after the sum that have no effect on the shortcut alone.
        tensors: Parameters and buffers that go with the branch.
    """

    name: str
    join: int
    operand: int
    skipped: tuple[int, ...] = ()
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaleEdit:
    """Positions (before slicing) along ``dim`` of a parameter that are multiplied by ``factor``; ``positions`` None means all.

    Attention keeps its original scale although the default one follows the head size: the weights take the difference.
    """

    name: str
    dim: int
    positions: tuple[int, ...] | None
    factor: float


@dataclass(frozen=True, slots=True, kw_only=True)
class FoldEdit:
    """A tensor that was computed of others (weight norm, a mask) and becomes a plain parameter of the value that it has."""

    module: str
    tensor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NormEdit:
    """A weight norm that goes onto a plain weight, which it computes as it is: of ``torch.nn.utils`` (kind ``weight_norm``) or
    ``torch.nn.utils.parametrizations`` (``WeightNorm``), with a norm for each place of ``dim`` (-1: one for all).
    """

    module: str
    tensor: str
    kind: str
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EditStep:
    """The edits of one call of :func:`latprune.surgery.prune`, in the order folds, scales, tensors, attributes, blocks,
    branches, norms.

    ``stale`` names attributes that may say a size which is no more: no recorded run read them, and what they mean is not certain.
    """

    scales: tuple[ScaleEdit, ...] = ()

    tensors: tuple[TensorEdit, ...] = ()
    attributes: tuple[AttributeEdit, ...] = ()
    blocks: tuple[BlockEdit, ...] = ()
    branches: tuple[BranchEdit, ...] = ()
    stale: tuple[str, ...] = ()
    folds: tuple[FoldEdit, ...] = ()
    norms: tuple[NormEdit, ...] = ()


class _FoldModel(StrictFileModel):
    module: str
    tensor: str


class _NormModel(StrictFileModel):
    module: str
    tensor: str
    kind: Literal["weight_norm", "WeightNorm"]
    dim: int = Field(ge=-1)


class _TensorModel(StrictFileModel):
    name: str
    shape: list[int]
    keep: dict[str, int] = Field(default_factory=dict)
    grouped: list[tuple[int, int, int]] | None = None


class _AttributeModel(StrictFileModel):
    module: str
    name: str
    before: int | list[int]
    after: int | list[int]


class _TailModel(StrictFileModel):
    module: str | None = None
    op: str | None = None
    args: list[int | float | str | bool] = Field(default_factory=list)


class _PartModel(StrictFileModel):
    module: str
    argument: int = Field(ge=0)
    output: list[bool] | None = None
    passed: list[tuple[int, int]] = Field(default_factory=list)
    zero: Literal["", "scalar", "like"] = ""


class _BlockModel(StrictFileModel):
    name: str
    module: str
    argument: int = Field(default=0, ge=0)
    output: list[bool] | None = None
    shortcut: list[str] = Field(default_factory=list)
    tail: list[_TailModel] = Field(default_factory=list)
    parts: list[_PartModel] = Field(default_factory=list)


class _BranchModel(StrictFileModel):
    name: str
    join: int = Field(ge=0)
    operand: int = Field(ge=0, le=1)
    skipped: list[int] = Field(default_factory=list)
    tensors: list[str] = Field(default_factory=list)


class _ScaleModel(StrictFileModel):
    name: str
    dim: int = Field(ge=0)
    positions: int | None
    factor: float


class _StepModel(StrictFileModel):
    index_sets: list[list[int]]
    scales: list[_ScaleModel] = Field(default_factory=list)
    tensors: list[_TensorModel]
    attributes: list[_AttributeModel]
    blocks: list[_BlockModel]
    branches: list[_BranchModel] = Field(default_factory=list)
    stale: list[str] = Field(default_factory=list)
    folds: list[_FoldModel] = Field(default_factory=list)
    norms: list[_NormModel] = Field(default_factory=list)


class _EditsModel(StrictFileModel):
    format: Literal["latprune/edits"]
    version: Literal[1]
    steps: list[_StepModel]


def _plain(value: int | tuple[int, ...]) -> int | list[int]:
    return value if isinstance(value, int) else list(value)


def _frozen(value: int | list[int]) -> int | tuple[int, ...]:
    return value if isinstance(value, int) else tuple(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchitectureEdits:
    """All edits from the dense model to the pruned one: one step for each pruning."""

    steps: tuple[EditStep, ...] = field(default=())

    def __repr__(self) -> str:
        """One line; indices are not shown."""
        tensors = sum(len(step.tensors) for step in self.steps)
        return f"ArchitectureEdits({len(self.steps)} steps, {tensors} tensors cut)"

    def then(self, later: ArchitectureEdits) -> ArchitectureEdits:
        """These edits followed by ``later`` (a staged method cuts several times)."""
        return ArchitectureEdits(steps=self.steps + later.steps)

    @property
    def stale(self) -> tuple[str, ...]:
        """Attributes that may say a size which is no more, after the last step."""
        return self.steps[-1].stale if self.steps else ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form; equal index sets are stored once."""
        return {"format": "latprune/edits", "version": 1, "steps": [_step_to_dict(s) for s in self.steps]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ArchitectureEdits:
        """Read the JSON form.

        Raises:
            FileFormatError: A value is missing, unknown or of the wrong kind; the error names its path.
        """
        try:
            model = _EditsModel.model_validate(data, strict=False)
        except ValidationError as error:
            first = error.errors()[0]
            raise FileFormatError(first["msg"], path="edits." + ".".join(str(p) for p in first["loc"])) from error
        return cls(steps=tuple(_step_from_model(s, f"edits.steps.{k}") for k, s in enumerate(model.steps)))


def _step_to_dict(step: EditStep) -> dict[str, Any]:
    sets: dict[tuple[int, ...], int] = {}

    def number(indices: tuple[int, ...]) -> int:
        return sets.setdefault(tuple(indices), len(sets))

    tensors = []
    for t in step.tensors:
        entry: dict[str, Any] = {"name": t.name, "shape": list(t.shape), "keep": {str(d): number(k) for d, k in t.keep.items()}}
        if t.grouped is not None:
            entry["grouped"] = [[start, stop, number(columns)] for start, stop, columns in t.grouped]
        tensors.append(entry)
    attributes = [{"module": a.module, "name": a.name, "before": _plain(a.before), "after": _plain(a.after)} for a in step.attributes]
    blocks = [_block_to_dict(b) for b in step.blocks]
    scales = [
        {"name": s.name, "dim": s.dim, "positions": None if s.positions is None else number(s.positions), "factor": s.factor}
        for s in step.scales
    ]
    found = {"index_sets": [list(s) for s in sets], "scales": scales, "tensors": tensors, "attributes": attributes, "blocks": blocks}
    if step.branches:
        found["branches"] = [
            {"name": b.name, "join": b.join, "operand": b.operand, "skipped": list(b.skipped), "tensors": list(b.tensors)}
            for b in step.branches
        ]
    if step.stale:
        found["stale"] = list(step.stale)
    if step.folds:
        found["folds"] = [{"module": f.module, "tensor": f.tensor} for f in step.folds]
    if step.norms:
        found["norms"] = [{"module": n.module, "tensor": n.tensor, "kind": n.kind, "dim": n.dim} for n in step.norms]
    return found


def _block_to_dict(block: BlockEdit) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": block.name, "module": block.module}
    if block.module:
        entry |= {"argument": block.argument, "shortcut": list(block.shortcut), "tail": [dict(t) for t in block.tail]}
        if block.output is not None:
            entry["output"] = list(block.output)
    if block.parts:
        entry["parts"] = [_part_to_dict(p) for p in block.parts]
    return entry


def _part_to_dict(part: PartEdit) -> dict[str, Any]:
    output = None if part.output is None else list(part.output)
    entry: dict[str, Any] = {"module": part.module, "argument": part.argument, "output": output, "zero": part.zero}
    if part.passed:
        entry["passed"] = [list(pair) for pair in part.passed]
    return entry


def _part_from_model(part: _PartModel, path: str) -> PartEdit:
    places = 0 if part.output is None else len(part.output)
    for place, argument in part.passed:
        if not 0 <= place < places or argument < 0:
            raise FileFormatError(f"place {place} with argument {argument} does not exist", path=f"{path}.passed")
    output = None if part.output is None else tuple(part.output)
    return PartEdit(module=part.module, argument=part.argument, output=output, passed=tuple(part.passed), zero=part.zero)


def _step_from_model(step: _StepModel, path: str) -> EditStep:
    sets: list[tuple[int, ...]] = []
    for k, values in enumerate(step.index_sets):
        if any(b <= a for a, b in zip(values, values[1:], strict=False)) or (values and values[0] < 0):
            raise FileFormatError("indices must increase and be at least 0", path=f"{path}.index_sets.{k}")
        sets.append(tuple(values))

    def lookup(number: int, where: str) -> tuple[int, ...]:
        if not 0 <= number < len(sets):
            raise FileFormatError(f"index set {number} does not exist", path=where)
        return sets[number]

    tensors = []
    for k, t in enumerate(step.tensors):
        where = f"{path}.tensors.{k}"
        keep: dict[int, tuple[int, ...]] = {}
        for text, number in t.keep.items():
            if not text.isdigit() or int(text) >= len(t.shape):
                raise FileFormatError(f"dimension '{text}' does not exist", path=f"{where}.keep")
            indices = lookup(number, f"{where}.keep.{text}")
            if not indices or indices[-1] >= t.shape[int(text)]:
                raise FileFormatError(f"indices must be some of 0..{t.shape[int(text)] - 1}", path=f"{where}.keep.{text}")
            keep[int(text)] = indices
        grouped = None
        if t.grouped is not None:
            grouped = tuple((a, b, lookup(n, f"{where}.grouped")) for a, b, n in t.grouped)
        tensors.append(TensorEdit(name=t.name, shape=tuple(t.shape), keep=keep, grouped=grouped))
    attributes = tuple(
        AttributeEdit(module=a.module, name=a.name, before=_frozen(a.before), after=_frozen(a.after)) for a in step.attributes
    )
    blocks = []
    for k, b in enumerate(step.blocks):
        tail: list[Mapping[str, Any]] = []
        for s in b.tail:
            if (s.module is None) == (s.op is None):
                raise FileFormatError("needs either 'module' or 'op'", path=f"{path}.blocks.{k}.tail")
            tail.append({"module": s.module} if s.module is not None else {"op": s.op, "args": list(s.args)})
        if bool(b.module) == bool(b.parts):
            raise FileFormatError("needs either 'module' or 'parts'", path=f"{path}.blocks.{k}")
        parts = tuple(_part_from_model(p, f"{path}.blocks.{k}.parts.{n}") for n, p in enumerate(b.parts))
        blocks.append(
            BlockEdit(
                name=b.name,
                module=b.module,
                argument=b.argument,
                output=None if b.output is None else tuple(b.output),
                shortcut=tuple(b.shortcut),
                tail=tuple(tail),
                parts=parts,
            )
        )
    scales = tuple(
        ScaleEdit(
            name=s.name,
            dim=s.dim,
            positions=None if s.positions is None else lookup(s.positions, f"{path}.scales.{k}"),
            factor=s.factor,
        )
        for k, s in enumerate(step.scales)
    )
    branches = tuple(
        BranchEdit(name=b.name, join=b.join, operand=b.operand, skipped=tuple(b.skipped), tensors=tuple(b.tensors)) for b in step.branches
    )
    return EditStep(
        scales=scales,
        tensors=tuple(tensors),
        attributes=attributes,
        blocks=tuple(blocks),
        branches=branches,
        stale=tuple(step.stale),
        folds=tuple(FoldEdit(module=f.module, tensor=f.tensor) for f in step.folds),
        norms=tuple(NormEdit(module=n.module, tensor=n.tensor, kind=n.kind, dim=n.dim) for n in step.norms),
    )
