"""The dense networks of the comparison, trained, with their example input.

``resnet20-conv`` is ResNet-20 with convolution shortcuts, made from the given weights of the zero-padding one, not trained from scratch.
The shortcut's convolution selects the channels that padding would carry on, its norm gives them back as they were, and its norm's scale
is zero for the channels that padding would leave empty. It computes the same function, which is checked. Its shortcuts are then trained
with the rest for a short while, so that a criterion sees weights and no selection matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from mobilenets import cifar_mobilenet_v1, cifar_mobilenet_v2
from torch import Tensor, nn

from latprune.pruning import training_threads
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.train import AdamW, Recipe, evaluate, finetune
from latprune.train.precision import native_precision
from latprune.zoo import PadShortcut, cifar10_test, cifar10_train, cifar_resnet, cifar_vit

__all__ = ["ADAMW", "NETWORKS", "Dense", "Preparation", "dense_network", "with_convolution_shortcuts"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Preparation:
    """What a network is made ready with.

    Attributes:
        data: Folder of images and given weights.
        work: Folder where what was trained is kept.
        shortcut_epochs: Training of shortcuts that were made convolutions.
        dense_epochs: Training of a network that no weights are given of.
        threads: Threads of training.
        device: Where training runs.
    """

    data: Path
    work: Path
    shortcut_epochs: int = 2
    dense_epochs: int = 200
    threads: int = 1
    device: str = "cpu"

    def trained(self, model: nn.Module, kept: str, recipe: Recipe) -> nn.Module:
        """The network trained by a recipe, on the processor again; trained once, taken up where it was interrupted."""
        file = self.work / f"{kept}.safetensors"
        if not file.exists():
            model = model.to(self.device)
            with training_threads(self.threads):
                finetune(model, cifar10_train(str(self.data)), recipe, checkpoint_dir=self.work / f"{kept}-training")
            self.work.mkdir(parents=True, exist_ok=True)
            write_atomic(file, encode_tensors(model.state_dict()))
        return _loaded(model.to("cpu"), file)


def dense_network(name: str, preparation: Preparation) -> Dense:
    """The network by name; what had to be trained or counted for it is kept in the work folder."""
    model, note = NETWORKS[name](preparation)
    kept = preparation.work / f"{name}-accuracy-{preparation.shortcut_epochs}-{preparation.dense_epochs}.txt"
    if not kept.exists():
        with training_threads(preparation.threads):
            write_atomic(kept, repr(evaluate(model.eval(), cifar10_test(str(preparation.data)))))
    example = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Dense(name=name, model=model.eval(), example=example, accuracy=float(kept.read_text()), note=note)


def _loaded(model: nn.Module, path: Path) -> nn.Module:
    model.load_state_dict(decode_tensors(path.read_bytes(), source=str(path)))
    return model.eval()


Build = Callable[[Preparation], tuple[nn.Module, str]]


def _padded(depth: int) -> Build:
    def build(preparation: Preparation) -> tuple[nn.Module, str]:
        return _loaded(cifar_resnet(depth), preparation.data / "weights" / f"cifar10_resnet{depth}.safetensors"), "given weights"

    return build


def _convolution(depth: int) -> Build:
    def build(preparation: Preparation) -> tuple[nn.Module, str]:
        epochs = preparation.shortcut_epochs
        padded, _ = _padded(depth)(preparation)
        images = torch.cat([batch for batch, _ in islice(cifar10_train(str(preparation.data)), 8)])
        model = with_convolution_shortcuts(padded, depth, images)
        if not epochs:
            return model, "given weights with convolution shortcuts"
        recipe = Recipe(epochs=epochs, learning_rate=0.01, weight_decay=5e-4, precision=native_precision(), channels_last=True)
        note = f"given weights with convolution shortcuts, all trained for {epochs} epochs at a rate of 0.01"
        return preparation.trained(model, f"resnet{depth}-conv-{epochs}", recipe), note

    return build


def _from_nothing(name: str, make: Callable[[], nn.Module], recipe: Recipe) -> Build:
    def build(preparation: Preparation) -> tuple[nn.Module, str]:
        epochs = preparation.dense_epochs
        torch.manual_seed(0)
        return preparation.trained(make(), f"{name}-{epochs}", recipe.with_epochs(epochs)), f"trained for {epochs} epochs"

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


_CONVOLUTIONS = Recipe(
    epochs=200, learning_rate=0.1, warmup_epochs=5, weight_decay=5e-4, precision=native_precision(), channels_last=True, batch_size=128
)
_TRANSFORMER = Recipe(
    epochs=200,
    learning_rate=1e-3,
    optimizer=AdamW(),
    warmup_epochs=10,
    weight_decay=0.05,
    decay_norm_and_bias=False,
    label_smoothing=0.1,
    precision=native_precision(),
    batch_size=128,
)

NETWORKS: dict[str, Build] = {
    "resnet20": _padded(20),
    "resnet20-conv": _convolution(20),
    "resnet56": _padded(56),
    "resnet56-conv": _convolution(56),
    "mobilenet_v1": _from_nothing("mobilenet_v1", cifar_mobilenet_v1, _CONVOLUTIONS),
    "mobilenet_v2": _from_nothing("mobilenet_v2", cifar_mobilenet_v2, _CONVOLUTIONS),
    "vit": _from_nothing("vit", partial(cifar_vit, width=64), _TRANSFORMER),
}
"""Name -> what builds it, with how it came to its weights."""
ADAMW = frozenset({"vit"})
"""Networks that train with AdamW, the others with SGD."""
