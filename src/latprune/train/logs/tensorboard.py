"""Curves for TensorBoard: ``tensorboard --logdir FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latprune.extras import importing
from latprune.train.logs.base import figures
from latprune.train.progress import TrainProgress

__all__ = ["TensorBoardLog"]


class TensorBoardLog:
    """Event files in ``folder/run``. A resumed run goes on where it was: what was written beyond that step is taken back."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        self.require()
        from torch.utils.tensorboard import SummaryWriter

        self._open = SummaryWriter
        self._folder = folder / run
        self._settings = settings
        self._writer: Any = None

    @staticmethod
    def require() -> None:
        """Raise MissingExtraError where its package is not installed, BrokenPackageError where it cannot be imported."""
        with importing("tensorboard", "logs"):
            import tensorboard  # noqa: F401
            import torch.utils.tensorboard  # noqa: F401

    def __call__(self, progress: TrainProgress) -> None:
        """Write the figures of one moment."""
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=progress.step)
            text = "\n".join(f"    {name}: {value}" for name, value in self._settings.items())
            self._writer.add_text("settings", text, progress.step)
        for name, value in figures(progress).items():
            self._writer.add_scalar(name, value, progress.step)

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
