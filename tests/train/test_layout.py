from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from latprune.progress import listening
from latprune.train import Recipe, finetune
from latprune.train.layout import strided_projection


@pytest.mark.parametrize(
    ("convolution", "narrow"),
    [
        (nn.Conv2d(7, 8, 1, stride=2), True),
        (nn.Conv2d(3, 8, 1, stride=(1, 2)), True),
        (nn.Conv2d(8, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2, padding=1), False),
        (nn.Conv2d(8, 8, 1, stride=2, groups=2), False),
    ],
)
def test_narrow_projections_with_a_stride_are_found(convolution: nn.Module, narrow: bool) -> None:
    assert strided_projection(nn.Sequential(nn.ReLU(), convolution)) == ("1" if narrow else None)


def network(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 8, 1, stride=2), nn.Flatten(), nn.Linear(72, 2))


@pytest.mark.parametrize(("channels", "precision", "last"), [(4, "fp32", False), (4, "bf16", True), (8, "fp32", True)])
def test_only_what_would_not_survive_is_trained_contiguous_and_it_is_said_once(channels: int, precision: str, last: bool) -> None:
    batches = [(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.tensor([0, 1]))] * 2
    seen: list[bool] = []
    lines: list[str] = []
    model = network(channels)
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.is_contiguous()))
    recipe = Recipe(epochs=2, learning_rate=0.01, channels_last=True, precision=precision)  # type: ignore[arg-type]
    with listening(lines.append):
        finetune(model, batches, recipe)
    assert seen == [not last] * 4
    assert len([line for line in lines if "training contiguous, not channels last: '2'" in line]) == (0 if last else 1)


def test_the_process_survives_a_narrow_residual_network() -> None:
    """In a process of its own, which PyTorch's backward pass would end."""
    script = """
import torch
from latprune import zoo
from latprune.train import Recipe, finetune
torch.set_num_threads(1)
batch = torch.randn(32, 3, 32, 32), torch.randint(0, 10, (32,))
print(finetune(zoo.cifar_resnet18(width=4), [batch] * 2, Recipe(epochs=1, learning_rate=0.01, channels_last=True)).finished)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.split() == ["True"], done.stderr[-2000:]
