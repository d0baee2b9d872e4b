"""Detectors: a single-shot one on a bottleneck backbone, and a streaming multi-camera one with a transformer decoder and a memory."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.zoo.imagenet import BottleneckResNet

__all__ = ["SingleShotDetector", "StreamingDetector", "single_shot_detector", "streaming_detector"]


def _stem(backbone: BottleneckResNet, images: Tensor) -> Tensor:
    out: Tensor = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(images))))
    return out


class _Extra(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(inputs, outputs // 2, 1)
        self.conv = nn.Conv2d(outputs // 2, outputs, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.reduce(x))))


class SingleShotDetector(nn.Module):
    """SSD (arXiv:1512.02325) on a bottleneck ResNet: classes and boxes for the anchors of several maps, without the suppression step."""

    def __init__(
        self,
        *,
        blocks: tuple[int, ...],
        width: int,
        extra: tuple[int, ...],
        num_classes: int,
        anchors: int,
        stride_on_first: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = BottleneckResNet(blocks, num_classes=1, width=width, stride_on_first=stride_on_first)
        self.backbone.fc = nn.Identity()  # type: ignore[assignment]
        self.stages = len(blocks)
        sizes = [4 * width * 2 ** (self.stages - 2), 4 * width * 2 ** (self.stages - 1)]
        self.extra = nn.ModuleList(_Extra(a, b) for a, b in zip((sizes[-1], *extra), extra, strict=False))
        sizes += extra
        self.classify = nn.ModuleList(nn.Conv2d(size, anchors * num_classes, 3, padding=1) for size in sizes)
        self.locate = nn.ModuleList(nn.Conv2d(size, anchors * 4, 3, padding=1) for size in sizes)
        self.num_classes = num_classes

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``(n, 3, h, w)`` images -> class logits ``(n, anchors, num_classes)`` and boxes ``(n, anchors, 4)`` of all maps."""
        out = _stem(self.backbone, x)
        maps = []
        for index in range(self.stages):
            out = self.backbone.get_submodule(f"layer{index + 1}")(out)
            if index >= self.stages - 2:
                maps.append(out)
        for layer in self.extra:
            out = layer(out)
            maps.append(out)
        classes = [self._flat(head(m), self.num_classes) for head, m in zip(self.classify, maps, strict=True)]
        boxes = [self._flat(head(m), 4) for head, m in zip(self.locate, maps, strict=True)]
        return torch.cat(classes, 1), torch.cat(boxes, 1)

    @staticmethod
    def _flat(x: Tensor, last: int) -> Tensor:
        return x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, last)


def single_shot_detector(
    num_classes: int = 21,
    *,
    blocks: tuple[int, ...] = (3, 4, 6, 3),
    width: int = 64,
    extra: tuple[int, ...] = (512, 512, 256, 256),
    anchors: int = 6,
    stride_on_first: bool = False,
) -> SingleShotDetector:
    """SSD512 with a ResNet-50 backbone, the detector of the pruning papers' Pascal VOC experiments; smaller arguments make a small one.

    Args:
        num_classes: Classes with the background.
        blocks: Blocks per stage of the backbone.
        width: Inner width of the backbone's first stage.
        extra: Channels of the maps after the backbone.
        anchors: Boxes per place.
        stride_on_first: Where the backbone's stages downsample, as in :func:`resnet50`, whose weights it takes.
    """
    if len(blocks) < 2:
        raise InvalidArgumentError(f"blocks (={blocks}) must name at least 2 stages: the last two are read by the heads")
    return SingleShotDetector(
        blocks=blocks, width=width, extra=extra, num_classes=num_classes, anchors=anchors, stride_on_first=stride_on_first
    )


