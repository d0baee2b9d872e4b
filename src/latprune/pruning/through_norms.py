"""Models with weight norms in place: a copy with plain weights is pruned, and its cut weights go back under the norms of the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from latprune.graph.folding import WEIGHT_NORMS, folds_of
from latprune.graph.wrappers import without_wrapper
from latprune.pruning.result import Result
from latprune.surgery import ArchitectureEdits, replay

__all__ = ["brought_back", "through_norms"]


def through_norms(model: nn.Module, options: Mapping[str, Any]) -> bool:
    """Whether a model is pruned through its weight norms.

    It has some, no weights that are computed otherwise, and nothing that was asked for (another form, ``fold``, tables or a pick of the
    network with its norms whole) speaks of the model as it is.
    """
    if options.get("fold") or options.get("form", "class") != "class":
        return False
    if options.get("tables") is not None or options.get("pick") is not None or not isinstance(model, nn.Module):
        return False
    folds = folds_of(without_wrapper(model)[0])
    return bool(folds) and all(fold.kind in WEIGHT_NORMS for fold in folds)


def brought_back(model: nn.Module, result: Result) -> Result:
    """The result with ``model``, cut and trained as the result's network is, in its place.

    Args:
        model: The model as it was given, which has not been changed.
        result: Of a copy, with ``fold="temporary"``.
    """
    model = without_wrapper(model)[0]
    for edits in result.record.edits:
        replay(model, ArchitectureEdits.from_dict(edits))
    model.load_state_dict(result.model.state_dict())
    for mine, theirs in zip(model.modules(), result.model.modules(), strict=True):
        mine.training = theirs.training
    return replace(result, model=model)
