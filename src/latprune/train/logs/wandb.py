"""Curves for Weights & Biases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latprune.extras import importing
from latprune.train.logs.base import figures
from latprune.train.progress import TrainProgress

__all__ = ["WandbLog"]


class WandbLog:
    """One run of the project that ``WANDB_PROJECT`` names; its account and server are wandb's own settings."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        self.require()
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(dir=str(folder), name=run, config=dict(settings), resume="allow")

    @staticmethod
    def require() -> None:
        """Raise MissingExtraError where its package is not installed, BrokenPackageError where it cannot be imported."""
        with importing("wandb", "logs-wandb"):
            import wandb  # noqa: F401

    def __call__(self, progress: TrainProgress) -> None:
        """Send the figures of one moment."""
        self._run.log(figures(progress), step=progress.step)

    def close(self) -> None:
        """End the run."""
        self._run.finish()
