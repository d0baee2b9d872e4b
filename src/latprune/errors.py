"""The error tree: each error names what went wrong, the value, the rule, and what to do, and carries its state; and the warnings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = [
    "BrokenPackageError",
    "BudgetInfeasibleError",
    "CaptureError",
    "CheckpointError",
    "EngineError",
    "FileFormatError",
    "InvalidArgumentError",
    "LatpruneError",
    "MissingExtraError",
    "OverBudgetError",
    "PluginError",
    "RebuiltWarning",
    "SolverLimitError",
    "SolverNotApplicableError",
    "SurgeryError",
    "TableError",
    "TrainingError",
    "UnfinishedRunError",
    "UnwrappedWarning",
]


class LatpruneError(Exception):
    """Base of every error that latprune raises on purpose. ``exit_code`` is what the command line returns."""

    exit_code = 1


class InvalidArgumentError(LatpruneError, ValueError):
    """An argument breaks its rule; the message names the argument, its value and the rule."""

    exit_code = 2


class FileFormatError(LatpruneError, ValueError):
    """A file cannot be read as its format; ``path`` is the place inside the file (e.g. ``costs[0].terms[3].table``)."""

    exit_code = 2

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(f"{path}: {message}" if path else message)
        self.path = path


class MissingExtraError(LatpruneError, ImportError):
    """An optional dependency is not installed; ``extra`` is the extra that brings it."""

    exit_code = 5

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"package '{package}' is not installed; install it with: pip install 'latprune[{extra}]'")
        self.package = package
        self.extra = extra


class BrokenPackageError(LatpruneError, ImportError):
    """An optional dependency is installed, and cannot be imported; the message carries why."""

    exit_code = 5


class PluginError(LatpruneError):
    """What another package offers through an entry point cannot be imported."""

    exit_code = 5


class CaptureError(LatpruneError):
    """A model cannot be captured; the message names the operation or module and what to do."""

    exit_code = 2


class SurgeryError(LatpruneError):
    """A selection cannot be cut, or the pruned network is not equal to the masked one."""


class EngineError(LatpruneError):
    """An inference engine cannot do what is asked of it: a device, a precision, a network that it does not run."""

    exit_code = 2


class TableError(LatpruneError):
    """A latency table lacks an entry or does not fit the network it is asked about."""

    exit_code = 2


class CheckpointError(LatpruneError):
    """A saved result does not fit the model it is loaded into."""

    exit_code = 2


class TrainingError(LatpruneError):
    """Training cannot go on: the loss is no longer a finite number. Carries the place (``epoch``, ``step``) and the learning rate."""

    def __init__(self, message: str, *, epoch: int, step: int, learning_rate: float) -> None:
        super().__init__(message)
        self.epoch = epoch
        self.step = step
        self.learning_rate = learning_rate


class UnfinishedRunError(LatpruneError):
    """What the caller handed over (``fit``, ``evaluate``, a later batch) failed when the model was cut or trained already.

    The model is not put back: what was trained would be lost. What was finished is kept in the run's ``folder`` (None: there was none),
    from which the same call with a freshly built model goes on; ``stage`` is the last one that was cut. The cause is the error itself.
    """

    exit_code = 2

    def __init__(self, message: str, *, folder: Path | None, stage: int) -> None:
        super().__init__(message)
        self.folder = folder
        self.stage = stage


class SolverNotApplicableError(LatpruneError):
    """A solver cannot take this problem (for instance a knapsack with pairwise costs)."""

    exit_code = 5


class SolverLimitError(LatpruneError):
    """A solver's time ended before it found any answer; it may find one in more time."""

    exit_code = 4


class BudgetInfeasibleError(LatpruneError):
    """No choice of widths and blocks meets the limits.

    ``floor`` maps each resource to the lowest value it can reach; ``advice``, the end of the message, says what to do.
    """

    exit_code = 3

    def __init__(self, message: str, *, limit: Mapping[str, float], floor: Mapping[str, float], advice: str = "") -> None:
        super().__init__(f"{message}. {advice}" if advice else message)
        self.advice = advice
        self.limit = dict(limit)
        self.floor = dict(floor)


class OverBudgetError(LatpruneError):
    """The delivered network measured over its budget."""

    exit_code = 6

    def __init__(self, message: str, *, budget_ms: float, measured_ms: float) -> None:
        super().__init__(message)
        self.budget_ms = budget_ms
        self.measured_ms = measured_ms


class UnwrappedWarning(UserWarning):
    """A wrapper (``torch.compile``, ``DataParallel``) was taken off a model; the message says which, and what becomes of it."""


class RebuiltWarning(UserWarning):
    """A network was rebuilt by its class since it was pruned, and is saved as a captured program; the message says what that means."""
