"""A pruner's progress as a JSON object, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from latprune.errors import CheckpointError
from latprune.pruning.stage import StageReport
from latprune.surgery import ArchitectureEdits

if TYPE_CHECKING:
    from latprune.pruning.pruner import Pruner

__all__ = ["PrunerState"]

_VERSION = 1
_SETTINGS = ("method", "stages", "budget", "target")


class PrunerState:
    """What of a pruner is saved, checked against the pruner that it is loaded into.

    Attributes:
        data: The JSON object.
    """

    def __init__(self, data: Mapping[str, Any]) -> None:
        self.data = dict(data)

    @classmethod
    def of(cls, pruner: Pruner, *, dense_ms: float | None) -> PrunerState:
        """The state of ``pruner``, whose dense network was measured at ``dense_ms`` milliseconds."""
        return cls(
            {
                "version": _VERSION,
                "method": pruner.method.name,
                "stages": pruner.method.stages,
                "budget": pruner.budget.to_dict(),
                "target": pruner.target.to_dict(),
                "stages_done": pruner.stage,
                "dense_ms": dense_ms,
                "seconds": dict(pruner.stages_seconds),
                "edits": [edits.to_dict() for edits in pruner.edits],
                "reports": [report.to_dict() for report in pruner.reports],
            }
        )

    def require_fits(self, other: PrunerState) -> None:
        """Refuse a state that does not belong to the pruner whose own, fresh state is ``other``.

        Raises:
            CheckpointError: It belongs to another method, budget or target, or to another version, or the pruner has begun already.
        """
        own = other.data
        if self.data.get("version") != _VERSION:
            raise CheckpointError(f"pruner state has version {self.data.get('version')!r}; this release reads version {_VERSION}")
        for key in _SETTINGS:
            if self.data[key] != own[key]:
                raise CheckpointError(
                    f"the saved run has {key} {self.data[key]!r}, this one {own[key]!r}; use the same settings, or another output folder"
                )
        if own["stages_done"]:
            raise CheckpointError(f"this pruner is at stage {own['stages_done']}; load a state into a new one")

    @property
    def edits(self) -> list[ArchitectureEdits]:
        """What was cut, stage by stage."""
        return [ArchitectureEdits.from_dict(entry) for entry in self.data["edits"]]

    @property
    def reports(self) -> list[StageReport]:
        """What was done, stage by stage."""
        return [StageReport.from_dict(entry) for entry in self.data["reports"]]

    @property
    def stages_done(self) -> int:
        """Stages that are through."""
        return int(self.data["stages_done"])

    @property
    def dense_ms(self) -> float | None:
        """Latency of the dense network as measured then, milliseconds."""
        value = self.data["dense_ms"]
        return None if value is None else float(value)

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by kind of work."""
        return {name: float(value) for name, value in self.data["seconds"].items()}
