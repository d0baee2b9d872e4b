"""Measure and correct: the limit to solve for, moved until the measured network meets the budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from latprune.errors import InvalidArgumentError

__all__ = ["LimitSearch", "Round"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One candidate: the predicted limit it was solved for, what was predicted, what was measured (same unit)."""

    limit: float
    predicted: float
    measured: float


@dataclass(slots=True, kw_only=True)
class LimitSearch:
    """Chooses the predicted limit of the next candidate from what was measured of the earlier ones.

    What a table gets wrong is mostly a scale on the saving ``start - predicted``, so each round scales the saving by what the last
    candidate showed, inside the bracket of limits that were seen under and over the budget; where the scale leads out of it, it is halved.

    Attributes:
        budget: The limit that the measurement must meet.
        start: The measured value of the network before this stage.
        start_predicted: The predicted value of the same network.
        slack: A candidate is accepted within ``[1 - slack, 1]`` of the budget.
        margin: Share of the budget to aim below it, so that the fresh measurement at the end stays under it.
        rounds: Candidates so far.
    """

    budget: float
    start: float
    start_predicted: float
    slack: float = 0.03
    margin: float = 0.012
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self.margin < self.slack < 1:
            raise InvalidArgumentError(f"slack (={self.slack}) and margin (={self.margin}) must satisfy 0 < margin < slack < 1")

    @property
    def aim(self) -> float:
        """The measured value that a candidate should have."""
        return self.budget * (1.0 - self.margin)

    def next_limit(self) -> float:
        """Predicted limit to solve for next."""
        if not self.rounds:
            return self.aim * self.start_predicted / self.start
        last = self.rounds[-1]
        saved, saved_predicted = self.start - last.measured, self.start_predicted - last.predicted
        wanted = self.start - self.aim
        if saved > 0 and saved_predicted > 0:
            limit = self.start_predicted - wanted * saved_predicted / saved
        else:
            limit = last.limit * self.aim / last.measured
        # The search must move: a limit of its own between those known to lead over and under the aim.
        low = max((r.limit for r in self.rounds if r.measured <= self.aim), default=None)
        high = min((r.limit for r in self.rounds if r.measured > self.aim), default=None)
        if low is not None and high is not None and low < high:
            inset = 0.05 * (high - low)
            return min(max(limit, low + inset), high - inset) if low < limit < high else (low + high) / 2
        return limit

    def record(self, limit: float, predicted: float, measured: float) -> None:
        """Note a candidate's outcome."""
        self.rounds.append(Round(limit=limit, predicted=predicted, measured=measured))

    def accepts(self, measured: float, *, uncertainty: float = 0.0) -> bool:
        """Whether a candidate measured at ``measured`` is close enough under the budget.

        Args:
            measured: Its measured value.
            uncertainty: Half-width of the measurement's interval; the whole interval must be under the budget.
        """
        return self.budget * (1.0 - self.slack) <= measured and measured + uncertainty <= self.budget
