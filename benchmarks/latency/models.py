"""The networks that the latency benchmarks share, with an input of the size they are run at.

YOLO needs ``ultralytics``, and BERT, Llama and T5 need ``transformers`` (the extra ``huggingface``); they are imported where one is built.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from latprune.zoo import cifar_resnet, cifar_vit, mobilenet_v2, resnet50, vgg16

__all__ = ["MODELS", "Inputs", "build"]

Inputs = torch.Tensor | dict[str, torch.Tensor]
"""One batch: images, or token ids by the name of the argument."""


def _torchvision() -> None:
    """timm, Ultralytics and transformers import it, and its compiled operators do not load beside every PyTorch."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests"))
    from support.vision import torchvision

    torchvision()


def _deit_tiny() -> nn.Module:
    _torchvision()
    import timm

    model: nn.Module = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    return model


def _alexnet() -> nn.Module:
    """Its head is the most ordinary one: Linear with ReLU, twice."""
    _torchvision()
    from torchvision.models import alexnet

    model: nn.Module = alexnet(weights=None)
    return model


def _yolo(name: str) -> nn.Module:
    """As Ultralytics' exporter runs it: its head returns the decoded predictions alone, ``C2f`` splits by its attribute."""
    _torchvision()
    from ultralytics import YOLO

    network: nn.Module = YOLO(f"{name}.yaml").model
    network.model[-1].export = True
    for module in network.modules():
        if hasattr(type(module), "forward_split"):
            module.forward = module.forward_split
    return network


VOCABULARY = 1000
_WIDE = {"vocab_size": VOCABULARY, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "pad_token_id": 0}


def _transformer(config: str, model: str, **options: object) -> nn.Module:
    """A network of ``transformers`` in its full structure and with few layers, so that tables take minutes."""
    _torchvision()
    import transformers

    network: nn.Module = getattr(transformers, model)(getattr(transformers, config)(**options))
    return network


def _image(side: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(1, 3, side, side, generator=generator)


def _tokens(lengths: dict[str, int], generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {name: torch.randint(3, VOCABULARY, (1, length), generator=generator) for name, length in lengths.items()}


_SMALL, _LARGE = partial(_image, 32), partial(_image, 224)
_TEXT = partial(_tokens, {"input_ids": 64})

MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.Generator], Inputs]]] = {
    "resnet8": (lambda: cifar_resnet(depth=8), _SMALL),
    "resnet20": (lambda: cifar_resnet(depth=20), _SMALL),
    "resnet56": (lambda: cifar_resnet(depth=56), _SMALL),
    "resnet50": (resnet50, _LARGE),
    "mobilenet_v2": (mobilenet_v2, _LARGE),
    "deit_tiny": (_deit_tiny, _LARGE),
    "alexnet": (_alexnet, _LARGE),
    "vgg16": (vgg16, _SMALL),
    "vit": (cifar_vit, _SMALL),
    "bert": (
        partial(_transformer, "BertConfig", "BertForSequenceClassification", intermediate_size=1024, max_position_embeddings=64, **_WIDE),
        _TEXT,
    ),
    "llama": (
        partial(_transformer, "LlamaConfig", "LlamaForCausalLM", intermediate_size=688, num_key_value_heads=2, use_cache=False, **_WIDE),
        _TEXT,
    ),
    "t5": (
        partial(
            _transformer,
            "T5Config",
            "T5ForConditionalGeneration",
            vocab_size=VOCABULARY,
            d_model=256,
            d_kv=64,
            d_ff=1024,
            num_layers=3,
            num_heads=4,
            use_cache=False,
        ),
        partial(_tokens, {"input_ids": 64, "decoder_input_ids": 32}),
    ),
    **{
        f"{name}-{side}": (partial(_yolo, name), partial(_image, side)) for name in ("yolov8n", "yolo11n", "yolo26n") for side in (320, 640)
    },
}
"""Name -> the network with random weights, and one batch of its inputs."""


def build(name: str) -> tuple[nn.Module, Inputs]:
    """The network with random weights, in evaluation mode, and one batch of inputs."""
    make, inputs = MODELS[name]
    torch.manual_seed(0)
    return make().eval(), inputs(torch.Generator().manual_seed(0))
