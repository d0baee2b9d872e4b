"""Prune a YOLO model of Ultralytics, fine-tune it with its own trainer, validate, save, reload without pickle, and export it.

    python examples/ultralytics_yolo.py --model yolov8n.yaml --budget 50% --output pruned

Detects (``--task segment``, ``pose``, ``classify``: outlines, tells the middle of, names) squares and discs on made images, from random
weights, so that nothing is downloaded. Needs ``ultralytics`` (``pip install ultralytics``), whose licence is the AGPL-3.0; the library does
not import it.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import nn
from ultralytics import YOLO

import latprune
from latprune.export.record import AccuracyRecord

SCORES = {
    "detect": "metrics/mAP50(B)",
    "segment": "metrics/mAP50(M)",
    "pose": "metrics/mAP50(P)",
    "classify": "metrics/accuracy_top1",
}


def make_data(folder: Path, task: str, *, size: int, count: int) -> str:
    """Images of a square or a disc each, labelled for ``task``; what ``data=`` takes."""
    generator = np.random.default_rng(0)
    for part in ("train", "val"):
        for index in range(count):
            label, radius = int(generator.integers(2)), float(generator.uniform(0.15, 0.3))
            x, y = generator.uniform(radius, 1 - radius, 2)
            image = Image.fromarray(generator.integers(0, 96, (size, size, 3), dtype=np.uint8))
            box = [(x - radius) * size, (y - radius) * size, (x + radius) * size, (y + radius) * size]
            draw = ImageDraw.Draw(image)
            (draw.ellipse if label else draw.rectangle)(box, fill=(200, 200, 60))
            name = f"{part}/{'disc' if label else 'square'}" if task == "classify" else f"images/{part}"
            (folder / name).mkdir(parents=True, exist_ok=True)
            image.save(folder / name / f"{index}.png")
            corners = [(x - radius, y - radius), (x + radius, y - radius), (x + radius, y + radius), (x - radius, y + radius)]
            values = {
                "detect": [x, y, 2 * radius, 2 * radius],
                "segment": [value for corner in corners for value in corner],
                "pose": [x, y, 2 * radius, 2 * radius, x, y],
            }.get(task)
            if values is not None:
                (folder / "labels" / part).mkdir(parents=True, exist_ok=True)
                (folder / "labels" / part / f"{index}.txt").write_text(" ".join(map(str, [label, *values])))
    if task == "classify":
        return str(folder)
    lines = [f"path: {folder}", "train: images/train", "val: images/val", "names: {0: square, 1: disc}"]
    lines += ["kpt_shape: [1, 2]"] * (task == "pose")
    (folder / "data.yaml").write_text("\n".join(lines))
    return str(folder / "data.yaml")


@contextmanager
def deployed(model: nn.Module) -> Iterator[None]:
    """The model as Ultralytics' exporter runs it: the head returns its decoded predictions alone, ``C2f`` splits by its attribute ``c``.

    Else the raw feature maps beside the predictions count as outputs, whose channels stay; and ``c``, which only ``forward_split`` reads,
    would not follow the cut.
    """
    head, splitting = model.model[-1], [module for module in model.modules() if hasattr(type(module), "forward_split")]
    head.export = True
    for module in splitting:
        module.forward = module.forward_split
    try:
        yield
    finally:
        del head.export
        for module in splitting:
            del module.forward


def raw_outputs(model: nn.Module, example_inputs: torch.Tensor) -> latprune.WidthRules:
    """Keeps the widths of the last layers of the head's branches: the loss reads them as they are, and none of their values can go."""
    place = f"model.{len(model.model) - 1}"
    last = set()
    for name, branches in model.model[-1].named_children():
        for index, branch in enumerate(branches if isinstance(branches, nn.ModuleList) else ()):
            last.add(f"{place}.{name}.{index}" + (f".{len(branch) - 1}" if isinstance(branch, nn.Sequential) else ""))
    return latprune.WidthRules(min_share={name: 1.0 for name in latprune.trace(model, example_inputs).groups if name in last})


