"""One criterion per file: a score for each unit of each channel group."""

from latprune.importance.contract import CriterionContract
from latprune.importance.core import (
    GroupedModel,
    Importance,
    LossFunction,
    accumulator_for,
    cross_entropy_loss,
    needs_data,
    register,
    registered,
    score,
)
from latprune.importance.gradients import GradientAccumulator
from latprune.importance.hessian import HessianAccumulator, HessianConfig
from latprune.importance.lamp import LampConfig, lamp_scores
from latprune.importance.magnitude import MagnitudeConfig
from latprune.importance.ranking import best_units, layer_importance, rank_units
from latprune.importance.reconstruction import ReconstructionConfig
from latprune.importance.sp_lamp import SpLampConfig, sp_lamp_products
from latprune.importance.taylor import TaylorAccumulator, TaylorConfig

__all__ = [
    "CriterionContract",
    "GradientAccumulator",
    "GroupedModel",
    "HessianAccumulator",
    "HessianConfig",
    "Importance",
    "LampConfig",
    "LossFunction",
    "MagnitudeConfig",
    "ReconstructionConfig",
    "SpLampConfig",
    "TaylorAccumulator",
    "TaylorConfig",
    "accumulator_for",
    "best_units",
    "cross_entropy_loss",
    "lamp_scores",
    "layer_importance",
    "needs_data",
    "rank_units",
    "register",
    "registered",
    "score",
    "sp_lamp_products",
]
