"""The scores of a traced model, and the registry that leads from a configuration's type to the criterion that computes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup, Kernel

if TYPE_CHECKING:
    from latprune.importance.gradients import GradientAccumulator

__all__ = [
    "Blocks",
    "GroupedModel",
    "Importance",
    "LossFunction",
    "Scores",
    "accumulator_for",
    "cross_entropy_loss",
    "needs_data",
    "register",
    "registered",
    "score",
]

Scores = npt.NDArray[np.float64]
"""``(units,)``: one number for each unit of a group, larger is more important."""
Blocks = tuple[str, ...]
"""Removable blocks, outermost first: what hangs on them counts only while all are present."""
LossFunction = Callable[[nn.Module, Any], Tensor]
"""Takes the model and one batch, returns the scalar loss."""


class GroupedModel(Protocol):
    """What a criterion reads of a traced model; :class:`latprune.graph.ModelGraph` has it."""

    @property
    def groups(self) -> Mapping[str, ChannelGroup]:
        """Channel groups by name."""

    @property
    def kernels(self) -> Mapping[str, Kernel]:
        """Kernels by name, in the order in which they run."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Importance:
    """Scores of all units of all groups.

    Attributes:
        units: Group -> ``(units,)`` float64, at least 0: ranks the units of the group and is comparable between groups.
        shares: ``(group, blocks)`` -> ``(units,)``: the part of the group's score that is lost once one of ``blocks`` is removed
            (``()`` for the part that hangs on no block). The shares of a group add up to its ``units``.
    """

    units: Mapping[str, Scores]
    shares: Mapping[tuple[str, Blocks], Scores]

    def __post_init__(self) -> None:
        for name, values in self.units.items():
            bad = int(np.count_nonzero(~np.isfinite(values)))
            if bad:
                raise InvalidArgumentError(
                    f"the importance of group '{name}' is NaN or infinite at {bad} of {values.size} units (from unit "
                    f"{int(np.flatnonzero(~np.isfinite(values))[0])} on); check the weights, the gradients and the loss"
                )
            if values.size and float(values.min()) < 0.0:
                raise InvalidArgumentError(f"the importance of group '{name}' (minimum {float(values.min())}) must not be negative")
        for (name, _), values in self.shares.items():
            if name not in self.units or self.units[name].shape != values.shape:
                raise InvalidArgumentError(f"the share of group '{name}' (shape {values.shape}) must have the shape of the group's scores")

    def shares_of(self, group: str) -> dict[Blocks, Scores]:
        """The shares of one group by the blocks that they hang on."""
        return {blocks: values for (name, blocks), values in self.shares.items() if name == group}


ConfigT = TypeVar("ConfigT")
Criterion = Callable[[nn.Module, GroupedModel, ConfigT, Iterable[Any] | None, LossFunction], Importance]
AccumulatorFactory = Callable[[nn.Module, GroupedModel, ConfigT], "GradientAccumulator"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    criterion: Criterion[Any]
    accumulator: AccumulatorFactory[Any] | None
    needs_data: bool


_CRITERIA: dict[type, _Entry] = {}


def register(
    config_type: type[ConfigT], *, accumulator: AccumulatorFactory[ConfigT] | None = None, needs_data: bool | None = None
) -> Callable[[Criterion[ConfigT]], Criterion[ConfigT]]:
    """Make a function the criterion of a configuration type.

    The function takes ``(model, graph, config, data, loss)`` and returns an :class:`Importance`; it leaves the model as it found it and
    gives the same scores for the same input.

    Args:
        config_type: Type of the configurations; a subclass's configuration is taken too.
        accumulator: Builds ``(model, graph, config) -> GradientAccumulator`` where the criterion can be fed by a caller's backward passes.
        needs_data: Whether the criterion needs batches; None: when it has an accumulator.

    Example:
        >>> @dataclass(frozen=True)
        ... class OnesConfig:
        ...     value: float = 1.0
        >>> @register(OnesConfig)
        ... def score_ones(model, graph, config, data, loss):
        ...     units = {name: np.full(group.units, config.value) for name, group in graph.groups.items()}
        ...     return Importance(units=units, shares={(name, ()): values for name, values in units.items()})
    """

    def decorate(criterion: Criterion[ConfigT]) -> Criterion[ConfigT]:
        needed = accumulator is not None if needs_data is None else needs_data
        _CRITERIA[config_type] = _Entry(criterion=criterion, accumulator=accumulator, needs_data=needed)
        return criterion

    return decorate


def _entry(config: object) -> _Entry:
    for config_type in type(config).__mro__:
        if config_type in _CRITERIA:
            return _CRITERIA[config_type]
    known = ", ".join(sorted(entry.__name__ for entry in _CRITERIA))
    raise InvalidArgumentError(f"config (={config!r}) must be the configuration of a registered criterion: {known}")


def needs_data(config: object) -> bool:
    """Whether the criterion of ``config`` needs batches (gradients of the loss)."""
    return _entry(config).needs_data


def accumulator_for(model: nn.Module, graph: GroupedModel, config: object) -> GradientAccumulator:
    """An accumulator of the criterion of ``config``, to be fed by the caller's own backward passes.

    Raises:
        InvalidArgumentError: The criterion takes no gradients.
    """
    entry = _entry(config)
    if entry.accumulator is None:
        raise InvalidArgumentError(f"config (={config!r}) scores without gradients: there is nothing to accumulate, call score()")
    return entry.accumulator(model, graph, config)


def registered() -> tuple[type, ...]:
    """Configuration types that have a criterion."""
    return tuple(_CRITERIA)


def cross_entropy_loss(model: nn.Module, batch: Any) -> Tensor:
    """Mean cross-entropy of ``model(inputs)`` for a batch ``(inputs, labels)``: the default loss."""
    inputs, labels = batch
    return torch.nn.functional.cross_entropy(model(inputs), labels)


def score(
    model: nn.Module,
    graph: GroupedModel,
    config: object,
    data: Iterable[Any] | None = None,
    *,
    loss: LossFunction = cross_entropy_loss,
) -> Importance:
    """Score every unit of every channel group by the criterion that belongs to ``type(config)``.

    Args:
        model: The model that was traced; left as it was found (weights, gradients, buffers, training mode).
        graph: Its traced graph.
        config: Configuration of a registered criterion, such as ``SpLampConfig()`` or ``TaylorConfig()``.
        data: Batches for the criteria that need gradients; each is handed to ``loss``.
        loss: Scalar loss of the model on one batch.

    Raises:
        InvalidArgumentError: No criterion for this type; the criterion needs data and none is given; a weight, a gradient or a score is
            NaN or infinite (the message names the tensor).

    Example:
        >>> importance = score(model, graph, SpLampConfig())  # doctest: +SKIP
        >>> importance.units["layer1.0.conv1"].max()  # doctest: +SKIP
        1.0
    """
    return _entry(config).criterion(model, graph, config, data, loss)
