"""A streaming detector on made scenes, end to end: trained, pruned to half its measured latency, recovered, fine-tuned, evaluated.

    python benchmarks/detection/streaming.py --scenes 256 --epochs 60 -o benchmarks/results/detection-streaming.json

The network is in the manner of StreamPETR; the scenes are drawn from a seed (latprune.zoo.detecting.MadeScenes), those of the test are
others. The metric is nuScenes' mean average precision by the distance of centres. The recipe is ``mdp-nuscenes``, squeezed or stretched to
``--epochs``. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from job import Job, ResultFile, add_job_arguments, recipes, refusals_in_words, run_job
from torch import nn

from latprune.train import recipe
from latprune.zoo import streaming_detector
from latprune.zoo.detecting import SCENE_CLASSES, MadeScenes, SetLoss, StreamingLoss, evaluate_streaming

KEY = ("size", "cameras", "width", "dim", "budget", "method", "scenes", "seed", "epochs")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=256, help="of training (default: %(default)s)")
    parser.add_argument("--test-scenes", type=int, default=64)
    parser.add_argument("--frames", type=int, default=3)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[64, 96], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--reach", type=float, default=20.0, help="largest distance of an object, metres (default: %(default)s)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 2, 2], help="per stage of the encoder (default: %(default)s)")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--dim", type=int, default=96)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--queries", type=int, default=24)
    parser.add_argument("--kept", type=int, default=8)
    add_job_arguments(parser, epochs=60, batch=8, work="runs/detection-streaming")
    return parser.parse_args()


def frames(scenes: MadeScenes, count: int, kept: int, dim: int) -> Callable[[nn.Module], list[Any]]:
    """Batches of single frames, with the memory that the dense network has of the frame before."""

    @torch.no_grad()
    def of(model: nn.Module) -> list[Any]:
        model.eval()
        found = []
        for (images, places), targets in scenes.batches():
            memory = torch.zeros(len(images), kept, dim)
            for index in range(images.shape[1]):
                labels = {name: value[:, index] for name, value in targets.items()}
                found.append(((images[:, index], places.contiguous(), memory), labels))
                memory = model(images[:, index], places, memory)[2]
                if len(found) == count:
                    return found
        return found

    return of


def main() -> None:
    args = arguments()
    size = (args.size[0], args.size[1])
    shared: dict[str, Any] = {"frames": args.frames, "size": size, "cameras": args.cameras, "reach": args.reach, "batch_size": args.batch}
    shared |= {"stride": 2 ** (len(args.blocks) + 1), "seed": args.seed}
    train = MadeScenes(args.scenes, shuffle=True, **shared)
    still = MadeScenes(min(args.scenes, args.batch * args.calibration), **shared)
    test = MadeScenes(args.test_scenes, first=args.scenes, **shared)
    torch.manual_seed(args.seed)
    model = streaming_detector(
        blocks=tuple(args.blocks),
        width=args.width,
        dim=args.dim,
        layers=args.layers,
        hidden=args.hidden,
        queries=args.queries,
        kept=args.kept,
        num_classes=len(SCENE_CLASSES),
    )
    torch.nn.init.constant_(model.classify.bias, -4.6)  # a probability of 0.01, as focal loss begins (arXiv:1708.02002, section 4.1)
    frame = SetLoss(args.reach)

    def judged(network: nn.Module) -> Any:
        return evaluate_streaming(network, test, kept=args.kept, dim=args.dim, reach=args.reach)

    places = train.places().unsqueeze(0)
    random = torch.Generator().manual_seed(0)
    images = torch.randn(1, args.cameras, 3, *size, generator=random)
    job = Job(
        model=model,
        inputs=(images, places, torch.randn(1, args.kept, args.dim, generator=random)),
        train=train,
        calibration=frames(still, args.calibration, args.kept, args.dim),
        train_loss=StreamingLoss(frame, kept=args.kept, dim=args.dim),
        score_loss=frame,
        evaluate=lambda network: judged(network).mean,
        recipes=recipes(args, replace(recipe("mdp-nuscenes"), warmup_epochs=2.0, max_gradient_norm=35.0)),
    )
    row = run_job(job, args)
    found = asdict(judged(model))
    found = {name: None if value != value else value for name, value in found.items()}  # JSON has no NaN
    found["by_class"] = {SCENE_CLASSES[label].name: value for label, value in found["by_class"].items()}
    head = {name: getattr(args, name) for name in ("size", "cameras", "width", "dim", "budget", "method", "scenes", "seed", "batch")}
    ResultFile(args.output, "detection-streaming", key=KEY, script="benchmarks/detection/streaming.py").add(
        {**head, **row, "pruned": found}
    )


if __name__ == "__main__":
    with refusals_in_words():
        main()
