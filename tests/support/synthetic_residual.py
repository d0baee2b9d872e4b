"""A small residual network with its graph written by hand, so that the criteria are tested without the tracer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.graph.types import ChannelGroup, Kernel, Member, Role


class Net(nn.Module):
    """stem+norm -> block (conv1, bn1, conv2, bn2, added) -> flatten -> linear; stream of 4 channels, inner width 6."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(4)
        self.conv1 = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(4)
        self.linear = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.adaptive_avg_pool2d(x, 2).flatten(1))


@dataclass(frozen=True)
class Graph:
    groups: Mapping[str, ChannelGroup]
    kernels: Mapping[str, Kernel]
    carried: Mapping[str, frozenset[str]] | None = None
    norms: Mapping[str, str] | None = None


def member(tensor: str, dim: int, units: int, role: Role, blocks: tuple[str, ...] = (), repeat: int = 1) -> Member:
    return Member(
        tensor=tensor,
        dim=dim,
        positions=np.arange(units * repeat),
        units=np.repeat(np.arange(units), repeat),
        role=role,
        kernel=tensor.rpartition(".")[0],
        blocks=blocks,
    )


def norm(name: str, units: int, blocks: tuple[str, ...] = ()) -> tuple[Member, ...]:
    return tuple(member(f"{name}.{part}", 0, units, Role.NORM, blocks) for part in ("weight", "bias", "running_mean", "running_var"))


def kernel(name: str, kind: str, blocks: tuple[str, ...] = ()) -> Kernel:
    return Kernel(name=name, kind=kind, module=name, axes=(), blocks=blocks, macs=0.0)


def residual() -> tuple[Net, Graph]:
    torch.manual_seed(0)
    model = Net()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2.0)
    inside = ("block",)
    stream = ChannelGroup(
        name="stem",
        rows=1,
        columns=4,
        min_width=1,
        kind="channels",
        members=(
            member("stem.weight", 0, 4, Role.PRODUCER),
            *norm("stem_norm", 4),
            member("conv1.weight", 1, 4, Role.CONSUMER, inside),
            member("conv2.weight", 0, 4, Role.PRODUCER, inside),
            *norm("bn2", 4, inside),
            member("linear.weight", 1, 4, Role.CONSUMER, repeat=4),
        ),
    )
    inner = ChannelGroup(
        name="conv1",
        rows=1,
        columns=6,
        min_width=1,
        kind="channels",
        members=(
            member("conv1.weight", 0, 6, Role.PRODUCER, inside),
            *norm("bn1", 6, inside),
            member("conv2.weight", 1, 6, Role.CONSUMER, inside),
        ),
    )
    kernels = (
        kernel("stem", "conv"),
        kernel("stem_norm", "norm"),
        kernel("conv1", "conv", inside),
        kernel("bn1", "norm", inside),
        kernel("conv2", "conv", inside),
        kernel("bn2", "norm", inside),
        kernel("linear", "linear"),
    )
    return model, Graph(groups={"stem": stream, "conv1": inner}, kernels={k.name: k for k in kernels})


def batches(count: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(8, 3, 4, 4, generator=generator), torch.randint(0, 5, (8,), generator=generator)) for _ in range(count)]
