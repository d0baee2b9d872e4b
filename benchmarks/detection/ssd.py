r"""SSD with ResNet-50 on Pascal VOC, end to end: trained, pruned to half its measured latency, recovered, fine-tuned, evaluated.

    python benchmarks/detection/ssd.py --voc VOC --weights DATA/weights/imagenet_resnet50_v1_fp16.safetensors --size 192 --epochs 20 \
        --batch 8 -o benchmarks/results/detection-ssd.json

VOC is a folder with ``VOCdevkit/VOC2012``, or a zip file of it. The paper's setting is the default but for the epochs: 512 x 512,
ResNet-50's width, the recipe ``mdp-voc`` squeezed or stretched to ``--epochs``. Interrupted, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import zipfile
from dataclasses import replace
from pathlib import Path

import torch
from job import Job, ResultFile, add_job_arguments, recipes, refusals_in_words, run_job
from safetensors.torch import load_file

from latprune.train import recipe
from latprune.zoo import VOCFolder, single_shot_detector
from latprune.zoo.detecting import (
    DefaultBoxes,
    DetectionAugmentation,
    DetectionLoader,
    MultiboxLoss,
    evaluate_detector,
    map_sizes,
)

KEY = ("size", "width", "blocks", "budget", "method", "images", "seed", "epochs")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--voc", type=Path, required=True, help="folder with VOCdevkit/VOC2012 (or a year of --year), or a zip file of it")
    parser.add_argument("--year", type=int, default=2012)
    parser.add_argument("--train-split", default="train")
    parser.add_argument("--test-split", default="val")
    parser.add_argument("--weights", type=Path, help="ResNet-50 weights for the backbone, at full width")
    parser.add_argument(
        "--stride-on-first", action=argparse.BooleanOptionalAction, default=True, help="the form that the weights have (v1)"
    )
    parser.add_argument("--size", type=int, default=512, help="side of the network's input (default: %(default)s)")
    parser.add_argument("--width", type=int, default=64, help="inner width of the backbone's first stage (default: %(default)s)")
    parser.add_argument("--blocks", type=int, nargs="+", default=[3, 4, 6, 3])
    parser.add_argument("--extra", type=int, nargs="+", default=[512, 512, 256, 256], help="channels of the further maps")
    parser.add_argument("--images", type=int, help="images of each split at most")
    parser.add_argument(
        "--fixed-norms", action=argparse.BooleanOptionalAction, default=True, help="keep batch norms' statistics (small batches)"
    )
    parser.add_argument("--workers", type=int)
    add_job_arguments(parser, epochs=20, batch=32, work="runs/detection-ssd")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    root = args.voc
    if root.suffix == ".zip":
        root = args.work / "voc"
        if not root.exists():
            with zipfile.ZipFile(args.voc) as archive:
                archive.extractall(root)
    splits = [VOCFolder(root, split, year=args.year) for split in (args.train_split, args.test_split)]
    for source in splits if args.images else ():
        source.names, source.annotations = source.names[: args.images], source.annotations[: args.images]
    torch.manual_seed(args.seed)
    extra = tuple(args.extra)
    model = single_shot_detector(
        len(splits[0].classes) + 1, blocks=tuple(args.blocks), width=args.width, extra=extra, stride_on_first=args.stride_on_first
    )
    if args.weights is not None:
        state = {name: value.float() for name, value in load_file(args.weights).items() if not name.startswith("fc.")}
        model.backbone.load_state_dict(state)
    size = (args.size, args.size)
    anchors = DefaultBoxes(maps=map_sizes(*size, maps=2 + len(extra), stride=2 ** len(args.blocks))).boxes()
    shared = {"size": size, "workers": args.workers, "seed": args.seed}
    train = DetectionLoader(splits[0], batch_size=args.batch, shuffle=True, augmentation=DetectionAugmentation(), drop_last=True, **shared)
    still = DetectionLoader(splits[0], batch_size=args.batch, **shared)
    test = DetectionLoader(splits[1], batch_size=args.batch, **shared)
    loss = MultiboxLoss(anchors)
    base = replace(recipe("mdp-voc"), fixed_norms=args.fixed_norms, max_gradient_norm=10.0, warmup_epochs=2.0)
    job = Job(
        model=model,
        inputs=torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)),
        train=train,
        calibration=lambda _: [batch for _, batch in zip(range(args.calibration), still, strict=False)],
        train_loss=loss,
        score_loss=loss,
        evaluate=lambda network: evaluate_detector(network, test, anchors).mean,
        recipes=recipes(args, base),
    )
    row = run_job(job, args)
    names = splits[0].classes
    for metric in ("area", "11-point"):
        precision = evaluate_detector(model, test, anchors, metric=metric)
        row[f"pruned {metric}"] = {"mean": precision.mean, **{names[label]: value for label, value in precision.by_class.items()}}
    head = {"size": args.size, "width": args.width, "blocks": args.blocks, "budget": args.budget, "method": args.method}
    head |= {"images": [len(source) for source in splits], "seed": args.seed, "pretrained": args.weights is not None, "batch": args.batch}
    ResultFile(args.output, "detection-ssd", key=KEY, script="benchmarks/detection/ssd.py").add({**head, **row})


if __name__ == "__main__":
    with refusals_in_words():
        main()
