"""Where two networks are compared: at those outputs whose shapes do not follow from the images, or at what a pruned sub-module returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.containers import rebuilt
from latprune.importance.core import GroupedModel
from latprune.importance.outputs import JUDGES, MEASURES, Measure, class_scores
from latprune.modes import preserved_modes
from latprune.train.contracts import answer

__all__ = ["Compared", "compared_at", "moved_images"]

_IMAGE = 8
"""Rows and columns from which on an input counts as images."""

Path = tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """The place.

    Attributes:
        within: Path of the sub-module whose results are compared; empty for the model's outputs.
        paths: Which tensors of the outputs are compared; None for the outputs as they are.
    """

    within: str = ""
    paths: frozenset[Path] | None = None

    def of(self, model: nn.Module, inputs: Any, *, batch: int | None = None) -> Any:
        """What ``model`` gives there for ``inputs``.

        Raises:
            InvalidArgumentError: The model fails on them; the batch is named.
        """
        results: list[Any] = []
        handle = None
        if self.within:
            # Copies, because what follows may write into them.
            handle = model.get_submodule(self.within).register_forward_hook(
                lambda module, given, result: results.append(
                    rebuilt(result, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)
                )
            )
        try:
            output = answer(model, inputs, batch=batch)
        finally:
            if handle is not None:
                handle.remove()
        if self.within:
            output = results[0] if len(results) == 1 else results
        return output if self.paths is None else [tensor for path, tensor in _tensors(output) if path in self.paths]

    def measure(self, name: str, *, judge: bool = False) -> Measure:
        """The measure called ``name`` as it applies there: a part of the outputs, and features, are no class scores."""
        return (JUDGES if judge else MEASURES)[name if self.paths is None else "error"]


def compared_at(model: nn.Module, graph: GroupedModel, inputs: Any, measure: str) -> Compared:
    """Find the place where the divergence of ``model`` can be measured: its outputs for other images of the same size tell.

    Args:
        model: The model; left as it was found.
        graph: Its graph.
        inputs: A few examples.
        measure: Name of the measure.

    Raises:
        InvalidArgumentError: No output has a shape of its own, as those of a detector after its threshold; says what to do.
    """
    with preserved_modes(model), preserved_state(model), preserved_buffers(model), torch.no_grad():
        model.eval()
        outputs = [answer(model, each, batch=0) for each in (inputs, moved_images(inputs))]
        first, second = (class_scores(output) if measure != "error" else None for output in outputs)
        if measure == "kl" or (first is not None and second is not None and first.numel() and first.shape == second.shape):
            return Compared()
        steady = _steady(outputs)
        if all(path in steady for output in outputs for path, _ in _tensors(output)) and steady:
            return Compared()
        within = _within(model, graph)
        if within:
            found = Compared(within=within)
            inside = _steady([found.of(model, each) for each in (inputs, moved_images(inputs))])
            if inside:
                return Compared(within=within, paths=frozenset(inside))
    if steady:
        return Compared(paths=frozenset(steady))
    raise InvalidArgumentError(
        f"the outputs of the model ({type(model).__name__}) have no floating-point tensor whose shape is the same for all images (boxes "
        "after a threshold, say), so how far a cut moves them cannot be measured: prune the sub-module that makes the maps (within=, "
        "--within), wrap the model so that it returns the maps before the threshold, or take another criterion (such as "
        "score=SpLampConfig(), --criterion sp_lamp), or one of your own (latprune.importance.register)"
    )


def _within(model: nn.Module, graph: GroupedModel) -> str:
    """Path of the sub-module that is pruned, where the model has one there."""
    plan = getattr(graph, "plan", None)
    path = str(getattr(graph if plan is None else plan, "within", "") or "")
    return path if path in dict(model.named_modules()) else ""


def _steady(outputs: list[Any]) -> set[Path]:
    """Paths whose tensors have one shape in all outputs, and are not empty."""
    shapes: dict[Path, list[torch.Size]] = {}
    counts = []
    for output in outputs:
        found = list(_tensors(output))
        counts.append([path for path, _ in found])
        for path, tensor in found:
            shapes.setdefault(path, []).append(tensor.shape)
    return {
        path
        for path, seen in shapes.items()
        if len(set(seen)) == 1 and seen[0].numel() and len({count.count(path) for count in counts}) == 1
    }


def _tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Floating-point tensors with their paths; the mappings of a list, one for each image, share theirs."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield path, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _tensors(entry, (*path, str(key)))
    elif isinstance(value, (tuple, list)):
        alike = all(isinstance(entry, Mapping) for entry in value)
        for number, entry in enumerate(value):
            yield from _tensors(entry, (*path, "*" if alike else str(number)))


def moved_images(inputs: Any) -> Any:
    """Images mirrored, and moved by a sixteenth of their size around their edges; anything else as it is."""
    if isinstance(inputs, Mapping):
        return {key: moved_images(value) for key, value in inputs.items()}
    if not isinstance(inputs, Tensor) or inputs.ndim != 4 or not inputs.is_floating_point() or min(inputs.shape[2:]) < _IMAGE:
        return inputs
    rows, columns = (max(1, round(size / 16)) for size in inputs.shape[2:])
    return inputs.flip(-1).roll((rows, -columns), (2, 3))
