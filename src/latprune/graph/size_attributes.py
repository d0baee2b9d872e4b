"""What each attribute that feeds sizes must be once the widths are chosen."""

from __future__ import annotations

from latprune.graph.polynomials import Polynomial, add, known_value, multiply
from latprune.graph.provenance import Expression
from latprune.graph.recording import Equation, Recording
from latprune.graph.size_repairs import Repairs, tie_reason
from latprune.graph.size_values import Evaluator, groups_in

__all__ = ["attribute_polynomials"]


def attribute_polynomials(recording: Recording, evaluator: Evaluator, repairs: Repairs) -> set[Expression]:
    """What each attribute must be, from the equations where it stands alone; returns the attributes that are not settled yet."""
    unsettled: set[Expression] = set()
    uses: dict[tuple[str, str], list[tuple[Polynomial | None, Equation]]] = {}
    for equation in recording.equations:
        if equation.left[0] == "attr":
            key = (str(equation.left[1]), str(equation.left[2]))
            uses.setdefault(key, []).append((evaluator.value(equation.right), equation))
    for key, polynomial, equation in _isolated(recording, evaluator, set(uses)):
        uses.setdefault(key, []).append((polynomial, equation))
    for key, found in uses.items():
        polynomials = [p for p, _ in found]
        name = f"{key[0]}.{key[1]}" if key[0] else key[1]
        if any(p != polynomials[0] for p in polynomials):
            unsettled.add(("attr", *key))
            repairs.tie([e for _, e in found], f"'{name}' feeds all their sizes", one_attribute=True)
        elif polynomials[0] is None:
            unsettled.add(("attr", *key))
            repairs.freeze(groups_in(evaluator, found[0][1].right), tie_reason(found[0][1]))
        elif any(c.denominator != 1 for c in polynomials[0].values()):
            unsettled.add(("attr", *key))
            repairs.freeze({g for k in polynomials[0] for g in k}, f"'{name}' would be no whole number")
        else:
            evaluator.attributes[key] = polynomials[0]
    return unsettled


def _isolated(
    recording: Recording, evaluator: Evaluator, alone: set[tuple[str, str]]
) -> list[tuple[tuple[str, str], Polynomial, Equation]]:
    """Attributes that stand in an expression with constants only (``in_channels // paths``), and what they must be to keep it right."""
    found = []
    for equation in recording.equations:
        if equation.left[0] in ("attr", "const", "size", "mod"):
            continue
        left, right = evaluator.value(equation.left), evaluator.value(equation.right)
        if left is None or right is None or left == right or known_value(left) is None:
            continue
        solved = _solved(evaluator, equation.left, right)
        if solved is not None and solved[0] not in alone:
            found.append((*solved, equation))
    return found


def _solved(evaluator: Evaluator, expr: Expression, wanted: Polynomial) -> tuple[tuple[str, str], Polynomial] | None:
    """The attribute in ``expr``, the leftmost of several, and the value that makes the expression ``wanted``."""
    if expr[0] == "attr":
        return (str(expr[1]), str(expr[2])), wanted
    if expr[0] in ("const", "size", "mod"):
        return None
    kind, left, right = expr
    a, b = evaluator.value(left), evaluator.value(right)
    other = None if b is None else known_value(b)
    if other and kind in ("floordiv", "mul"):
        solved = _solved(evaluator, left, multiply(wanted, {(): other if kind == "floordiv" else 1 / other}))
    elif b is not None and kind in ("add", "sub"):
        solved = _solved(evaluator, left, add(wanted, b, 1 if kind == "sub" else -1))
    else:
        solved = None
    if solved is None and a is not None and kind == "mul" and (other := known_value(a)):
        solved = _solved(evaluator, right, multiply(wanted, {(): 1 / other}))
    elif solved is None and a is not None and kind == "add":
        solved = _solved(evaluator, right, add(wanted, a, -1))
    return solved
