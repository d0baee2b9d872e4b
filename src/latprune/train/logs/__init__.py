"""Where a training run writes its curves: TensorBoard, Weights & Biases, MLflow, or a log of your own."""

from __future__ import annotations

from latprune.registry import offer
from latprune.train.logs.base import LOGS, TrainLog, open_log, register_log, registered_logs, require_log

__all__ = ["LOGS", "TrainLog", "open_log", "register_log", "registered_logs", "require_log"]

# Imported when asked for: none of their packages is needed otherwise.
offer(LOGS.group, "tensorboard", "latprune.train.logs.tensorboard:TensorBoardLog")
offer(LOGS.group, "wandb", "latprune.train.logs.wandb:WandbLog")
offer(LOGS.group, "mlflow", "latprune.train.logs.mlflow:MlflowLog")
