"""How many of the batches a walk holds at each of its layers: as many as fit into the memory from there to its end."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from latprune.recovery.batches import count

__all__ = ["Admission"]


class Admission:
    """The first layers of a network read large maps and have many rows an image, the last ones small maps and many inputs to fit.

    So a batch that the memory has no room for at first comes in later: it is run from the start to where the others stand, through layers
    that are refitted by then, and is held from there on like the others.

    Args:
        fitted: Batches that are fitted to.
        held_out: Held-out batches; they come after the fitted ones in the numbers of :meth:`at`.
        needed: Bytes an image that are held on the way to each layer and at it.
        memory: Bytes that may be held.
    """

    def __init__(self, fitted: Sequence[Any], held_out: Sequence[Any], needed: Sequence[float], memory: float) -> None:
        self._sizes = [count(batch) for batch in (*fitted, *held_out)]
        self._fitted, self._held_out = len(fitted), len(held_out)
        self._memory = memory
        self._needed = list(accumulate(reversed(needed), max))[::-1]

    @property
    def images(self) -> int:
        """Images of all batches."""
        return sum(self._sizes)

    def at(self, place: int) -> tuple[list[int], int]:
        """Numbers of the batches that are held at a layer, fitted ones first, and how many of them are fitted."""
        share = min(1.0, self._memory / max(self._needed[place] * self.images, 1.0))
        fitted = max(1, int(share * self._fitted))
        held_out = max(1, int(share * self._held_out)) if self._held_out else 0
        return [*range(fitted), *range(self._fitted, self._fitted + held_out)], fitted

    def images_at(self, place: int) -> int:
        """Images of the batches that are held at a layer."""
        return sum(self._sizes[number] for number in self.at(place)[0])

    def remark(self, place: int) -> str:
        """What a layer's entry says where it is fitted to less than all images; empty where all are there."""
        here = self.images_at(place)
        return "" if here == self.images else f"{here} of {self.images} images are used here"

    def line(self, name: str) -> str:
        """One line on what the memory (the argument of that ``name``) has no room for; empty where all images are held throughout."""
        first, last = self.images_at(0), self.images_at(len(self._needed) - 1)
        if first == self.images:
            return ""
        held = f"{first} of {self.images} images are used at the first layer"
        for place in range(len(self._needed)):
            if self.images_at(place) == last:
                held += f" and {last} from layer {place + 1} of {len(self._needed)} on" if last > first else " and at the others"
                break
        few = "; only whole batches can be left out: give smaller ones" if self._needed[0] * first > self._memory else ""
        return (
            f"{held}: what later layers read takes up to {self._needed[0] / 1e6:.3g} MB an image, and {name} (={self._memory:.3g} bytes) "
            f"may be held{few}"
        )
