"""What a recovery strategy gets and gives, and the registry of names."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from latprune.graph import ModelGraph, Selection
from latprune.recovery.report import LayerRecovery
from latprune.registry import ClassRegistry

__all__ = ["Progress", "Recovery", "Situation", "Watched", "get_strategy", "register_strategy", "strategies", "strategy_type"]

Progress = Callable[[str], None]


class Watched(Protocol):
    """The error of the pruned network as it is, on the images that decide.

    Attributes:
        before: The error with the values of the start; None where nothing can be compared.
    """

    before: float | None

    @property
    def place(self) -> str:
        """What is compared, in words (``outputs``); empty where nothing can be."""

    def error(self) -> float | None:
        """Squared error relative to the dense network's variation, not finite where the pruned network's results are not; None where
        nothing can be compared. Where the place turns out not to be comparable, another one is taken from then on.
        """


@dataclass(slots=True, kw_only=True, eq=False)
class Situation:
    """What a strategy works on.

    Attributes:
        pruned: The pruned network, in evaluation mode; the strategy changes its weights in place.
        dense: The dense network; it is not changed.
        graph: Trace of the dense network.
        selection: What the pruned network was cut to.
        fitted: Inputs of the batches that are fitted to.
        held_out: Inputs of the batches that decide whether a change stands; may be empty.
        seed: Seed of everything random.
        say: Takes a line of text as the work goes on.
        watch: Says how far the pruned network is from the dense one as a whole; None where nobody watches.
    """

    pruned: nn.Module
    dense: nn.Module
    graph: ModelGraph
    selection: Selection
    fitted: list[Any]
    held_out: list[Any]
    seed: int
    say: Progress = field(default=lambda text: None)
    watch: Watched | None = None

    @property
    def within(self) -> str:
        """Path of the sub-module that was pruned; empty for the whole model."""
        return str(self.graph.plan.within or "")


class Recovery(ABC):
    """A strategy: changes weights and biases of the pruned network so that it computes what the dense one does.

    A strategy adds no parameter and changes no shape, is deterministic for a seed, leaves the dense network as it was, and writes a layer's
    weights only once the new ones are complete, so that an interruption leaves a working network. It raises
    :class:`latprune.errors.InvalidArgumentError` for options out of range, and names what it leaves alone with the reason.
    """

    name: str = ""
    needs_data: bool = True
    checks_layers: bool = False
    """Whether each layer's change is checked on its own, so that it may run where the networks cannot be compared as a whole."""

    @abstractmethod
    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Do it; what was done to each layer, in the order in which the layers run."""

    def settings(self) -> dict[str, Any]:
        """The options, for the record."""
        return {}

    @property
    def stand_in(self) -> Recovery:
        """What does for this strategy where several networks are compared by what recovery makes of them: itself, or a shorter one."""
        return self


_STRATEGIES = ClassRegistry[Recovery](
    Recovery,
    "strategy",
    group="latprune.recovery",
    hint="give a Recovery object, or add a strategy with latprune.recovery.register_strategy",
)
"""Strategies by name."""


def register_strategy(cls: type[Recovery]) -> type[Recovery]:
    """Make a strategy known under its name (a class decorator).

    Another package names its strategy in the group of entry points ``latprune.recovery``.

    Raises:
        InvalidArgumentError: Another strategy has the name.
    """
    return _STRATEGIES.add(cls)


def strategies() -> tuple[str, ...]:
    """Names of all strategies."""
    return _STRATEGIES.names()


def strategy_type(name: str) -> type[Recovery]:
    """The class of the strategy called ``name``.

    Raises:
        InvalidArgumentError: No such strategy.
    """
    return _STRATEGIES.get(name)


def get_strategy(strategy: str | Recovery, **options: Any) -> Recovery:
    """A strategy by its name, with its default options where none are given; an object is handed on.

    Raises:
        InvalidArgumentError: No strategy has this name, or an option that it does not have.
    """
    return _STRATEGIES.make(strategy, options)
