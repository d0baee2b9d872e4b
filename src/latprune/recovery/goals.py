"""Which dense result each layer of the walk is fitted to, and the memory that the walk then holds."""

from __future__ import annotations

import numpy as np

from latprune.recovery.pairing import Pairing
from latprune.recovery.sites import Site
from latprune.recovery.stepper import Lifetimes, Sequence_

__all__ = ["Goals"]

_EARLY = "compared before its sum: what runs in between would take more memory than activations"


class Goals:
    """The place in the dense network that each fitted layer is compared with, in the order in which the layers run.

    Args:
        pairing: The operations of both networks.
        dense: Recorded run of the dense network.
        pruned: Recorded run of the pruned network.
        sites: The pruned network's layers; those that the dense network has no place for get a reason, and those that are not compared
            behind their sum are set to the place before it.
        corrected: Whether the last layer of a residual branch is compared after the sum.
        ahead: Whether a sum that removed blocks follow is compared with the dense stream after them.

    Attributes:
        of: Number of a layer's operation -> number of the dense operation, and whether it is compared after the sum.
        notes: Number of a layer's operation -> what there is to say about the place.
    """

    def __init__(self, pairing: Pairing, dense: Sequence_, pruned: Sequence_, sites: list[Site], *, corrected: bool, ahead: bool) -> None:
        self._pairing, self._dense, self._pruned = pairing, Lifetimes(dense), Lifetimes(pruned)
        self._sites = [site for site in sites if not site.reason]
        self.of: dict[int, tuple[int, bool]] = {}
        self.notes: dict[int, str] = {}
        following = _streams_after(pairing, dense) if ahead else {}
        for site in self._sites:
            joined = corrected and site.other is not None and site.compared in pairing.dense_of and _undisturbed(site, pruned)
            if not joined:
                site.before_sum()
            if site.compared not in pairing.dense_of:
                site.reason = "the dense network has no operation at its place"
                continue
            at = pairing.dense_of[site.compared]
            self.of[site.index] = (following.get(at, at), True) if joined else (at, False)

    @property
    def held(self) -> int:
        """Most values that the walk holds of the first batch, of both networks."""
        return max(self.held_on_the_way(), default=0)

    def held_on_the_way(self) -> list[int]:
        """For each layer with a goal, in order: most values of the first batch, of both networks, from the layer before it up to it."""
        return self._held(self.of)

    def shorten(self, most: float) -> None:
        """Compare layers before their sum until the walk holds at most ``most`` values, as far as that lowers them.

        Where a skip's convolution runs first and is added last, the dense network runs ahead to the sum, and what all layers in between
        are compared with is held until they come.
        """
        held = self.held
        far = [
            site for site in self._sites if self.of.get(site.index, (0, False))[1] and self._pairing.dense_of.get(site.plain[0]) is not None
        ]
        for site in sorted(far, key=lambda site: site.index - site.compared):
            if held <= most:
                return
            nearer = {**self.of, site.index: (self._pairing.dense_of[site.plain[0]], False)}
            if max(self._held(nearer)) < held:
                self.of, held = nearer, max(self._held(nearer))
                self.notes[site.index] = _EARLY
                site.before_sum()

    def _held(self, goals: dict[int, tuple[int, bool]]) -> list[int]:
        left = [at for at, _ in goals.values()]
        reached, found = 0, []
        before = (0, 0)
        for site in self._sites:
            if site.index not in goals:
                continue
            at, joined = goals[site.index]
            reached = max(reached, at + 1)
            dense = self._dense.held_at(reached, {goal for goal in left if goal < reached})
            pruned = self._pruned.held_at(site.index, set())
            most = pruned
            if joined and site.other is not None and site.other[0] > site.index:  # the other operand is brought for all images
                most += self._pruned.size(site.compared)
            # One network is brought up after the other: either may stand at the layer before while the other one is here.
            found.append(max(before[0], dense) + max(before[1], most))
            before = (dense, pruned)
            left.remove(at)
        return found


def _undisturbed(site: Site, run: Sequence_) -> bool:
    """Whether nothing between the layer and the sum writes into what was there before the layer."""
    between = range(site.index, site.compared)
    return not any(key[0] < site.index for j in between for key in run.operations[j].writes)


def _streams_after(pairing: Pairing, dense_run: Sequence_) -> dict[int, int]:
    """Dense sum -> the last sum of the removed blocks that follow it on the same stream, before the next block that stays."""
    calls = pairing.graph.calls
    joins = sorted(d for d, c in pairing.call_of.items() if calls[c].joins)
    found: dict[int, int] = {}
    for place, at in enumerate(joins):
        if pairing.removed_join(at):
            continue
        last = at
        for later in joins[place + 1 :]:
            same = calls[pairing.call_of[later]].output_fields[0], calls[pairing.call_of[at]].output_fields[0]
            if not pairing.removed_join(later) or not _same_field(*same):
                break
            last = later
        if last != at:
            found[at] = last
    return found


def _same_field(a: object, b: object) -> bool:
    return (a is None and b is None) or (isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b))
