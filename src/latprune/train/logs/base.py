"""What a log is: something that is called with the run's progress, and closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from latprune.registry import Registry
from latprune.train.progress import TrainProgress

__all__ = ["LOGS", "TrainLog", "figures", "open_log", "register_log", "registered_logs", "require_log"]


class TrainLog(Protocol):
    """A ``progress`` callback of :func:`~latprune.train.finetune` that is closed at the end."""

    def __call__(self, progress: TrainProgress) -> None:
        """Take one moment of the run in."""

    def close(self) -> None:
        """Write what is left, and let go."""


OpenLog = Callable[[Path, str, Mapping[str, Any]], TrainLog]
"""``open(folder, run, settings)``: a log that keeps what it writes to disk in ``folder``, for the run of that name and those settings."""

LOGS: Registry[OpenLog] = Registry("log", group="latprune.logs", hint="add one with latprune.train.logs.register_log")


def register_log(name: str, open_it: OpenLog) -> OpenLog:
    """Make a log available by name. Another package names its own in the group of entry points ``latprune.logs``."""
    return LOGS.register(name, open_it)


def registered_logs() -> tuple[str, ...]:
    """Names of all logs; their packages need not be installed."""
    return LOGS.names()


def open_log(name: str, folder: str | Path, *, run: str = "fine-tuning", settings: Mapping[str, Any] | None = None) -> TrainLog:
    """Open a log.

    Args:
        name: ``tensorboard``, ``wandb``, ``mlflow`` or a registered one.
        folder: Where it keeps what it writes to disk.
        run: The run's name.
        settings: What the run is (a recipe's ``to_dict()``), for logs that show it.

    Raises:
        InvalidArgumentError: No such log.
        MissingExtraError: Its package is not installed.

    Example:
        >>> log = open_log("tensorboard", "run/logs")  # doctest: +SKIP
        >>> finetune(model, data, recipe, progress=log)  # doctest: +SKIP
        >>> log.close()  # doctest: +SKIP
    """
    return LOGS.get(name)(Path(folder), run, dict(settings or {}))


def require_log(name: str) -> None:
    """Refuse a log that could not be opened, before anything runs.

    A log that has a static method ``require`` says itself what it needs.

    Raises:
        InvalidArgumentError: No such log.
        MissingExtraError: Its package is not installed.
    """
    require = getattr(LOGS.get(name), "require", None)
    if require is not None:
        require()


def figures(progress: TrainProgress) -> dict[str, float]:
    """What is written of one moment, by the name of its curve."""
    found = {
        "train/loss": progress.loss,
        "train/learning_rate": progress.learning_rate,
        "train/examples_per_second": progress.examples_per_second,
    }
    if progress.accuracy is not None:
        found["evaluation/accuracy"] = progress.accuracy
    return found
