"""The factor graph of a pruning problem, its file format, and the evaluation of any assignment."""

from latprune.problem.evaluation import BatchEvaluation, Evaluation, Evaluator
from latprune.problem.product import ProductTerm
from latprune.problem.restriction import at_least, at_most
from latprune.problem.rules import ProblemError
from latprune.problem.solution import Solution, relative_gap
from latprune.problem.types import Axis, Problem, Resource, Sum, SumMember, Term, Variable, is_satisfied

__all__ = [
    "Axis",
    "BatchEvaluation",
    "Evaluation",
    "Evaluator",
    "Problem",
    "ProblemError",
    "ProductTerm",
    "Resource",
    "Solution",
    "Sum",
    "SumMember",
    "Term",
    "Variable",
    "at_least",
    "at_most",
    "is_satisfied",
    "relative_gap",
]
