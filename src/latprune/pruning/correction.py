"""Measure and correct: the limit to solve for, moved until the measured network meets the budget."""

from __future__ import annotations

from dataclasses import dataclass, field

from latprune.errors import InvalidArgumentError

__all__ = ["LimitSearch", "Round", "margin_within"]

_MARGIN, _OF_SLACK = 0.012, 0.4
"""Share of the budget that is aimed below it, and the share of the slack that this may be at most."""


def margin_within(slack: float, margin: float = _MARGIN) -> float:
    """``margin``, or what of it fits well into ``slack``, both shares of the budget."""
    return min(margin, _OF_SLACK * slack)


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One candidate: the predicted limit it was solved for, what was predicted, what was measured (same unit)."""

    limit: float
    predicted: float
    measured: float


@dataclass(slots=True, kw_only=True)
class LimitSearch:
    """Chooses the predicted limit of the next candidate from what was measured of the earlier ones.

    What a table gets wrong is a scale on the saving ``start - predicted``, which the candidates nearest to the aim tell, plus an error of
    each network's own, which no scale corrects. So each round takes the scale, inside the bracket of limits that were seen under and over
    the budget as long as those are in order. Where they are not (the networks' own errors are larger than the slack), or where the scale
    leads to a limit that was tried, the limits around it are tried in turn: each gives another network with another error.

    Attributes:
        budget: The limit that the measurement must meet.
        start: The measured value of the network before this stage.
        start_predicted: The predicted value of the same network.
        slack: A candidate is accepted within ``[1 - slack, 1]`` of the budget.
        margin: Share of the budget to aim below it, so that the fresh measurement at the end stays under it; None takes what
            fits into the slack (:func:`margin_within`).
        rounds: Candidates so far.
    """

    budget: float
    start: float
    start_predicted: float
    slack: float = 0.03
    margin: float | None = None
    rounds: list[Round] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 < self._margin < self.slack < 1:
            raise InvalidArgumentError(f"slack (={self.slack}) and margin (={self._margin}) must satisfy 0 < margin < slack < 1")

    @property
    def _margin(self) -> float:
        return margin_within(self.slack) if self.margin is None else self.margin

    @property
    def speed(self) -> float:
        """Measured over predicted value of the network before this stage: how fast the machine runs now, against when tables were made."""
        return self.start / self.start_predicted

    @property
    def aim(self) -> float:
        """The measured value that a candidate should have."""
        return self.budget * (1.0 - self._margin)

    @property
    def window(self) -> tuple[float, float]:
        """Lowest and highest measured value at which a candidate is accepted."""
        return self.budget * (1.0 - self.slack), self.budget

    def next_limit(self) -> float:
        """Predicted limit to solve for next; never one that was tried before."""
        if not self.rounds:
            return self.aim / self.speed
        limit = self._scaled()
        low = max((r.limit for r in self.rounds if r.measured <= self.aim), default=None)
        high = min((r.limit for r in self.rounds if r.measured > self.aim), default=None)
        if low is not None and high is not None and low < high and high - low > 2 * self._step:
            inset = 0.05 * (high - low)
            return min(max(limit, low + inset), high - inset) if low < limit < high else (low + high) / 2
        if low is not None and high is None and limit <= low < self.start_predicted:
            return self._above(low)
        return self._untried(limit)

    def _above(self, low: float) -> float:
        """A limit above ``low``, the highest that led under the aim, where the scale leads below it: limits need not be predictions (a
        linearisation's own sums are higher). In proportion between ``low`` and the network before.
        """
        reached = max(r.measured for r in self.rounds if r.limit == low)
        share = (self.aim - reached) / (self.start - reached) if self.start > reached else 0.5
        return low + min(max(share, 0.02), 0.98) * (self.start_predicted - low)

    @property
    def _step(self) -> float:
        """Distance of limits that are tried in turn: a small part of the window of acceptance."""
        return 0.2 * self.slack * self.budget / self.speed

    def _scaled(self) -> float:
        """The limit at which the saving, scaled as the nearest rounds showed, reaches the aim."""
        nearest = sorted(reversed(self.rounds), key=lambda r: abs(r.measured - self.aim))[:3]
        near = [r for r in nearest if abs(r.measured - self.aim) <= 2 * self.slack * self.budget] or [self.rounds[-1]]
        saved = sum(self.start - r.measured for r in near)
        saved_predicted = sum(self.start_predicted - r.predicted for r in near)
        if saved > 0 and saved_predicted > 0:
            return self.start_predicted - (self.start - self.aim) * saved_predicted / saved
        last = self.rounds[-1]
        return last.limit * self.aim / last.measured

    def _untried(self, limit: float) -> float:
        """``limit``, or the nearest one a number of steps below or above it that is no neighbour of a limit tried before."""
        for number in range(2 * len(self.rounds) + 2):
            # 0, -1, +1, -2, +2, ... steps.
            candidate = limit + self._step * (number // 2 if number % 2 == 0 else -(number + 1) // 2)
            if all(abs(candidate - r.limit) >= 0.5 * self._step for r in self.rounds):
                return candidate
        raise AssertionError("each round blocks at most two of these limits")

    def record(self, limit: float, predicted: float, measured: float) -> None:
        """Note a candidate's outcome."""
        self.rounds.append(Round(limit=limit, predicted=predicted, measured=measured))

    def accepts(self, measured: float, *, uncertainty: float = 0.0) -> bool:
        """Whether a candidate measured at ``measured`` is close enough under the budget.

        Args:
            measured: Its measured value.
            uncertainty: Half-width of the measurement's interval; the whole interval must be under the budget.
        """
        low, high = self.window
        return low <= measured and measured + uncertainty <= high
