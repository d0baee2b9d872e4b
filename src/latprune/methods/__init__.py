"""Pruning methods: which importance, which cost tables, which solver, how many stages."""

from latprune.methods.assemble import Limit, assemble
from latprune.methods.base import Method, Proposal, Proposer, StageContext, get_method, register_method, registered_methods, selection_of
from latprune.methods.choices import restrict_choices
from latprune.methods.mdp import MDP
from latprune.methods.random_choice import RandomChoice
from latprune.methods.sp_lamp import SPLAMP
from latprune.methods.uniform import Uniform

__all__ = [
    "MDP",
    "SPLAMP",
    "Limit",
    "Method",
    "Proposal",
    "Proposer",
    "RandomChoice",
    "StageContext",
    "Uniform",
    "assemble",
    "get_method",
    "register_method",
    "registered_methods",
    "restrict_choices",
    "selection_of",
]
