"""A small network pruned by hand, with the record that a run would have made of it."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from latprune.export import ResultRecord, tensor_shapes
from latprune.graph import trace
from latprune.graph.types import Selection
from latprune.surgery import prune
from latprune.zoo import cifar_resnet
from support.sample_record import sample_record

__all__ = ["INPUT", "dense_network", "pruned_network"]

INPUT = (2, 3, 16, 16)


def dense_network(depth: int = 8) -> nn.Module:
    """What the checkpoint's constructor builds: fresh random weights."""
    return cifar_resnet(depth).eval()


def pruned_network(depth: int = 8, *, seed: int = 0) -> tuple[nn.Module, ResultRecord]:
    """A network at half its widths with one block removed, and its record."""
    torch.manual_seed(seed)
    model = dense_network(depth)
    shapes = tensor_shapes(model)
    graph = trace(model, torch.randn(INPUT))
    rng = np.random.default_rng(seed)
    kept = {name: np.sort(rng.permutation(group.columns)[: group.columns // 2]) for name, group in graph.groups.items() if group.rows == 1}
    edits = prune(model, graph, Selection(kept=kept, removed_blocks=frozenset({"layer1.0"})))
    sample = sample_record()
    record = sample.model_copy(
        update={
            "edits": (edits.to_dict(),),
            "model": sample.model.model_copy(update={"tensors": shapes, "arguments": {"depth": depth}}),
        }
    )
    return model.eval(), record
