"""Changes of all layers at once, kept as far as they help: all together, or else halves, quarters and at last layer by layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from latprune.recovery.contract import Situation, Watched
from latprune.recovery.output_error import no_worse
from latprune.recovery.report import LayerRecovery
from latprune.recovery.values import Values

__all__ = ["INCOMPARABLE", "Change", "kept_where_it_helps"]

INCOMPARABLE = "nothing can be compared with the dense network, so that harm would not be seen: take strategy='refit' or 'shift'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What was done to one layer.

    Attributes:
        entry: Its entry in the report.
        tensors: Names of the parameters and buffers that were written for it; none where it was left alone.
    """

    entry: LayerRecovery
    tensors: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class _Unit:
    """Changes that share a tensor: kept together or not at all."""

    tensors: set[str]
    places: list[int]


def kept_where_it_helps(situation: Situation, before: Values, changes: Sequence[Change]) -> list[LayerRecovery]:
    """Take back the changes with which the network is further from the dense one on the images that decide.

    Where all together make it no worse, all stay. Otherwise the first half is tried, then the second half on top of what stays of the
    first, and so on down to a single layer.

    Args:
        situation: The networks; the pruned one has all changes.
        before: Its values without them.
        changes: The changes, in the order in which the layers run.

    Returns:
        An entry for each change, with the error with and without what was decided together with it; none of a layer that went with its
        block. Where there are no images, all changes stay and no entry has an error.
    """
    left = {name for name, _ in (*situation.pruned.named_parameters(), *situation.pruned.named_buffers())}
    # A tied tensor that a strategy wrote in the dense network may have lost the name that it has there.
    now = {tensor: names[0] for tensor, names in situation.graph.names_left(situation.selection.removed_blocks).items()}
    written = [(change, frozenset(now.get(name, name) for name in change.tensors) & left) for change in changes]
    changes = [replace(change, tensors=tensors) for change, tensors in written if tensors or not change.tensors]
    watch = situation.watch
    if watch is None or not (situation.held_out or situation.fitted):
        return [change.entry for change in changes]
    units = _units(changes)
    after = Values(situation.pruned)
    while True:
        place = watch.place
        found: dict[int, LayerRecovery] = {}
        before.put_back()
        error = watch.error()
        if error is None:
            return [replace(c.entry, action="", reason=INCOMPARABLE) if c.tensors else c.entry for c in changes]
        _Trial(watch, before, after, changes, bool(situation.held_out), found).keep(units, error)
        if watch.place == place:
            return [found.get(k, change.entry) for k, change in enumerate(changes)]


@dataclass(slots=True, eq=False)
class _Trial:
    watch: Watched
    before: Values
    after: Values
    changes: Sequence[Change]
    held_out: bool
    found: dict[int, LayerRecovery]

    def keep(self, units: Sequence[_Unit], error: float) -> float:
        """Keep what helps of ``units``; the error then."""
        if not units:
            return error
        names = [name for unit in units for name in unit.tensors]
        self.after.put_back(names)
        changed = self.watch.error()
        good = changed is not None and no_worse(changed, error)
        if good or len(units) == 1:
            self._note(units, error, changed, good)
        if good and changed is not None:
            return changed
        self.before.put_back(names)
        if len(units) == 1 or changed is None:
            return error
        middle = len(units) // 2
        return self.keep(units[middle:], self.keep(units[:middle], error))

    def _note(self, units: Sequence[_Unit], error: float, changed: float | None, good: bool) -> None:
        errors = [value if value is not None and math.isfinite(value) else None for value in (error, changed)]
        which = "images that were held out" if self.held_out else "the images"
        reason = "" if good else f"the error of the {self.watch.place} on {which} would grow"
        for place in (place for unit in units for place in unit.places):
            entry = replace(self.changes[place].entry, at=self.watch.place)
            if self.held_out:
                entry = replace(entry, held_out_before=errors[0], held_out_after=errors[1])
            else:
                entry = replace(entry, fitted_before=errors[0], fitted_after=errors[1])
            self.found[place] = entry if good else replace(entry, action="", reason=reason)


def _units(changes: Sequence[Change]) -> list[_Unit]:
    units: list[_Unit] = []
    for place, change in enumerate(changes):
        if not change.tensors:
            continue
        shared = [unit for unit in units if unit.tensors & change.tensors]
        if not shared:
            units.append(_Unit(tensors=set(change.tensors), places=[place]))
            continue
        first = shared[0]
        for other in shared[1:]:
            first.tensors |= other.tensors
            first.places += other.places
            units.remove(other)
        first.tensors |= change.tensors
        first.places.append(place)
    return units
