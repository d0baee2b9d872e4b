"""What one recorded run leaves behind: operations, module calls, kernels in the making, and the sizes that the forward stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from latprune.graph.labels import LabelSpace
from latprune.graph.provenance import Expression, Uses
from latprune.graph.scales import ScaleUse

__all__ = ["Axis", "Equation", "Fields", "Info", "KernelDraft", "ModuleCall", "Node", "PaddingDraft", "Recording", "SizeLeaf"]

Fields = tuple[torch.Tensor, ...]
Axis = torch.Tensor | int | tuple[torch.Tensor | int, ...]


@dataclass(slots=True, eq=False)
class Info:
    """What the recorder knows of one tensor value.

    Attributes:
        fields: Its fields.
        node: Index of the node that made it; -1 for parameters, buffers and constants, -2 for the model's inputs.
        output: Which result of the node it is.
        shape: Its shape.
        name: Parameter or buffer that it is, or is a view of.
        dynamic: Whether it depends on the model's inputs.
        uncomputed: Its values are arbitrary (:mod:`latprune.graph.uncomputed`).
        expanded: Dimensions that hold one value repeated, and the expression of the code that says how often.
        sized: Dimensions of a tensor of one value whose size the code states, and the expression that says it: what it meets there tells
            which channels they are.
        places: Labels among which its values are places (the index of the largest channel): they stay once it is read.
    """

    fields: Fields
    node: int
    output: int
    shape: tuple[int, ...]
    name: str | None = None
    dynamic: bool = False
    uncomputed: bool = False
    expanded: tuple[tuple[int, Expression], ...] = ()
    sized: tuple[tuple[int, Expression], ...] = ()
    places: Fields = ()


@dataclass(slots=True, eq=False)
class Node:
    """One recorded operation; see :class:`latprune.graph.Call`.

    ``inside``: it ran inside of the module that is pruned. ``step``: the step of a captured program that it belongs to, else -1.
    """

    index: int
    op: str
    module: str
    inputs: list[Info]
    outputs: list[Info]
    in_fields: list[Fields]
    kernel: KernelDraft | None = None
    literals: tuple[Any, ...] = ()
    inside: bool = True
    step: int = -1


@dataclass(slots=True, eq=False)
class KernelDraft:
    """A kernel while its axes are labels: each is an ``(n,)`` label vector, a constant size, or a tuple of those to be summed."""

    kind: str
    weight: str | None
    axes: Sequence[Axis]
    macs: float
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of a module: nodes ``start .. stop`` ran inside; its tensor inputs and outputs (flattened).

    ``structure`` says what it returned: ``tensor``, a list with a number for each tensor and None for each None of a tuple, or None for
    anything else.
    """

    path: str
    start: int
    stop: int
    inputs: list[Info]
    outputs: list[Info]
    parent: int
    structure: str | list[int | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PaddingDraft:
    """Zero channels that the run added: ``attribute`` of ``module`` states their number; ``labels`` ``(number,)``."""

    module: str
    attribute: str
    labels: torch.Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SizeLeaf:
    """A size that the forward read or stated: labels ``(outer, n, inner)``, the size being counted along ``n``; ``value`` is ``n``."""

    labels: torch.Tensor
    value: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Equation:
    """``left`` (what the forward states) must equal ``right`` (what the labels give); ``place`` names the operation.

    ``parts``: the two are parts that one dimension is cut into.
    """

    left: Expression
    right: Expression
    place: str
    parts: bool = False


@dataclass(slots=True, eq=False)
class Recording:
    """Everything that one run left behind, and the model's modules and tensors by name (each once)."""

    space: LabelSpace
    nodes: list[Node]
    module_calls: list[ModuleCall]
    inputs: list[Info]
    outputs: list[Info]
    tensor_labels: dict[str, list[torch.Tensor | None]]
    tensor_shapes: dict[str, tuple[int, ...]]
    modules: list[tuple[str, nn.Module]]
    parameters: dict[str, torch.Tensor]
    buffers: dict[str, torch.Tensor]
    aliases: dict[str, str]
    roles: dict[tuple[str, int], list[tuple[str, int]]]
    grouped: dict[str, torch.Tensor]
    pads: dict[str, tuple[PaddingDraft, ...]]
    sizes: list[SizeLeaf]
    equations: list[Equation]
    uses: Uses
    attribute_values: dict[tuple[str, str], int]
    scales: list[ScaleUse]
    call_counts: dict[str, int]
    returned: list[Info] = field(default_factory=list)
