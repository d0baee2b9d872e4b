"""Dimensions that a written file leaves open: the batch, and height and width of images."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from latprune.errors import EngineError, InvalidArgumentError
from latprune.export.signature import Inputs, call
from latprune.quiet import in_a_line

__all__ = ["OpenDimensions", "doubled", "shapes_by_parameter"]

_IMAGE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenDimensions:
    """Which dimensions are open: the first of all inputs (``batch``), and height and width of images (``size``)."""

    batch: bool
    size: bool

    def of(self, rank: int, *, given: bool = True) -> dict[int, str]:
        """The open dimensions of a tensor of that rank; of what is returned only the batch is known."""
        dims = {0: "batch"} if self.batch and rank else {}
        return dims | ({2: "height", 3: "width"} if self.size and rank == _IMAGE and given else {})

    def sizes(self, tensor: torch.Tensor) -> dict[int, Any]:
        """The open dimensions of an input as ``torch.export`` takes them.

        What a model asks of its height and width (to divide by 32, say) is not known; a check at other sizes tells whether they are open.
        """
        kinds: dict[str, Any] = {"batch": torch.export.Dim("batch"), "height": torch.export.Dim.AUTO, "width": torch.export.Dim.AUTO}
        return {dim: kinds[name] for dim, name in self.of(tensor.dim()).items()}

    def cases(self, inputs: Inputs) -> list[tuple[str, Inputs]]:
        """Inputs of other sizes that the file must take, and what they are."""
        found: list[tuple[str, Inputs]] = []
        if self.batch:
            found.append((" at twice the batch", doubled(inputs, (0,), 1)))
        if self.size:
            if not any(isinstance(leaf, torch.Tensor) and leaf.dim() == _IMAGE for leaf in pytree.tree_leaves(inputs)):
                raise InvalidArgumentError("dynamic_size opens height and width of images, and no input is one (of four dimensions)")
            found.append((" at twice the height and width", doubled(inputs, (2, 3), _IMAGE)))
        return found

    def require_runs(self, model: nn.Module, inputs: Inputs) -> None:
        """Run the model at the other sizes.

        Raises:
            EngineError: It does not run at one.
            InvalidArgumentError: Height and width are to be open, and no input is an image.
        """
        for case, other in self.cases(inputs):
            try:
                call(model, other)
            except Exception as error:  # whatever the model's code raises
                raise EngineError(
                    f"the model itself does not run{case}, so that dimension cannot be left open: {in_a_line(error)}"
                ) from error


def doubled(inputs: Inputs, dims: tuple[int, ...], rank: int) -> Inputs:
    """Inputs with twice the places along ``dims``; tensors of fewer dimensions than ``rank`` stay."""

    def double(value: torch.Tensor) -> torch.Tensor:
        for dim in dims if value.dim() == rank or (rank == 1 and value.dim()) else ():
            value = torch.cat([value, value.flip(dim)], dim)
        return value

    found: Inputs = pytree.tree_map_only(torch.Tensor, double, inputs)
    return found


def shapes_by_parameter(model: nn.Module, shapes: tuple[Any, ...]) -> tuple[Any, ...]:
    """Open dimensions by input as they follow ``forward``'s parameters.

    One parameter, ``*tensors``, holds all of them in a captured program and in what calls a model flatly.
    """
    listed = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(model.forward).parameters.values())
    return (shapes,) if listed else shapes
