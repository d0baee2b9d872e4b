"""Scores of a network between stages, in units of the dense one."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.graph.types import Selection
from latprune.importance import GradientAccumulator, Importance, LossFunction, Readings, accumulator_for, check_scorable, read
from latprune.importance import score as score_importance
from latprune.importance.gradients import accumulate
from latprune.surgery import present
from latprune.train.contracts import batches_of

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.importance import GroupedModel

__all__ = ["Scorer", "only_present"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Begun:
    """Scores that have seen the first batch of their data."""

    data: Iterable[Any]
    loss: LossFunction
    accumulator: GradientAccumulator
    versions: list[int]


class Scorer:
    """Scores the model as it is, cut or masked, in the dense network's units; gathers gradients of the caller's own training.

    Args:
        model: The model, which may be cut between calls.
        graph: The dense network's graph.
        config: The criterion's configuration; None scores nothing.
    """

    def __init__(self, model: nn.Module, graph: ModelGraph, config: object | None) -> None:
        self._model = model
        self._graph = graph
        self._config = config
        self._accumulator: GradientAccumulator | None = None
        self._begun: _Begun | None = None
        self.readings: Readings | None = None
        """Where the last scores are one of several readings: all of them, with their judge."""
        self._last: _Scored | None = None

    def check(self, cut_to: Selection, batch: Any) -> None:
        """Refuse a model that the criterion cannot score, as far as its first batch tells; None for a criterion that needs none.

        Raises:
            InvalidArgumentError: It cannot; the criterion says why.
        """
        if self._config is not None:
            check_scorable(self._model, self._seen(cut_to), self._config, batch)

    def _seen(self, cut_to: Selection) -> GroupedModel:
        """What the criterion sees: while nothing is cut the dense graph itself, for some criteria follow its recorded run."""
        return present(self._graph, cut_to) if cut_to.kept or cut_to.removed_blocks else self._graph

    def accumulate(self, cut_to: Selection) -> None:
        """Add the gradients that the parameters hold now."""
        if self._accumulator is None:
            self._accumulator = accumulator_for(self._model, present(self._graph, cut_to), self._config)
        self._accumulator.update()

    def begin(self, cut_to: Selection, data: Iterable[Any], first: Any, loss: LossFunction) -> None:
        """Score ``first``, the first batch of ``data``, already; :meth:`importance` of the same data and loss goes on with the second one.

        Raises:
            InvalidArgumentError: The loss fails on it, is no finite scalar, or reaches no parameter that is scored.
        """
        accumulator = accumulator_for(self._model, present(self._graph, cut_to), self._config)
        accumulate(accumulator, [first], loss, batches=None)
        self._begun = _Begun(data=data, loss=loss, accumulator=accumulator, versions=self._versions())

    def _versions(self) -> list[int]:
        """How often each tensor of the model was written to."""
        return [value._version for value in (*self._model.parameters(), *self._model.buffers())]

    def _continued(self, data: Iterable[Any] | None, loss: LossFunction, batches: int | None) -> Importance | None:
        """Scores that go on from :meth:`begin`; None where it was of something else, or the model has changed since."""
        begun, self._begun = self._begun, None
        if begun is None or begun.data is not data or begun.loss is not loss or begun.versions != self._versions():
            return None
        own = getattr(self._config, "batches", None)
        most = min((count for count in (batches, own) if count is not None), default=None)
        return accumulate(begun.accumulator, batches_of(begun.data, most, start=1), loss, batches=None)

    def state_dict(self) -> dict[str, Tensor]:
        """What was gathered so far, as tensors; empty where nothing was."""
        return self._accumulator.state_dict() if self._accumulator is not None else {}

    def load_state_dict(self, cut_to: Selection, state: Mapping[str, Tensor]) -> None:
        """Go on from what was gathered when ``state`` was saved.

        Raises:
            InvalidArgumentError: It was gathered by another criterion, or for another network.
        """
        self._accumulator = None
        if state:
            self._accumulator = accumulator_for(self._model, present(self._graph, cut_to), self._config)
            self._accumulator.load_state_dict(state)

    def decay(self, factor: float) -> None:
        """Let what was gathered so far count ``factor`` of what it did."""
        if self._accumulator is not None:
            self._accumulator.decay(factor)

    def reset(self) -> None:
        """Forget what was gathered and scored: the model's tensors are others now, or a new stage begins."""
        self._accumulator = self._begun = None
        self._last = None

    @property
    def gathered(self) -> bool:
        """Whether there are gradients of the caller's own training."""
        return self._accumulator is not None

    def importance(self, cut_to: Selection, data: Iterable[Any] | None, loss: LossFunction, batches: int | None) -> Importance | None:
        """Scores of the dense network's units; those that the model no longer has score 0.

        The same question again, of the same values of the model, has the same answer and is not computed anew: a step after an
        exploration asks it.

        Args:
            cut_to: What the model was cut to.
            data: Batches for a criterion that needs them, unless gradients were gathered.
            loss: Scalar loss of ``(model, batch)``.
            batches: Take so many of them; None takes all.
        """
        self.readings = None
        if self._config is None:
            return None
        alive = present(self._graph, cut_to).alive
        if self._accumulator is not None:
            self._accumulator.reduce()
            return self._accumulator.importance().over(alive)
        values = _digest(self._model)
        if self._last is not None and self._last.answers(cut_to, data, loss, batches, values):
            self.readings = self._last.readings
            return self._last.importance
        importance = self._scored(self._seen(cut_to), alive, data, loss, batches)
        self._last = _Scored(
            cut_to=cut_to, data=data, loss=loss, batches=batches, values=values, importance=importance, readings=self.readings
        )
        return importance

    def _scored(
        self,
        graph: GroupedModel,
        alive: Mapping[str, npt.NDArray[np.bool_]],
        data: Iterable[Any] | None,
        loss: LossFunction,
        batches: int | None,
    ) -> Importance:
        continued = self._continued(data, loss, batches)
        if continued is not None:
            return continued.over(alive)
        taken = batches_of(data, batches) if data is not None else None
        self.readings = read(self._model, graph, self._config, taken, loss=loss)
        if self.readings is not None:
            self.readings = _Over(self.readings, alive)
            return next(iter(self.readings.importances.values()))
        return score_importance(self._model, graph, self._config, taken, loss=loss).over(alive)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scored:
    """Scores, with what they are an answer to."""

    cut_to: Selection
    data: Iterable[Any] | None
    loss: LossFunction
    batches: int | None
    values: bytes
    importance: Importance
    readings: Readings | None

    def answers(self, cut_to: Selection, data: Iterable[Any] | None, loss: LossFunction, batches: int | None, values: bytes) -> bool:
        """Whether the same was asked of the same values; data are the same where they are the same object."""
        return self.cut_to is cut_to and self.data is data and self.loss is loss and self.batches == batches and self.values == values


