"""Captured programs: the second form of a pruned network, which needs no class and can shrink in every size."""

from latprune.program.capture import capture
from latprune.program.module import ProgramModule, ProgramScope
from latprune.program.steps import Program, Step

__all__ = ["Program", "ProgramModule", "ProgramScope", "Step", "capture"]
