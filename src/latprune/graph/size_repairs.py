"""Repairs of sizes that not every choice of widths can meet: heads that go together or stay, equal counts, groups that stay whole."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np

from latprune.graph.labels import CodeReason, Grid
from latprune.graph.polynomials import Polynomial
from latprune.graph.provenance import Expression
from latprune.graph.recording import Equation, Recording
from latprune.graph.size_values import Evaluator, groups_in, single

__all__ = ["Repairs", "tie_reason"]


class Repairs:
    """Repairs that one round asks for."""

    def __init__(self, evaluator: Evaluator) -> None:
        self.evaluator = evaluator
        self.alike: list[tuple[list[int], str]] = []
        self.heads: dict[int, str] = {}
        self.grids: list[Grid] = []
        self.whole: dict[int, str] = {}
        self.still: dict[int, str] = {}

    @property
    def wanted(self) -> bool:
        """Whether anything has to be repaired."""
        return bool(self.alike or self.heads or self.grids or self.whole or self.still)

    def freeze(self, groups: set[int], why: str) -> None:
        """Keep groups whole."""
        for g in groups:
            self.whole.setdefault(g, CodeReason(why))

    def tie(self, equations: list[Equation], why: str, *, one_attribute: bool = False) -> None:
        """Repair equations: first heads that go together, or stay; then equal counts between single widths, else keep all groups whole.

        ``one_attribute``: the left sides follow from one attribute, which will be what the right ones need once these agree.
        """
        evaluator, grouping, why = self.evaluator, self.evaluator.grouping, CodeReason(why)
        sides: list[tuple[Polynomial | None, Expression]] = []
        for e in equations:
            sides.append((evaluator.value(e.right), e.right))
            if e.left[0] != "attr" and not one_attribute or len(equations) == 1:
                sides.append((evaluator.value(e.left), e.left))
        groups: set[int] = set()
        for polynomial, expr in sides:
            groups |= {g for k in polynomial for g in k} if polynomial is not None else groups_in(evaluator, expr)
        parts = all(e.parts for e in equations)
        if parts and all(p for p, _ in sides):
            products = [set(k) for p, _ in sides for k in p or {}]
            everywhere = {g for g in groups if all(g in k for k in products)}
            groups = groups - everywhere or groups  # heads that all parts have do not tell them apart
        coarse = {g for g in groups if grouping.groups[g].level > 0}
        if parts and groups - coarse:
            groups, coarse = groups - coarse, set()  # parts of one dimension: whole heads may go whatever their insides do
        if coarse and one_attribute and (alike := self._alike([single(p) for p, _ in sides])):
            self.alike.append((alike, why))
            return
        if coarse:
            for g in coarse:
                self.heads.setdefault(g, why)
            return
        alone = [single(p) for p, _ in sides]
        numbers = sorted({s[0] for s in alone if s is not None})
        if all(s is not None for s in alone) and len(numbers) > 1:
            width = math.gcd(*(grouping.groups[g].cells.shape[1] for g in numbers))
            dense = {s[1] * grouping.groups[s[0]].cells.shape[1] for s in alone if s is not None}
            if width > 1 and len(dense) == 1:
                self.grids.append(Grid(rows=np.concatenate([grouping.groups[g].cells.reshape(-1, width) for g in numbers]), why=why))
                return
        stated = len(equations) == 1 and equations[0].left[0] == "const" and sides[0][0] is not None and single(sides[0][0]) is not None
        if parts or stated:  # what stands for all of a row may go: the others have as many as before
            self.still.update(dict.fromkeys(groups, why))
        else:
            self.freeze(groups, why)

    def _alike(self, sides: list[tuple[int, Fraction] | None]) -> list[int]:
        """Groups of heads that one number counts, where each side is that number times the same: none unless all have as many heads."""
        groups = self.evaluator.grouping.groups
        counted = [side for side in sides if side is not None]
        found = sorted({g for g, _ in counted})
        heads = all(groups[g].level > 0 for g in found) and len({groups[g].cells.shape for g in found}) == 1
        return found if heads and len(found) > 1 and len(counted) == len(sides) and len({factor for _, factor in counted}) == 1 else []

    def make(self, recording: Recording, kept: dict[int, str], made: set[bytes], hurry: bool) -> None:
        """Carry out the mildest kind of repair that was asked for.

        Args:
            recording: Gets the ties.
            kept: Gets the channels that stay.
            made: Ties of earlier rounds: one that has to be made again did not hold, and is the last resort.
            hurry: Every tie is the last resort.
        """
        groups = self.evaluator.grouping.groups
        together = []
        for numbers, why in self.alike:
            cells = [groups[g].cells.reshape(-1) for g in numbers]
            key = np.concatenate(cells).tobytes()
            if key in made or hurry:
                self.heads.update((g, why) for g in numbers if g not in self.heads)
            else:
                made.add(key)
                together += [(cells[0], other) for other in cells[1:]]
        if together:
            recording.space.pairs.extend(together)
        elif self.heads:
            for g, why in self.heads.items():
                kept.update({c: why for c in groups[g].cells.reshape(-1).tolist()})
        elif self.grids:
            for grid in self.grids:
                key = grid.rows.tobytes() + str(grid.rows.shape).encode()
                recording.space.grids.append(replace(grid, last=hurry or key in made))
                made.add(key)
        else:
            recording.space.still.extend((groups[g].cells.reshape(-1), why) for g, why in self.still.items())
            for g, why in self.whole.items():
                kept.update({c: why for c in groups[g].cells.reshape(-1).tolist()})


def tie_reason(equation: Equation) -> str:
    """Why the sides of an equation must agree, in words."""
    if equation.left[0] == "const":
        return f"the size {equation.left[1]} is fixed in the code of {equation.place}"
    return f"sizes are tied by the code of {equation.place}"
