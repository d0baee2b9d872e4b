"""PyTorch's own transformer layers, whose fused fast path reads the weights of its parts instead of calling them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import latprune
from latprune.graph import Selection
from latprune.surgery import prune


class _Encoder(nn.Module):
    def __init__(self, norm_first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.head(self.encoder(self.embed(x)).mean(1))
        return found


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(
    "removed", [("encoder.layers.0",), ("encoder.layers.1#2",), ("encoder.layers.0", "encoder.layers.0#2", "encoder.layers.2#2")]
)
def test_a_removed_branch_is_gone_on_the_fast_path_too(norm_first: bool, removed: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    model = _Encoder(norm_first).eval()
    x = torch.randn(2, 7, 6)
    graph = latprune.trace(model, x)
    assert set(removed) <= {name for name, block in graph.blocks.items() if block.removable}
    pruned = copy.deepcopy(model)
    prune(pruned, graph, Selection(kept={}, removed_blocks=frozenset(removed)))
    silenced = copy.deepcopy(model)  # the same branches, made to add nothing
    for name in removed:
        layer = silenced.get_submodule(name.split("#")[0])
        last = layer.linear2 if name.endswith("#2") else layer.self_attn.out_proj
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        torch.testing.assert_close(pruned(x), silenced(x))
    pruned.train()
    pruned(x).sum().backward()
    assert sum(p.numel() for p in pruned.parameters()) < sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(copy.deepcopy(pruned).eval()(x), pruned.eval()(x))
