"""Pruning methods: an importance, a way to a pruning problem, and a schedule; one short file each."""

from latprune.methods.assemble import assemble
from latprune.methods.base import (
    Limit,
    Method,
    Proposal,
    ProposalsInterrupted,
    Proposer,
    StageContext,
    get_method,
    method_type,
    register_method,
    registered_methods,
    selection_of,
)
from latprune.methods.from_scratch import FromScratch
from latprune.methods.global_threshold import GlobalThreshold, Lamp
from latprune.methods.greedy import Greedy
from latprune.methods.halp import HALP
from latprune.methods.mdp import MDP
from latprune.methods.offer import Offer
from latprune.methods.random_choice import RandomChoice
from latprune.methods.schedule import (
    Schedule,
    SinglePass,
    SoftMasks,
    Stages,
    get_schedule,
    register_schedule,
    registered_schedules,
    schedule_type,
)
from latprune.methods.smcp import SMCP
from latprune.methods.sp_lamp import SPLAMP
from latprune.methods.uniform import Uniform

__all__ = [
    "HALP",
    "MDP",
    "SMCP",
    "SPLAMP",
    "FromScratch",
    "GlobalThreshold",
    "Greedy",
    "Lamp",
    "Limit",
    "Method",
    "Offer",
    "Proposal",
    "ProposalsInterrupted",
    "Proposer",
    "RandomChoice",
    "Schedule",
    "SinglePass",
    "SoftMasks",
    "Stages",
    "StageContext",
    "Uniform",
    "assemble",
    "get_method",
    "get_schedule",
    "method_type",
    "register_method",
    "register_schedule",
    "registered_methods",
    "registered_schedules",
    "schedule_type",
    "selection_of",
]