class Job:
    """One task on the made data: builds its dense model, trains and validates modules of any width."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.yolo = YOLO(args.model, task=args.task)
        self.task: str = self.yolo.task
        self.size: int = args.imgsz
        data = make_data(folder / "data", self.task, size=args.imgsz, count=args.images)
        self.settings = {
            "task": self.task, "model": args.model, "data": data, "imgsz": args.imgsz, "batch": 8, "device": "cpu", "workers": 0,
            "project": str(folder / "runs"), "exist_ok": True, "plots": False, "verbose": False, "amp": False, "seed": 0,
        }  # fmt: skip

    def trainer(self, **options: Any) -> Any:
        return self.yolo.task_map[self.task]["trainer"](overrides={**self.settings, **options})

    def build(self) -> nn.Module:
        """The dense model with random weights, for the classes of the data."""
        torch.manual_seed(0)
        trainer = self.trainer()
        trainer.model = trainer.get_model(cfg=self.settings["model"], verbose=False)
        trainer.set_model_attributes()
        return trainer.model.eval()

    def train(self, model: nn.Module, epochs: int) -> None:
        """Train this very module: ``YOLO.train`` would build one of the YAML file, at full width.

        The trainer builds nothing where its ``model`` is a module already. It trains that one in place, and keeps an average beside it,
        which is what it validates and delivers.
        """
        trainer = self.trainer(epochs=epochs, close_mosaic=0)
        trainer.model = model
        trainer.train()
        model.load_state_dict(trainer.ema.ema.state_dict())
        model.criterion = None  # made for the training, of the head's sizes
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        model.eval()

    def score(self, model: nn.Module) -> float:
        """Ultralytics' own validation, on a copy: it merges batch norms into the convolutions of what it is given."""
        validator = self.yolo.task_map[self.task]["validator"](args={**self.settings, "mode": "val"})
        return float(validator(model=copy.deepcopy(model))[SCORES[self.task]])

    def images(self) -> Iterator[torch.Tensor]:
        """Batches of the training images, values from 0 to 1."""
        paths = sorted(Path(self.settings["data"]).parent.rglob("train/**/*.png"))
        for start in range(0, len(paths), 8):
            arrays = [np.asarray(Image.open(path)) for path in paths[start : start + 8]]
            yield torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255


def main(arguments: list[str] | None = None) -> latprune.Result:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="yolov8n.yaml", help="for instance yolov8n, yolo11n-seg, yolo26n-pose, yolo11n-cls (.yaml)")
    parser.add_argument("--task", choices=list(SCORES), help="by default what the model's name says")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--method", default="mdp")
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=10, help="of training before, and again after the cut")
    parser.add_argument("--predict-only", action="store_true", help="measure nothing (for a counted budget)")
    parser.add_argument("--output", default="pruned")
    args = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(args, Path(folder))
        model = job.build()
        if args.epochs:
            job.train(model, args.epochs)
        accuracies = [AccuracyRecord(stage="dense", accuracy=job.score(model))]
        images, example = list(job.images()), torch.zeros(1, 3, args.imgsz, args.imgsz)
        with deployed(model):
            pruner = latprune.Pruner(
                model,
                example,
                budget=args.budget,
                target=args.engine,
                method=args.method,
                widths=raw_outputs(model, example),
                measure_latency=not args.predict_only,
            )
            while not pruner.done:
                pruner.step(images)
        accuracies.append(AccuracyRecord(stage="pruned", accuracy=job.score(model)))
        if args.epochs:
            job.train(model, args.epochs)
            accuracies.append(AccuracyRecord(stage="fine-tuned", accuracy=job.score(model)))
        with deployed(model):
            result = pruner.result(name=Path(args.model).stem, accuracies=accuracies)
            pruner.close()
            result.save(args.output)
            print(result)
            print(f"ONNX: {result.export_onnx(Path(args.output) / 'model.onnx').errors}")
        # Reloaded without pickle, into the model that the YAML file builds, and handed to the wrapper for everything it offers.
        again = latprune.restore(job.build, args.output)
        assert job.score(again) == accuracies[-1].accuracy
        job.yolo.model = again
        detections = job.yolo.predict(np.full((args.imgsz, args.imgsz, 3), 90, dtype=np.uint8), imgsz=args.imgsz, verbose=False)
        print(f"predicted by the wrapper: {detections[0].verbose() or 'nothing'}")
        again.args, again.task = vars(job.trainer().args), job.task  # as the wrapper's own loader sets them
        again.pt_path = f"{args.output}/wrapper.pt"  # the exporter names its own file after it
        print(f"exported by the wrapper: {job.yolo.export(format='onnx', imgsz=args.imgsz, simplify=False, verbose=False)}")
    return result


if __name__ == "__main__":
    main()
