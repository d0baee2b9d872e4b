"""Accuracy after the cut without training: unlabelled images, least squares, one strategy per file."""

from latprune.recovery.contract import Recovery, Situation, get_strategy, register_strategy, strategies
from latprune.recovery.recover import recover
from latprune.recovery.refit import Refit
from latprune.recovery.report import LayerRecovery, RecoveryReport

__all__ = [
    "LayerRecovery",
    "Recovery",
    "RecoveryReport",
    "Refit",
    "Situation",
    "get_strategy",
    "recover",
    "register_strategy",
    "strategies",
]
