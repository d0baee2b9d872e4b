"""Curves for MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latprune.extras import importing
from latprune.train.logs.base import figures
from latprune.train.progress import TrainProgress

__all__ = ["MlflowLog"]

_LONGEST = 500
"""Characters of a parameter's value that every MLflow server takes."""


class MlflowLog:
    """One run at the server that ``MLFLOW_TRACKING_URI`` names, in the experiment of ``MLFLOW_EXPERIMENT_NAME``."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        self.require()
        import mlflow

        self._mlflow = mlflow
        self._run = mlflow.start_run(run_name=run, nested=mlflow.active_run() is not None)
        mlflow.log_params({name: str(value)[:_LONGEST] for name, value in settings.items()})

    @staticmethod
    def require() -> None:
        """Raise MissingExtraError where its package is not installed, BrokenPackageError where it cannot be imported."""
        with importing("mlflow", "logs-mlflow"):
            import mlflow  # noqa: F401

    def __call__(self, progress: TrainProgress) -> None:
        """Send the figures of one moment."""
        self._mlflow.log_metrics(figures(progress), step=progress.step, run_id=self._run.info.run_id)

    def close(self) -> None:
        """End the run."""
        self._mlflow.end_run()
