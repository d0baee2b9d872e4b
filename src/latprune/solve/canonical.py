"""The one form of an answer among those that read the same table entries."""

from __future__ import annotations

import numpy as np

from latprune.problem import Problem, Sum, Term
from latprune.problem.types import IntArray

__all__ = ["canonical"]


def canonical(problem: Problem, indices: IntArray) -> IntArray:
    """``indices`` with every variable that no active term reads set to its first choice.

    A term is active while all its gates are 1; a summand with a closed gate is not read. A block is read by every term that it decides
    about: one whose other gates are all open. Setting a block to 0 can silence others, so this repeats until nothing changes.
    """
    row = np.array(indices, dtype=np.int64)
    index = problem.index_of
    terms: list[Term] = [*problem.gains, *(t for r in problem.costs for t in r.terms)]
    compiled = []
    for term in terms:
        gate = [index(g) for g in term.gate]
        members: list[tuple[int, list[int]]] = []
        for axis in term.over:
            if isinstance(axis, Sum):
                members += [(index(m.name), [index(g) for g in m.gate]) for m in axis.members]
            else:
                members.append((index(axis), []))
        compiled.append((gate, members))
    while True:
        read: set[int] = set()
        for gate, members in compiled:
            closed = [g for g in gate if row[g] == 0]
            if len(closed) > 1:
                continue
            read.update(gate if not closed else closed)
            if closed:
                continue
            for variable, inner in members:
                shut = [g for g in inner if row[g] == 0]
                if not shut:
                    read.add(variable)
                    read.update(inner)
                elif len(shut) == 1:
                    read.update(shut)
        changed = False
        for i in range(len(row)):
            if i not in read and row[i] != 0:
                row[i] = 0
                changed = True
        if not changed:
            return row
