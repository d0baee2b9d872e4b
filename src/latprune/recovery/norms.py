"""Batch-norm statistics measured again: the weakest recovery, and what others do first."""

from __future__ import annotations

from torch.nn.modules.batchnorm import _BatchNorm

from latprune.program.module import ProgramModule
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.report import LayerRecovery
from latprune.train.calibration import recalibrate_batch_norm

__all__ = ["Norms"]


@register_strategy
class Norms(Recovery):
    """Replace the running statistics of every batch norm by those of the images; no weight changes."""

    name = "norms"

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Measure all batch norms again."""
        model = situation.pruned
        paths = [n for n, m in model.named_modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        for prefix, module in model.named_modules():
            if isinstance(module, ProgramModule):
                scopes = {id(scope) for scope in module.norm_scopes()}
                paths += [f"{prefix}.{n}".strip(".") for n, m in module.named_modules() if id(m) in scopes]
        if not paths:
            return [LayerRecovery(layer="all layers", reason="the network has no batch norm with running statistics")]
        data = [(inputs, None) for inputs in situation.fitted]
        recalibrate_batch_norm(model, data, batches=len(data))
        return [LayerRecovery(layer=path, action="norms") for path in paths]
