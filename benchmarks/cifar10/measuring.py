"""One way of measuring for every method: beside the dense network, both converted and compiled anew, by the library's own protocol."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from networks import Dense
from torch import nn

from latprune.graph import ModelGraph, Selection
from latprune.latency import Measurement, Target, get_engine, measure

__all__ = ["Budget", "counted", "measured"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """``50%`` of the measured latency, ``flops=50%`` of the multiply-adds, or ``=resnet20``, the latency that network measures at.

    Attributes:
        text: As it was asked for; names the rows.
        share: Of the dense value.
    """

    text: str
    share: float

    @classmethod
    def of(cls, text: str, share_of: Callable[[str], float]) -> Budget:
        """Read a budget; ``share_of`` gives another network's latency as a share of the dense one's."""
        if text.startswith("="):
            return cls(text=text, share=share_of(text[1:]))
        return cls(text=text, share=float(text.removeprefix("flops=").rstrip("%")) / 100.0)

    @property
    def on_latency(self) -> bool:
        """Whether it limits what is measured."""
        return not self.text.startswith("flops=")

    @property
    def asked(self) -> str:
        """In the library's words."""
        return f"{100 * self.share:.2f}%" if self.text.startswith("=") else self.text


def measured(dense: Dense, network: nn.Module, target: Target, *, quick: bool = False, seed: int = 0) -> dict[str, Measurement]:
    """Both networks in turns; ``quick`` for a search, to one percent or for a few seconds."""
    engine = get_engine(target.engine)
    limits: Mapping[str, Any] = dict(tolerance=0.01, max_seconds=6.0) if quick else dict(tolerance=0.004, min_rounds=40, max_seconds=40.0)
    with (
        engine.compile(dense.model, dense.example, target) as before,
        engine.compile(network.eval(), dense.example, target) as after,
    ):
        return measure({"dense": before, "pruned": after}, reference="dense", seed=seed, **limits)


def counted(graph: ModelGraph, selection: Selection) -> dict[str, Any]:
    """Shares of multiply-adds and parameters, and the widths."""
    dense = graph.dense_widths()
    widths = {**dense, **{name: int(kept.size) // graph.groups[name].rows for name, kept in selection.kept.items()}}
    removed = sorted(selection.removed_blocks)
    return {
        "macs": graph.macs(widths, removed) / graph.macs(dense),
        "parameters": graph.parameters(widths, removed) / graph.parameters(dense),
        "widths": widths,
        "blocks_removed": removed,
    }