class CrossAttention(nn.Module):
    """Multi-head attention of queries over other tokens; pre-norm and residual are the caller's."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = dim // heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """``(n, q, dim)`` queries over ``(n, t, dim)`` tokens -> ``(n, q, dim)``."""
        n, q, t = queries.shape[0], queries.shape[1], tokens.shape[1]
        a = self.query(queries).view(n, q, self.heads, self.head_dim).transpose(1, 2)
        b = self.key(tokens).view(n, t, self.heads, self.head_dim).transpose(1, 2)
        c = self.value(tokens).view(n, t, self.heads, self.head_dim).transpose(1, 2)
        mixed = F.scaled_dot_product_attention(a, b, c)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(n, q, self.heads * self.head_dim))
        return out


class _SelfBranch(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, heads)

    def forward(self, queries: Tensor, memory: Tensor) -> Tensor:
        h = self.norm(queries)
        out: Tensor = queries + self.attention(h, torch.cat((h, memory), dim=1))
        return out


class _CrossBranch(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, heads)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        out: Tensor = queries + self.attention(self.norm(queries), tokens)
        return out


class _FeedForward(nn.Module):
    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.fc2(F.relu(self.fc1(self.norm(x))))
        return out


class _DecoderLayer(nn.Module):
    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.among = _SelfBranch(dim, heads)
        self.across = _CrossBranch(dim, heads)
        self.feed = _FeedForward(dim, hidden)

    def forward(self, queries: Tensor, tokens: Tensor, memory: Tensor) -> Tensor:
        out: Tensor = self.feed(self.across(self.among(queries, memory), tokens))
        return out


class StreamingDetector(nn.Module):
    """A multi-camera detector over time in the manner of StreamPETR (arXiv:2303.11926).

    One encoder for all cameras, a place embedding for each token, object queries that attend to each other, to the memory of earlier frames
    and to all tokens; the best queries of a frame become the memory of the next.
    """

    def __init__(
        self,
        *,
        blocks: tuple[int, ...],
        width: int,
        dim: int,
        heads: int,
        layers: int,
        hidden: int,
        queries: int,
        kept: int,
        num_classes: int,
    ) -> None:
        super().__init__()
        self.backbone = BottleneckResNet(blocks, num_classes=1, width=width)
        self.backbone.fc = nn.Identity()  # type: ignore[assignment]
        self.stages = len(blocks)
        self.reduce = nn.Conv2d(4 * width * 2 ** (self.stages - 1), dim, 1)
        self.place = nn.Sequential(nn.Linear(3, hidden), nn.ReLU(), nn.Linear(hidden, dim))
        self.queries = nn.Parameter(torch.randn(queries, dim) * 0.02)
        self.layers = nn.ModuleList(_DecoderLayer(dim, heads, hidden) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.classify = nn.Linear(dim, num_classes)
        self.locate = nn.Linear(dim, 10)
        self.kept = kept

    def forward(self, images: Tensor, places: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One frame.

        Args:
            images: ``(n, cameras, 3, h, w)``.
            places: ``(n, tokens, 3)`` position of each token in space, tokens of all cameras.
            memory: ``(n, kept, dim)`` queries kept from the frame before.

        Returns:
            Class logits ``(n, queries, num_classes)``, boxes ``(n, queries, 10)``, the memory for the next frame ``(n, kept, dim)``.
        """
        n, cameras = images.shape[0], images.shape[1]
        out = _stem(self.backbone, images.flatten(0, 1))
        for index in range(self.stages):
            out = self.backbone.get_submodule(f"layer{index + 1}")(out)
        out = self.reduce(out)
        tokens = out.flatten(2).transpose(1, 2).unflatten(0, (n, cameras)).flatten(1, 2)
        tokens = tokens + self.place(places)
        queries = self.queries.unsqueeze(0).expand(n, -1, -1)
        for layer in self.layers:
            queries = layer(queries, tokens, memory)
        queries = self.norm(queries)
        classes = self.classify(queries)
        best = classes.amax(dim=2).topk(self.kept, dim=1).indices
        chosen = queries.gather(1, best.unsqueeze(2).expand(-1, -1, queries.shape[2]))
        return classes, self.locate(queries), chosen


def streaming_detector(
    *,
    blocks: tuple[int, ...] = (1, 2, 2, 1),
    width: int = 16,
    dim: int = 64,
    heads: int = 4,
    layers: int = 3,
    hidden: int = 128,
    queries: int = 24,
    kept: int = 8,
    num_classes: int = 10,
) -> StreamingDetector:
    """A small streaming detector (``blocks=(3, 4, 6, 3), width=64, dim=256, layers=6, queries=300`` is about the paper's size).

    Args:
        blocks: Blocks per stage of the image encoder.
        width: Inner width of its first stage.
        dim: Width of tokens and queries.
        heads: Attention heads, a divisor of ``dim``.
        layers: Decoder layers.
        hidden: Width of the feed-forward layers.
        queries: Object queries.
        kept: Queries that become the next frame's memory, at most ``queries``.
        num_classes: Object classes.
    """
    if dim % heads:
        raise InvalidArgumentError(f"heads (={heads}) must divide dim (={dim})")
    if not 1 <= kept <= queries:
        raise InvalidArgumentError(f"kept (={kept}) must lie between 1 and queries (={queries})")
    return StreamingDetector(
        blocks=blocks, width=width, dim=dim, heads=heads, layers=layers, hidden=hidden, queries=queries, kept=kept, num_classes=num_classes
    )
