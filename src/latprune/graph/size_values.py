"""Sizes and expressions over them as polynomials in the groups' widths."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from latprune.graph.grouping import Grouping
from latprune.graph.polynomials import Polynomial, add, constant, divide, known_value, multiply, size_polynomial
from latprune.graph.provenance import Expression, leaves
from latprune.graph.recording import Recording

__all__ = ["Evaluator", "groups_in", "single"]


class Evaluator:
    """Values of expressions under one grouping, with what the attributes will be as far as that is known."""

    def __init__(self, recording: Recording, grouping: Grouping) -> None:
        self.recording = recording
        self.grouping = grouping
        self.attributes: dict[tuple[str, str], Polynomial] = {}
        self._sizes: dict[int, Polynomial | None] = {}
        self._by_content: dict[tuple[tuple[int, ...], bytes], Polynomial | None] = {}

    def size(self, number: int) -> Polynomial | None:
        """A recorded size as a polynomial, or None where it is none."""
        if number not in self._sizes:
            labels = self.recording.sizes[number].labels
            key = (tuple(labels.shape), labels.numpy().tobytes())
            if key not in self._by_content:
                self._by_content[key] = size_polynomial(self.grouping, labels)
            self._sizes[number] = self._by_content[key]
        return self._sizes[number]

    def value(self, expr: Expression) -> Polynomial | None:
        """The expression as a polynomial, or None where it is none."""
        if expr[0] == "const":
            return constant(int(expr[1]))
        if expr[0] == "size":
            return self.size(int(expr[1]))
        if expr[0] == "attr":
            key = (str(expr[1]), str(expr[2]))
            return self.attributes.get(key, constant(self.recording.attribute_values[key]))
        left, right = self.value(expr[1]), self.value(expr[2])
        if left is None or right is None:
            return None
        if expr[0] == "add":
            return add(left, right)
        if expr[0] == "sub":
            return add(left, right, -1)
        if expr[0] == "mul":
            return multiply(left, right)
        a, b = known_value(left), known_value(right)
        if expr[0] == "mod":
            if a is not None and b is not None and a.denominator == b.denominator == 1:
                return constant(int(a) % int(b))
            whole = divide(left, right)
            return {} if whole is not None and all(c.denominator == 1 for c in whole.values()) else None
        if a is not None and b is not None and a.denominator == b.denominator == 1:
            return constant(int(a) // int(b))
        return divide(left, right)


def groups_in(evaluator: Evaluator, expr: Expression) -> set[int]:
    """Groups that a size leaf (or any leaf of an expression) depends on."""
    found: set[int] = set()
    for leaf in leaves(expr):
        if leaf[0] == "size":
            classes = evaluator.grouping.roots[evaluator.recording.sizes[int(leaf[1])].labels.numpy()]
            for group_of, _ in evaluator.grouping.slots:
                found |= {g for g in np.unique(group_of[classes]).tolist() if g >= 0}
        else:
            polynomial = evaluator.attributes.get((str(leaf[1]), str(leaf[2])), {})
            found |= {g for k in polynomial for g in k}
    return found


def single(p: Polynomial | None) -> tuple[int, Fraction] | None:
    """The group and the factor of a polynomial that is a multiple of one width."""
    if p is None or len(p) != 1:
        return None
    (groups, factor) = next(iter(p.items()))
    return (groups[0], factor) if len(groups) == 1 else None
