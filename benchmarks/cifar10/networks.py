"""The dense networks of the comparison, trained, with their example input.

``resnet20-conv`` is ResNet-20 with convolution shortcuts, made from the given weights of the zero-padding one, not trained from scratch.
The shortcut's convolution selects the channels that padding would carry on, its norm gives them back as they were, and its norm's scale
is zero for the channels that padding would leave empty. It computes the same function, which is checked. Its shortcuts are then trained
with the rest for a short while, so that a criterion sees weights and no selection matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from latprune.pruning import training_threads
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.train import Recipe, evaluate, finetune
from latprune.train.precision import native_precision
from latprune.zoo import PadShortcut, cifar10_test, cifar10_train, cifar_resnet, cifar_vit

__all__ = ["NETWORKS", "Dense", "dense_network", "with_convolution_shortcuts"]

VIT_WIDTH = 64
"""Width of the transformer that benchmarks/train_vit.py trains."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Dense:
    """A trained dense network.

    Attributes:
        accuracy: On all test images.
        note: How it came to its weights.
    """

    name: str
    model: nn.Module
    example: Tensor
    accuracy: float
    note: str


def dense_network(name: str, data: Path, work: Path, *, prepare_epochs: int, threads: int) -> Dense:
    """The network by name; what had to be trained or counted for it is kept in ``work``."""
    model, note = NETWORKS[name](data, work, prepare_epochs, threads)
    kept = work / f"{name}-accuracy-{prepare_epochs}.txt"
    if not kept.exists():
        with training_threads(threads):
            kept.write_text(repr(evaluate(model.eval(), cifar10_test(str(data)))))
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Dense(name=name, model=model.eval(), example=example, accuracy=float(kept.read_text()), note=note)


def _loaded(model: nn.Module, path: Path) -> nn.Module:
    model.load_state_dict(decode_tensors(path.read_bytes(), source=str(path)))
    return model.eval()


def _padded(depth: int) -> Callable[[Path, Path, int, int], tuple[nn.Module, str]]:
    def build(data: Path, work: Path, prepare_epochs: int, threads: int) -> tuple[nn.Module, str]:
        return _loaded(cifar_resnet(depth), data / "weights" / f"cifar10_resnet{depth}.safetensors"), "given weights"

    return build


def _convolution(depth: int) -> Callable[[Path, Path, int, int], tuple[nn.Module, str]]:
    def build(data: Path, work: Path, prepare_epochs: int, threads: int) -> tuple[nn.Module, str]:
        kept = work / f"resnet{depth}-conv-{prepare_epochs}.safetensors"
        note = f"given weights with convolution shortcuts, {prepare_epochs} epochs at a rate of 0.01"
        if kept.exists():
            return _loaded(cifar_resnet(depth, shortcut="B"), kept), note
        train = cifar10_train(str(data))
        padded, _ = _padded(depth)(data, work, 0, threads)
        calibration = [batch for batch, _ in zip((x for x, _ in train), range(8), strict=False)]
        model = with_convolution_shortcuts(padded, depth, torch.cat(calibration))
        if prepare_epochs:
            recipe = Recipe(
                epochs=prepare_epochs, learning_rate=0.01, weight_decay=5e-4, precision=native_precision(), channels_last=True, seed=0
            )
            with training_threads(threads):
                finetune(model, train, recipe, checkpoint_dir=work / f"resnet{depth}-conv-{prepare_epochs}-training")
        work.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, encode_tensors(model.state_dict()))
        return model.eval(), note

    return build


@torch.no_grad()
def with_convolution_shortcuts(padded: nn.Module, depth: int, images: Tensor) -> nn.Module:
    """The network with convolution shortcuts that computes what ``padded`` does.

    Args:
        padded: A CIFAR ResNet with zero-padding shortcuts.
        depth: Its depth.
        images: ``(n, 3, 32, 32)``, whose statistics the new norms hold, so that training begins where evaluation stands.

    Raises:
        AssertionError: The two networks do not compute the same.
    """
    torch.manual_seed(0)
    model = cifar_resnet(depth, shortcut="B")
    model.load_state_dict(padded.state_dict(), strict=False)  # all but the shortcuts, which have nothing to load
    for name, shortcut in padded.named_modules():
        if not isinstance(shortcut, PadShortcut):
            continue
        read: list[Tensor] = []
        hook = shortcut.register_forward_hook(lambda module, given, result, read=read: read.append(result))
        padded.eval()(images)
        hook.remove()
        conv, norm = model.get_submodule(f"{name}.0"), model.get_submodule(f"{name}.1")
        assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
        carried = range(shortcut.pad_left, shortcut.pad_left + conv.in_channels)
        for source, channel in enumerate(carried):
            conv.weight[channel] = 0.0
            conv.weight[channel, source] = 1.0
        variance, mean = torch.var_mean(read[0], dim=(0, 2, 3), correction=0)
        norm.weight.zero_()
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
        norm.weight[list(carried)] = (variance + norm.eps).sqrt()[list(carried)]
        norm.bias.copy_(mean)
        empty = [channel for channel in range(conv.out_channels) if channel not in carried]
        norm.bias[empty] = 0.0
        norm.running_var[empty] = 1.0  # type: ignore[index]
    wanted, found = padded.eval()(images), model.eval()(images)
    assert torch.allclose(wanted, found, rtol=1e-4, atol=1e-4), float((wanted - found).abs().max())
    return model


def _vit(data: Path, work: Path, prepare_epochs: int, threads: int) -> tuple[nn.Module, str]:
    return _loaded(cifar_vit(width=VIT_WIDTH), work / "cifar_vit.safetensors"), "weights of benchmarks/train_vit.py"


NETWORKS: dict[str, Callable[[Path, Path, int, int], tuple[nn.Module, str]]] = {
    "resnet20": _padded(20),
    "resnet20-conv": _convolution(20),
    "resnet56": _padded(56),
    "resnet56-conv": _convolution(56),
    "vit": _vit,
}
"""Name -> builder of ``(data, work, prepare_epochs, threads)``; ``vit`` wants ``cifar_vit.safetensors`` in the work folder."""
