"""The one form of an answer among those that read the same table entries."""

from __future__ import annotations

import numpy as np

from latprune.problem import Problem, Sum
from latprune.problem.types import IntArray

__all__ = ["canonical", "read_variables"]


def read_variables(problem: Problem, indices: IntArray, *, certificate: bool = False) -> set[int]:
    """Positions of the variables that the answer at ``indices`` reads.

    A term is active while all its gates are 1; a summand with a closed gate is not read. A block is read by every term that it decides
    about: one whose other gates are all open. With ``certificate``, one closed gate is named too where several are closed: every assignment
    that agrees on the variables returned then reads the same entries.
    """
    index = problem.index_of
    read: set[int] = set()
    for term in (*problem.gains, *(t for r in problem.costs for t in r.terms)):
        gate = [index(g) for g in term.gate]
        closed = [g for g in gate if indices[g] == 0]
        if closed:
            _read_closed(read, closed, certificate)
            continue
        read.update(gate)
        for axis in term.over:
            if not isinstance(axis, Sum):
                read.add(index(axis))
                continue
            for member in axis.members:
                inner = [index(g) for g in member.gate]
                shut = [g for g in inner if indices[g] == 0]
                if shut:
                    _read_closed(read, shut, certificate)
                else:
                    read.update([index(member.name), *inner])
    return read


def _read_closed(read: set[int], closed: list[int], certificate: bool) -> None:
    if len(closed) == 1 or certificate:
        read.add(closed[0])


def canonical(problem: Problem, indices: IntArray) -> IntArray:
    """``indices`` with every variable that is not read set to its first choice.

    Setting a block to 0 can silence others, so this repeats until nothing changes.
    """
    row = np.array(indices, dtype=np.int64)
    while True:
        read = read_variables(problem, row)
        idle = [i for i in range(len(row)) if i not in read and row[i] != 0]
        if not idle:
            return row
        row[idle] = 0