def _digest(model: nn.Module) -> bytes:
    """Of the bytes of every parameter and buffer."""
    found = hashlib.blake2b(digest_size=16)
    # A tensor that NumPy has seen can be resized no more, which some models do to their buffers.
    for value in (*model.parameters(), *(buffer.clone() for buffer in model.buffers())):
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()


class _Over:
    """Readings of a cut model in the dense one's units."""

    def __init__(self, readings: Readings, alive: Mapping[str, npt.NDArray[np.bool_]]) -> None:
        self.importances = {name: importance.over(alive) for name, importance in readings.importances.items()}
        self.left_out = readings.left_out
        self.caution = readings.caution
        self.batches = readings.batches
        self.examples = readings.examples
        self.divergences = readings.divergences


def only_present(importance: Importance, selection: Selection) -> Importance:
    """``importance`` with 0 for every unit that ``selection`` leaves out, and without the shares of its removed blocks."""
    found = importance.without(selection.removed_blocks)
    masks = {}
    for name, kept in selection.kept.items():
        mask = np.zeros(found.units[name].shape, dtype=bool)
        mask[kept] = True
        masks[name] = mask
    if not masks:
        return found
    return Importance(
        units={name: values * masks[name] if name in masks else values for name, values in found.units.items()},
        shares={(name, blocks): values * masks[name] if name in masks else values for (name, blocks), values in found.shares.items()},
        curves=found.curves,
    )
