"""Networks of each family on each engine: every layer of the dense network and of a cut one finds its step in the engine's profile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from latprune.copying import copied
from latprune.graph import Selection, trace
from latprune.latency import Target, get_engine
from latprune.latency.features import LAYERS
from latprune.latency.measuring.matching import match_profile
from latprune.surgery import prune
from latprune.zoo import cifar_vit
from support.equivalence import random_selection
from support.vision import torchvision

_WIDE = {"vocab_size": 50, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}


def _transformer(config: str, model: str, **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        torchvision()
        transformers = pytest.importorskip("transformers")
        network: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
        return network

    return make


def _deit() -> nn.Module:
    torchvision()
    timm = pytest.importorskip("timm")
    network: nn.Module = timm.create_model("deit_tiny_patch16_224", pretrained=False, depth=2, img_size=64)
    return network


def _tokens(*names: str) -> Callable[[], dict[str, torch.Tensor]]:
    return lambda: {name: torch.randint(3, 50, (1, 16)) for name in names}


FAMILIES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "vit": (lambda: cifar_vit(width=64, layers=2), lambda: torch.randn(1, 3, 32, 32)),
    "deit": (_deit, lambda: torch.randn(1, 3, 64, 64)),
    "bert": (_transformer("BertConfig", "BertForSequenceClassification", intermediate_size=128, **_WIDE), _tokens("input_ids")),
    "llama": (
        _transformer("LlamaConfig", "LlamaForCausalLM", intermediate_size=128, num_key_value_heads=2, use_cache=False, **_WIDE),
        _tokens("input_ids"),
    ),
    "t5": (
        _transformer(
            "T5Config",
            "T5ForConditionalGeneration",
            vocab_size=50,
            d_model=64,
            d_kv=16,
            d_ff=128,
            num_layers=2,
            num_heads=4,
            use_cache=False,
        ),
        _tokens("input_ids", "decoder_input_ids"),
    ),
}


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_layer_of_each_family_finds_its_step(family: str, engine: str) -> None:
    make, inputs = FAMILIES[family]
    torch.manual_seed(0)
    model, x = make().eval(), inputs()
    graph = trace(model, x)
    cut = random_selection(graph, np.random.default_rng(0), blocks=1, low=0.3)
    for selection in (Selection(kept={}), cut):
        network = copied(model)
        prune(network, graph, selection)
        widths = {
            name: len(selection.kept[name]) // group.rows if selection.kept else group.columns for name, group in graph.groups.items()
        }
        with get_engine(engine).compile(network, x, Target(engine=engine), profile=True) as compiled:
            entries = compiled.profile(5)
        profile = match_profile(entries, list(graph.kernels.values()), selection.removed_blocks, widths)
        running = [k for k in graph.kernels.values() if k.kind in LAYERS and k.read and selection.removed_blocks.isdisjoint(k.blocks)]
        assert running and [kernel.name for kernel in running if kernel.name not in profile.shares] == []
        whole = profile.unmatched_ms + sum(share.ms for share in profile.shares.values())
        assert whole == pytest.approx(sum(entry.ms for entry in entries))
