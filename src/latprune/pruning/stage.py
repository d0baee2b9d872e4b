"""What one stage of pruning did, as plain data that is saved and reloaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from latprune.latency import Measurement

if TYPE_CHECKING:
    from latprune.pruning.proposal import StageProposal

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
        measured: Its measurement beside the dense network; None where nothing was measured.
        rounds: Candidates that were measured: ``(predicted limit, predicted, measured)``, predictions at the present speed too.
        equality: Largest ``(absolute, relative)`` difference between the pruned and the masked network; None where the stage only
            masked, or left the comparison to a later one.
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
    equality: tuple[float, float] | None
    problem: Mapping[str, Any] | None = None
    solution: Mapping[str, Any] | None = None
    note: str = ""

    @classmethod
    def of(cls, proposal: StageProposal, *, gone: frozenset[str]) -> StageReport:
        """The report of the stage that goes to ``proposal``, not compared yet; ``gone`` are the blocks that earlier stages removed."""
        found = proposal.proposal
        return cls(
            stage=proposal.stage,
            limit=proposal.limit,
            widths=dict(found.widths),
            removed_blocks=tuple(sorted(proposal.selection.removed_blocks - gone)),
            predicted=proposal.predicted,
            measured=proposal.trial.pruned if proposal.trial is not None else None,
            rounds=proposal.rounds,
            equality=None,
            problem=found.problem.to_dict() if found.problem is not None else None,
            solution=found.solution.to_dict() if found.solution is not None else None,
            note=proposal.note,
        )

    def __repr__(self) -> str:
        """One line; the problem and its solution are not shown."""
        kept = sum(self.widths.values())
        return (
            f"StageReport(stage={self.stage}, limit={self.limit:.6g}, predicted={self.predicted:.6g}, {kept} units in "
            f"{len(self.widths)} groups, {len(self.removed_blocks)} blocks removed)"
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {**asdict(self), "measured": self.measured.to_dict() if self.measured is not None else None}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StageReport:
        """A report from its JSON object."""
        measured, equality = data["measured"], data["equality"]
        return cls(
            **{
                **data,
                "removed_blocks": tuple(data["removed_blocks"]),
                "rounds": tuple(tuple(entry) for entry in data["rounds"]),
                "equality": tuple(equality) if equality is not None else None,
                "measured": Measurement.from_dict(measured) if measured is not None else None,
            }
        )
