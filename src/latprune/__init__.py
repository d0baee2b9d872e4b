"""latprune: prune a PyTorch model to a latency budget on the engine that will run it.

Example:
    >>> import latprune
    >>> result = latprune.prune(model, x, budget="50%", target=latprune.Target(engine="openvino"), data=batches)  # doctest: +SKIP
    >>> result.save("pruned")  # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from latprune.registry import offer as _offer

__version__ = "0.1.0"

if TYPE_CHECKING:
    from latprune.export import load_result, restore
    from latprune.graph import ModelGraph as ModelGraph
    from latprune.graph.trace import trace
    from latprune.latency import KernelPredictor, LatencyTables, Store, Target, build_tables, measure
    from latprune.methods import *  # noqa: F403 - methods' classes, whose names only their own room knows
    from latprune.methods import SinglePass, SoftMasks, Stages
    from latprune.methods.width_rules import WidthRules
    from latprune.onnx_reader import load_onnx
    from latprune.problem import Problem, Solution
    from latprune.program import ProgramModule, capture, load_program, save_program
    from latprune.pruning.budget import Budget
    from latprune.pruning.exploration import Exploration
    from latprune.pruning.exploring import explore
    from latprune.pruning.finetuning import fit_with
    from latprune.pruning.pruner import Pruner
    from latprune.pruning.result import Result
    from latprune.pruning.run import FitContext, prune
    from latprune.pruning.verification import verify
    from latprune.showing import progress_bars
    from latprune.sweeping import read_sweep, sweep
    from latprune.train import Recipe, evaluate, finetune

__all__ = [
    "Budget",
    "Exploration",
    "FitContext",
    "KernelPredictor",
    "LatencyTables",
    "ModelGraph",
    "Problem",
    "ProgramModule",
    "Pruner",
    "Recipe",
    "Result",
    "SinglePass",
    "SoftMasks",
    "Solution",
    "Stages",
    "Store",
    "Target",
    "WidthRules",
    "build_tables",
    "capture",
    "evaluate",
    "explore",
    "finetune",
    "fit_with",
    "load_onnx",
    "load_program",
    "load_result",
    "measure",
    "progress_bars",
    "prune",
    "read_sweep",
    "restore",
    "save_program",
    "sweep",
    "trace",
    "verify",
]

_HOMES = {
    "latprune.export": ("load_result", "restore"),
    "latprune.graph": ("ModelGraph", "trace"),
    "latprune.latency": ("KernelPredictor", "LatencyTables", "Store", "Target", "build_tables", "measure"),
    "latprune.methods": ("SinglePass", "SoftMasks", "Stages"),
    "latprune.methods.width_rules": ("WidthRules",),
    "latprune.onnx_reader": ("load_onnx",),
    "latprune.problem": ("Problem", "Solution"),
    "latprune.program": ("ProgramModule", "capture", "load_program", "save_program"),
    "latprune.pruning.budget": ("Budget",),
    "latprune.pruning.exploration": ("Exploration",),
    "latprune.pruning.exploring": ("explore",),
    "latprune.pruning.finetuning": ("fit_with",),
    "latprune.pruning.pruner": ("Pruner",),
    "latprune.pruning.result": ("Result",),
    "latprune.pruning.run": ("FitContext", "prune"),
    "latprune.pruning.verification": ("verify",),
    "latprune.showing": ("progress_bars",),
    "latprune.sweeping": ("read_sweep", "sweep"),
    "latprune.train": ("Recipe", "evaluate", "finetune"),
}
# Tracing captures a program where one is asked for; programs are built on tracing.
_offer("latprune.forms", "program", "latprune.program.form:FORM")
_offer("latprune.criteria", "reconstruction", "latprune.recovery.criterion:ReconstructionConfig")
# What is drawn in a notebook is drawn by reports, which stand above what they show.
_offer("latprune.displays", "graph", "latprune.report.notebook:graph_html")
_offer("latprune.displays", "tables", "latprune.report.notebook:tables_html")
_HOME = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Loaded at first use: `latprune --help` and reading a result must not wait for torch.
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    # A method's class. This file names none of them, so that a new one needs no line here; no submodule begins with a capital.
    if name[:1].isupper() and name in (found := _method_classes()):
        globals()[name] = found[name]
        return found[name]
    raise AttributeError(f"module 'latprune' has no attribute {name!r}")


def _method_classes() -> dict[str, Any]:
    methods = importlib.import_module("latprune.methods")
    exported = {name: getattr(methods, name) for name in methods.__all__ if name != "Method"}
    return {name: value for name, value in exported.items() if isinstance(value, type) and issubclass(value, methods.Method)}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_method_classes()})
