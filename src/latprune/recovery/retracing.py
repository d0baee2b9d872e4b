"""The recorded operations of the dense network at the batch size of the data, where they are other ones than at that of the example."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from latprune.errors import LatpruneError
from latprune.graph import ModelGraph, Selection, trace
from latprune.recovery.batches import run_on_few
from latprune.recovery.stepper import record_operations
from latprune.surgery.plan import plan_step

__all__ = ["graph_on"]


def graph_on(graph: ModelGraph, selection: Selection, dense: nn.Module, inputs: Any) -> ModelGraph:
    """The graph with the calls of a run on the data: PyTorch may take other operators for one image than for several.

    ``nn.MultiheadAttention`` is a case: of one sequence its projection is one ``addmm``, of several an ``mm`` and a sum.

    Args:
        graph: Trace of the dense network.
        selection: What the pruned network was cut to.
        dense: The dense network.
        inputs: A batch of the data; a few of its images are run.

    Returns:
        ``graph`` with the ``calls`` and ``class_units`` of a trace on the data; ``graph`` itself where the operations are those that were
        traced, and where the other trace fails or does not cut the network in the same way (its groups have other names, say).
    """
    within = str(graph.plan.within or "")
    few, _ = run_on_few(dense, inputs)
    ran = [(str(op.func), op.module) for op in record_operations(dense, few, within).operations]
    if ran == [(call.op, call.module) for call in graph.calls]:
        return graph
    try:
        again = trace(dense, few, within=within or None)
        here, there = plan_step(dense, graph, selection), plan_step(dense, again, selection)
    except LatpruneError:  # what is not found among the calls of the first trace is left alone, with the reason
        return graph
    same = (here.tensors, here.scales, here.blocks, here.branches) == (there.tensors, there.scales, there.blocks, there.branches)
    return replace(graph, calls=again.calls, class_units=again.class_units) if same else graph
