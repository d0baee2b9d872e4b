"""Fine-tuning over Accelerate: recipes, a resumable loop, evaluation, batch-norm recalibration."""

from latprune.train.batches import Batches
from latprune.train.calibration import recalibrate_batch_norm
from latprune.train.driver import Driver, DriverState, ResumableDriver
from latprune.train.evaluation import evaluate
from latprune.train.loop import finetune
from latprune.train.papers import RECIPES, recipe
from latprune.train.progress import ProgressPrinter, TrainProgress
from latprune.train.recipe import SGD, AdamW, Constant, Cosine, Distillation, Linear, Recipe, Steps
from latprune.train.run import TrainReport
from latprune.train.schedule import learning_rate
from latprune.train.state import EpochRecord
from latprune.train.teaching import KeptChannels, matching_loss

__all__ = [
    "RECIPES",
    "SGD",
    "AdamW",
    "Batches",
    "Constant",
    "Cosine",
    "Distillation",
    "Driver",
    "DriverState",
    "EpochRecord",
    "KeptChannels",
    "Linear",
    "ProgressPrinter",
    "Recipe",
    "ResumableDriver",
    "Steps",
    "TrainProgress",
    "TrainReport",
    "evaluate",
    "finetune",
    "learning_rate",
    "matching_loss",
    "recalibrate_batch_norm",
    "recipe",
]
