"""Mean shift: each layer's bias (or the shift of its norm) takes what the mean of its result is off."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from latprune.argument_rules import check_number, check_whole
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.refit import settle
from latprune.recovery.regression import Fit
from latprune.recovery.report import LayerRecovery
from latprune.recovery.rows import to_matrix
from latprune.recovery.walk import ACTIVATIONS, walk

__all__ = ["Shift"]


@register_strategy
@dataclass(frozen=True, kw_only=True)
class Shift(Recovery):
    """Match the mean of each output channel, in execution order; no weight changes.

    Attributes:
        rows: Rows per input of a layer, at most.
        memory: Bytes that the rows of one layer may take, at most.
        activations: Bytes that what later layers read may take, of all images and both networks; where it is more, fewer images are used,
            and the others come in at the layer from which on they fit.
    """

    name = "shift"
    checks_layers = True

    rows: int = 100
    memory: float = 6e8
    activations: float = ACTIVATIONS

    def __post_init__(self) -> None:
        check_whole("rows", self.rows, least=1)
        for name in ("memory", "activations"):
            check_number(name, getattr(self, name), "be a number of bytes, at least 1", 1.0)

    def settings(self) -> dict[str, Any]:
        """The options, for the record."""
        return asdict(self)

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Shift all layers that have a bias, or a norm with one."""
        found = []
        for layer in walk(situation, rows=self.rows, least_rows=4096, memory=self.memory, activations=self.activations):
            site = layer.site
            if layer.fitted is None:
                found.append(LayerRecovery(layer=site.name, reason=layer.reason))
                continue
            nothing = torch.zeros(site.outputs, dtype=torch.float64, device=layer.fitted.x.device)
            if not site.take_constant(nothing, apply=False):
                found.append(LayerRecovery(layer=site.name, reason="it has no bias, and no norm with a shift follows it"))
                continue
            constant = (layer.fitted.target.double() - layer.fitted.present.double()).mean(0)
            fit = Fit(weight=torch.zeros_like(to_matrix(site)), constant=constant)
            found.append(settle(layer, fit, action="shift", constant=True))
        return found
