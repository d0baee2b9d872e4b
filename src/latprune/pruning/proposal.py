"""What a pruner proposes: a network under the limit of a stage, with the units that it keeps and what is known of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latprune.graph.types import Selection

if TYPE_CHECKING:
    from latprune.methods import Proposal, StageContext
    from latprune.pruning.trials import Trial

__all__ = ["StageProposal"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StageProposal:
    """A network that is proposed; nothing is changed by proposing it.

    Attributes:
        proposal: Its widths and blocks, the problem that was solved and the solver's answer.
        selection: The units that it keeps and the blocks that are gone, of the dense network.
        limit: The limit that it was proposed under, in the resource's unit.
        predicted: Its predicted value; a latency at the machine's present speed.
        trial: The measurement that it was chosen by; None where nothing was measured.
        fresh: A later measurement with both networks compiled anew; None where none was made.
        rounds: Candidates that were measured: ``(predicted limit, predicted, measured)``.
        note: Remark for people; empty where all went as usual.
        stage: The last stage whose limit it was proposed under: once it is cut, so many are through; 0 for a limit above the first one's.
        context: The stage that it was found in.
    """

    proposal: Proposal
    selection: Selection
    limit: float
    predicted: float
    trial: Trial | None = None
    fresh: Trial | None = None
    rounds: tuple[tuple[float, float, float], ...] = field(default_factory=tuple)
    note: str = ""
    stage: int = 0
    context: StageContext | None = None

    def __repr__(self) -> str:
        """One line."""
        measured = f", measured={self.trial.value:.6g}" if self.trial is not None else ""
        return f"StageProposal(limit={self.limit:.6g}, predicted={self.predicted:.6g}{measured}, {self.proposal!r})"
