"""A small vision transformer for CIFAR-10, trained in minutes: the transformer of the benchmarks.

    python benchmarks/small_vit.py --data DATA --minutes 5 -o runs/small_vit.safetensors

Run again with a file that is there, it goes on training from it (with a fresh optimizer).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from latprune.train import evaluate
from latprune.zoo import cifar10_test, cifar10_train


class Attention(nn.Module):
    """Multi-head self-attention with three projections, whose head size follows their width."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (layer(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Branch(nn.Module):
    """``x + f(norm(x))``."""

    def __init__(self, dim: int, inner: nn.Module) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.norm(x))


class SmallViT(nn.Module):
    """Patches of 4 x 4, ``depth`` pairs of attention and MLP branches, mean over the tokens."""

    def __init__(self, dim: int = 64, depth: int = 5, heads: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, dim, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 64, dim) * 0.02)
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(Branch(dim, Attention(dim, heads)))
            layers.append(Branch(dim, nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))))
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.layers(x)).mean(1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--minutes", type=float, default=5.0, help="processor time (default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = SmallViT()
    if args.output.exists():
        model.load_state_dict(load_file(args.output))
    start, seconds, step = time.process_time(), 60 * args.minutes, 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.05)
    data = cifar10_train(args.data, batch_size=128, seed=args.seed)
    while time.process_time() - start < seconds:
        for images, labels in data:
            done = (time.process_time() - start) / seconds
            if done >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * min(1.0, (step + 1) / 100) * max(1 - done, 0.02)
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            step += 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), args.output)
    print(f"{step} steps, top-1 {evaluate(model.eval(), cifar10_test(args.data)):.4f}")


if __name__ == "__main__":
    main()
