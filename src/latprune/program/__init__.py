"""Captured programs: the second form of a pruned network, which needs no class and can shrink in every size."""

from latprune.program.capturing import capture
from latprune.program.format import load_program, save_program
from latprune.program.fresh import Fresh, fresh_values
from latprune.program.module import ProgramModule, ProgramScope
from latprune.program.steps import Program, Step

__all__ = ["Fresh", "Program", "ProgramModule", "ProgramScope", "Step", "capture", "fresh_values", "load_program", "save_program"]
