"""Tracing: channel groups, kernels, removable blocks and reasons, from one recorded run of a model."""

from latprune.graph.captured import CapturedNetwork
from latprune.graph.conditions import capture_conditions, preserved_state
from latprune.graph.example_inputs import ExampleInputs, call_with
from latprune.graph.folding import folded
from latprune.graph.model_graph import ModelGraph
from latprune.graph.rules import Step, register_rule
from latprune.graph.surgery_plan import SurgeryPlan
from latprune.graph.trace import trace
from latprune.graph.types import (
    Block,
    Call,
    ChannelGroup,
    KeptWhole,
    Kernel,
    Member,
    Piece,
    Role,
    Selection,
    WidthAxis,
)
from latprune.graph.wrappers import unwrapped

__all__ = [
    "Block",
    "Call",
    "CapturedNetwork",
    "ChannelGroup",
    "ExampleInputs",
    "Kernel",
    "KeptWhole",
    "Member",
    "ModelGraph",
    "Piece",
    "Role",
    "Selection",
    "Step",
    "SurgeryPlan",
    "WidthAxis",
    "call_with",
    "capture_conditions",
    "folded",
    "preserved_state",
    "register_rule",
    "trace",
    "unwrapped",
]
