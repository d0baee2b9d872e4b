"""How much of a training step goes into its batch: decoding, augmentation and normalisation, as a share of all processor time.

    python benchmarks/augmentation.py -o benchmarks/results/augmentation.json

Training steps of a network on made images, one thread, with and without the batch being made anew each time. Processor time is counted, not
the clock, so that other work on the machine does not matter; a loader's threads count along.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from latprune.zoo import (
    IMAGENET_NORMALISATION,
    Augmentation,
    DatasetImages,
    ImageLoader,
    RandomResizedCrop,
    StreamedImages,
    cifar_resnet,
    mobilenet_v2,
    resnet50,
)

sys.path.insert(0, str(Path(__file__).resolve().parent / "latency"))
from result_file import ResultFile

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20": lambda: cifar_resnet(depth=20),
    "resnet56": lambda: cifar_resnet(depth=56),
    "mobilenet_v2": mobilenet_v2,
    "resnet50": resnet50,
}


class Encoded:
    """Rows of encoded images, as a data set gives them."""

    column_names = ("image", "label")

    def __init__(self, count: int) -> None:
        from PIL import Image

        random = np.random.default_rng(0)
        self.images = []
        for _ in range(count):
            coarse = random.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
            self.images.append(stream.getvalue())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Any) -> Any:
        return [index % 10 for index in range(len(self))] if key == "label" else {"image": self.images[key], "label": key % 10}


def loaders(batch: int, batches: int) -> dict[str, Any]:
    random = np.random.default_rng(0)
    count = batch * batches
    images, labels = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), random.integers(0, 10, count)
    memory = ImageLoader(images, labels, batch_size=batch, normalisation=IMAGENET_NORMALISATION, shuffle=True, augmentation=Augmentation())
    files = StreamedImages(DatasetImages(Encoded(count)), batch_size=batch, shuffle=True, augmentation=RandomResizedCrop(), workers=1)
    return {"crop and flip, 32x32 in memory": memory, "decoding and random parts, JPEG 500x375 to 224x224": files}


def seconds(batches: Iterator[Any]) -> float:
    start = time.process_time()
    for _ in batches:
        pass
    return time.process_time() - start


def step_seconds(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor], steps: int) -> float:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    for index in range(steps + 1):
        if index == 1:  # the first one makes room
            start = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    return (time.process_time() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("-o", "--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    file = ResultFile(args.output, "augmentation", key=("batch_is", "network"), script="benchmarks/augmentation.py")
    for batch, networks in ((128, ("resnet20", "resnet56")), (8, ("mobilenet_v2", "resnet50"))):
        name, loader = list(loaders(batch, args.batches).items())[0 if batch == 128 else 1]
        made = seconds(iter(loader)) / len(loader)
        for network in networks:
            torch.manual_seed(0)
            step = step_seconds(NETWORKS[network]().train(), next(iter(loader)), args.steps)
            row = {"batch_is": name, "network": network, "batch": batch, "batch_seconds": made, "step_seconds": step}
            file.add({**row, "share": made / (made + step)})
            print(f"{network:14} {name}: {1000 * made:.1f} ms of {1000 * (made + step):.1f} ms, {made / (made + step):.1%}", flush=True)


if __name__ == "__main__":
    main()
