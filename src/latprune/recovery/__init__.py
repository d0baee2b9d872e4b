"""Accuracy after the cut without training: unlabelled images, least squares, one strategy per file."""

from latprune.recovery.contract import Recovery, Situation, get_strategy, register_strategy, strategies, strategy_type
from latprune.recovery.criterion import ReconstructionConfig
from latprune.recovery.distil import Distil
from latprune.recovery.elimination import reconstruction_ranking
from latprune.recovery.features import kept_channels, stream_modules
from latprune.recovery.fold import Fold
from latprune.recovery.norms import Norms
from latprune.recovery.one_pass import OnePassMap
from latprune.recovery.recover import recover
from latprune.recovery.refit import Refit
from latprune.recovery.report import LayerRecovery, RecoveryReport
from latprune.recovery.selecting import reselected, selection_of_edits
from latprune.recovery.shift import Shift

__all__ = [
    "Distil",
    "Fold",
    "LayerRecovery",
    "Norms",
    "OnePassMap",
    "ReconstructionConfig",
    "Recovery",
    "RecoveryReport",
    "Refit",
    "Shift",
    "Situation",
    "get_strategy",
    "kept_channels",
    "reconstruction_ranking",
    "recover",
    "register_strategy",
    "reselected",
    "selection_of_edits",
    "strategies",
    "strategy_type",
    "stream_modules",
]
