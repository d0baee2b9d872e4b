"""Before a cut: a copy is cut, and must compute what the masked network does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from latprune.copying import copied
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.surgery import EqualityReport, check_equal, masked, widened
from latprune.surgery import prune as cut_model

if TYPE_CHECKING:
    from torch import nn

    from latprune.graph.types import Selection
    from latprune.pruning.pruner import Pruner

__all__ = ["as_dense", "check_cut", "check_present", "in_evaluation"]


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode for the while; then each module gets its own mode back (a norm that stays in ``eval``)."""
    modes = {module: module.training for module in model.modules()}
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)  # what a cut put in has the model's mode
        for module in model.modules():
            module.training = modes.get(module, module.training)


def as_dense(pruner: Pruner) -> nn.Module:
    """The dense network with the weights that the model has now."""
    if not pruner.cut_to.kept and not pruner.cut_to.removed_blocks:
        return pruner.model
    return widened(pruner.dense_model, pruner.model, pruner.graph, pruner.cut_to)


def check_cut(pruner: Pruner, selection: Selection) -> EqualityReport:
    """Cut a copy and compare it with the masked network before the user's model is touched.

    Raises:
        SurgeryError: They differ.
    """
    with pruner.clock.timed("check"):
        trial = copied(pruner.model)
        cut_model(trial, pruner.graph, selection, since=pruner.cut_to)
        return check_equal(trial, masked(as_dense(pruner), pruner.graph, selection), pruner.example_inputs, seed=pruner.seed)


def check_present(pruner: Pruner) -> EqualityReport:
    """Compare the network as it is, whose weights changed after the cut, with the masked network of those weights.

    Raises:
        SurgeryError: They differ.
    """
    hidden = masked(as_dense(pruner), pruner.graph, pruner.cut_to)
    with preserved_state(pruner.model), preserved_buffers(pruner.model):
        return check_equal(pruner.model, hidden, pruner.example_inputs, seed=pruner.seed)
