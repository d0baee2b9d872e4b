"""What one stage of pruning did, as plain data that is saved and reloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from latprune.latency import Measurement

__all__ = ["StageReport"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageReport:
    """What one stage did.

    Attributes:
        stage: 1-based.
        limit: The stage's limit in the budget's resource.
        widths: Group name -> width after the stage.
        removed_blocks: Blocks that went in this stage.
        predicted: Predicted value of the delivered network; a latency at the machine's present speed, as the dense network shows it.
        measured: Its measurement beside the dense network; None where the budget is not on latency.
        rounds: Candidates that were measured: ``(predicted limit, predicted, measured)``, predictions at the present speed too.
        equality: Largest ``(absolute, relative)`` difference between the pruned and the masked network.
        problem: The problem that was solved last, in its file's form; None for a method that solves none.
        solution: The solver's answer, in its file's form.
        note: Remark for people; empty where all went as usual.
    """

    stage: int
    limit: float
    widths: Mapping[str, int]
    removed_blocks: tuple[str, ...]
    predicted: float
    measured: Measurement | None
    rounds: tuple[tuple[float, float, float], ...]
    equality: tuple[float, float]
    problem: Mapping[str, Any] | None = None
    solution: Mapping[str, Any] | None = None
    note: str = ""

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {**asdict(self), "measured": self.measured.to_dict() if self.measured is not None else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageReport:
        """A report from its JSON object."""
        measured = data["measured"]
        return cls(
            **{
                **data,
                "removed_blocks": tuple(data["removed_blocks"]),
                "rounds": tuple(tuple(entry) for entry in data["rounds"]),
                "equality": tuple(data["equality"]),
                "measured": Measurement.from_dict(measured) if measured is not None else None,
            }
        )
