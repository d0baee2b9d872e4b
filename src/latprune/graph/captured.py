"""What the rest of the library asks of a captured network: one whose operations are data, without the class that they came from.

:class:`latprune.program.ProgramModule` is one. Tracing, surgery and training know it by this contract alone, so that programs may use
tracing and not the other way round.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from latprune.registry import Registry

__all__ = ["FORMS", "CapturedForm", "CapturedNetwork", "captured_form"]

FORMS = ("class", "program")
"""What a pruned model can be: the user's class, or a captured program."""


class CapturedNetwork(nn.Module, ABC):
    """A network that runs recorded steps, each with a number of its own that stays when others go.

    Attributes:
        cumulative_statistics: Batch norms in training mode average over all batches since their counters were reset.
    """

    cumulative_statistics: bool

    # -- tracing ---------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def running(self) -> int:
        """Number of the step that runs now, or ran last."""

    @abstractmethod
    def grouped_weights(self) -> dict[str, int]:
        """Weights of grouped convolutions that are computed from a parameter first (standardised weights): their groups."""

    @abstractmethod
    def name_sizes(self, reason: str) -> str:
        """A reason, with the numbers that state sizes named by the step that states them."""

    @abstractmethod
    def scales_shortcut(self, join: int, operand: int) -> bool:
        """Whether the sum at step ``join`` would keep a factor on its shortcut once the branch, its operand ``operand``, is gone."""

    @abstractmethod
    def lost_tensors(self, join: int, operand: int, skipped: Sequence[int]) -> tuple[str, ...]:
        """Parameters, buffers and constants that only the branch reads; see :meth:`remove_branch`."""

    # -- surgery ---------------------------------------------------------------------------------------------------

    @abstractmethod
    def remove_branch(self, join: int, operand: int, skipped: Iterable[int] = ()) -> None:
        """Put the other operand in the place of the sum ``join``; ``skipped`` steps after it hand their argument on.

        Raises:
            SurgeryError: There is no such sum.
        """

    @abstractmethod
    def remove_dead(self, tensors: Iterable[str]) -> None:
        """Drop the steps that nothing depends on, and ``tensors`` that went with them."""

    # -- norms -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def norm_scopes(self) -> list[Any]:
        """The modules that hold the statistics of batch norms and count their batches."""

    @abstractmethod
    def norm_eps(self, path: str) -> float | None:
        """What the batch norm of a module adds to its variance; None where it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedForm:
    """How a model becomes a captured network.

    Attributes:
        capture: ``(model, example_inputs)`` -> the captured network; raises CaptureError.
        holds: Whether an operator overload (``aten.add.Tensor``) can stand in a captured network.
    """

    capture: Callable[[nn.Module, Any], CapturedNetwork]
    holds: Callable[[str], bool]


_CAPTURED = Registry[CapturedForm]("form", group="latprune.forms")


def captured_form() -> CapturedForm:
    """The form ``program``, imported when it is asked for."""
    return _CAPTURED.get("program")
