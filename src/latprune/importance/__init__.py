"""One criterion per file: a score for each unit of each channel group."""

from latprune.importance.activations import ActivationPlace, read_activations
from latprune.importance.bn_scale import BNScaleConfig
from latprune.importance.chip import CHIPConfig, channel_independence
from latprune.importance.contract import CriterionContract
from latprune.importance.core import (
    GroupedModel,
    Importance,
    LossFunction,
    Readings,
    accumulator_for,
    check_criterion,
    check_scorable,
    criterion_type,
    cross_entropy_loss,
    follows_dense,
    get_criterion,
    needs_data,
    needs_gradients,
    read,
    reads_inputs,
    register,
    registered,
    registered_criteria,
    score,
)
from latprune.importance.divergence import DivergenceConfig, Divergences, width_curve
from latprune.importance.fpgm import FPGMConfig
from latprune.importance.gradients import GradientAccumulator
from latprune.importance.hessian import HessianAccumulator, HessianConfig
from latprune.importance.hrank import HRankConfig
from latprune.importance.lamp import LampConfig, lamp_scores
from latprune.importance.magnitude import L1Config, MagnitudeConfig
from latprune.importance.measured_values import keeping_values
from latprune.importance.random_scores import RandomConfig
from latprune.importance.ranking import best_units, layer_importance, rank_units
from latprune.importance.sp_lamp import SpLampConfig, sp_lamp_products
from latprune.importance.taylor import TaylorAccumulator, TaylorConfig

__all__ = [
    "ActivationPlace",
    "BNScaleConfig",
    "CHIPConfig",
    "CriterionContract",
    "DivergenceConfig",
    "Divergences",
    "FPGMConfig",
    "GradientAccumulator",
    "GroupedModel",
    "HessianAccumulator",
    "HRankConfig",
    "HessianConfig",
    "Importance",
    "L1Config",
    "LampConfig",
    "LossFunction",
    "MagnitudeConfig",
    "RandomConfig",
    "Readings",
    "SpLampConfig",
    "TaylorAccumulator",
    "TaylorConfig",
    "accumulator_for",
    "best_units",
    "channel_independence",
    "check_criterion",
    "check_scorable",
    "criterion_type",
    "cross_entropy_loss",
    "get_criterion",
    "keeping_values",
    "lamp_scores",
    "layer_importance",
    "needs_data",
    "follows_dense",
    "needs_gradients",
    "rank_units",
    "read",
    "reads_inputs",
    "read_activations",
    "register",
    "registered",
    "registered_criteria",
    "score",
    "sp_lamp_products",
    "width_curve",
]
