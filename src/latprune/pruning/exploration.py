"""What ``explore()`` returns: the networks along a frontier of budgets, which save, show themselves and can be picked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latprune.export.exploration import ExplorationRecord
from latprune.pruning.budget import Budget
from latprune.pruning.picked import PickedNetwork, pick_point
from latprune.storage import write_atomic

__all__ = ["Exploration"]


@dataclass(frozen=True, slots=True, repr=False)
class Exploration:
    """The networks that any budget would lead to; in a notebook it shows itself.

    Attributes:
        record: All that is known of them, as plain data (``explorer.json``).

    Example:
        >>> from latprune.importance import MagnitudeConfig
        >>> found = latprune.explore(model, x, resource="flops", points=6, method=latprune.MDP(score=MagnitudeConfig()))
        >>> file, page = found.save("explorer.json"), found.write_html("explorer.html")
        >>> latprune.prune(model, x, pick=found.pick("63%"), method=latprune.MDP(score=MagnitudeConfig()))  # doctest: +SKIP
    """

    record: ExplorationRecord

    def pick(self, text: str | float | Budget) -> PickedNetwork:
        """The best network shown under a budget, to be cut exactly as it was shown: ``latprune.prune(model, x, pick=...)``.

        Args:
            text: ``"63%"`` or ``0.63`` of the dense network's value, or a value in the resource's own words (``"8.5ms"``,
                ``"flops=1.2G"``).

        Raises:
            InvalidArgumentError: It is no budget, is on another resource, or lies below the smallest network shown.
        """
        return pick_point(self.record, text)

    def save(self, path: str | Path) -> Path:
        """Write ``explorer.json``, which :meth:`load` and ``latprune prune --explore`` read."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, self.record.to_json().encode())
        return path

    @classmethod
    def load(cls, path: str | Path) -> Exploration:
        """Read a file that :meth:`save` wrote.

        Raises:
            FileFormatError: It cannot be read, or is no exploration; names the place inside the file.
        """
        return cls(ExplorationRecord.read(path))

    def write_html(self, path: str | Path, *, beside: Sequence[Exploration] = ()) -> Path:
        """Write the explorer page: one file that needs nothing else, at most 500 kB.

        Args:
            path: File to write.
            beside: Explorations of the same model for other devices or engines, shown beside this one at each share of the budget.
        """
        from latprune.report.explorer import write_explorer

        return write_explorer(self.record, path, beside=[other.record for other in beside])

    def __repr__(self) -> str:
        """One line; :meth:`write_html` shows all of it."""
        points = self.record.points
        low, high = (100.0 * point.value / self.record.dense.value for point in (points[0], points[-1]))
        return (
            f"Exploration({self.record.model.name}, {len(points)} networks, {sum(point.proven for point in points)} proven, {low:.1f} to "
            f"{high:.1f} % of the dense {self.record.resource})"
        )

    def _repr_html_(self) -> str:
        """The page in a frame of its own, for notebooks."""
        from latprune.report.explorer import explorer_frame

        return explorer_frame(self.record)
