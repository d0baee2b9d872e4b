"""The pruner: proposes, masks and cuts networks under a budget, in the steps of a schedule, and runs the whole way to a result."""

from latprune.pruning.budget import Budget
from latprune.pruning.comparison import Compared, compare
from latprune.pruning.contract import MethodContract
from latprune.pruning.exploration import Exploration
from latprune.pruning.exploring import explore
from latprune.pruning.finetuning import fit_with, training_threads
from latprune.pruning.fitting import Evaluate, Fit, FitContext, TrainingDriver, driver_of
from latprune.pruning.picked import PickedNetwork
from latprune.pruning.proposal import StageProposal
from latprune.pruning.pruner import Pruner
from latprune.pruning.result import Result
from latprune.pruning.run import prune
from latprune.pruning.soft_training import MaskChange, MaskedTraining
from latprune.pruning.stage import StageReport
from latprune.pruning.verification import verify

__all__ = [
    "Budget",
    "Compared",
    "Evaluate",
    "Exploration",
    "Fit",
    "FitContext",
    "MaskChange",
    "MaskedTraining",
    "MethodContract",
    "PickedNetwork",
    "Pruner",
    "Result",
    "StageProposal",
    "StageReport",
    "TrainingDriver",
    "compare",
    "driver_of",
    "explore",
    "fit_with",
    "prune",
    "training_threads",
    "verify",
]
