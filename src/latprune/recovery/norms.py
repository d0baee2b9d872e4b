"""Batch-norm statistics measured again: the weakest recovery, and what others do first."""

from __future__ import annotations

from latprune.recovery.backing_off import Change, kept_where_it_helps
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.report import LayerRecovery
from latprune.recovery.values import Values
from latprune.train.calibration import recalibrate_batch_norm, statistics_keepers

__all__ = ["Norms"]


@register_strategy
class Norms(Recovery):
    """Replace the running statistics of every batch norm of what was pruned by those of the images; no weight changes."""

    name = "norms"

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Measure all batch norms again."""
        model = situation.pruned
        keepers = set(statistics_keepers(model)) & set(model.get_submodule(situation.within).modules())
        norms = {path: module for path, module in model.named_modules() if module in keepers}
        if not norms:
            where = "what was pruned" if situation.within else "the network"
            return [LayerRecovery(layer="all layers", reason=f"{where} has no batch norm with running statistics")]
        before = Values(model)
        data = [(inputs, None) for inputs in situation.fitted]
        recalibrate_batch_norm(model, data, batches=len(data), within=situation.within)
        changes = [
            Change(entry=LayerRecovery(layer=path, action="norms"), tensors=tensors)
            for path, norm in norms.items()
            if any(map(before.changed, tensors := frozenset(f"{path}.{name}".strip(".") for name, _ in norm.named_buffers(recurse=False))))
        ]
        return kept_where_it_helps(situation, before, changes)
