"""The driver of the rows that are pruned, recovered and perhaps trained: network x method x budget x seed, one call of ``prune`` each.

A script says which rows its table has (:class:`Row`) and hands them to :func:`main_of`. A row's progress is kept in a folder of its own
under ``--work``, so an interrupted one goes on; a row that the results have, made with the same settings, is not run again. Without
``--train-images`` nothing is trained: accuracy is that of the cut and of the recovery from unlabelled images. Refusals are rows too; one
that says that the budget cannot be met, or that the solver does not apply, is final, any other is tried again.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from common import PRETRAINED, ResultFile, network, parser, said, timed
from torch import nn

import latprune
from latprune.errors import BudgetInfeasibleError, LatpruneError, SolverNotApplicableError
from latprune.graph import trace
from latprune.latency import KernelPredictor, Store, Target, get_engine, measure
from latprune.methods import Method, SoftMasks
from latprune.pruning.finetuning import fit_with, training_threads
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.train import Recipe, finetune, recipe
from latprune.train.batches import FirstBatches
from latprune.train.precision import native_precision
from latprune.zoo import IMAGENET_NORMALISATION, Augmentation, ImageLoader, cifar10_test, cifar10_train, load_image_set

__all__ = ["CIFAR_IMAGES", "Row", "comparable", "finished", "line", "main_of", "options"]

CIFAR_IMAGES = 50_000
"""Images of an epoch."""

BATCH_OF_TEST = 50

SETTINGS = (
    "train_images",
    "base_images",
    "test_images",
    "stage_images",
    "width",
    "batch",
    "device",
    "score_batches",
    "recovery_images",
    "stages",
)
"""Columns of what a row was made with; None where a setting has no part in the row."""
KEY = ("label", "network", "budget", "guided", "engine", "seed", *SETTINGS)

_FINAL = (BudgetInfeasibleError, SolverNotApplicableError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a table.

    Attributes:
        label: Its name in the table.
        network: See :func:`common.network`.
        method: Makes the method; None measures the dense network as it is: pretrained, or trained on ``--base-images``.
        budget: One budget or several at once; of those on latency, the engine is the command line's.
        guided: ``tables``, or ``predictor``: where a budget on latency takes its costs from.
    """

    label: str
    network: str
    method: Callable[[], Method] | None
    budget: tuple[str, ...] = ()
    guided: str = "tables"

    @property
    def head(self) -> dict[str, Any]:
        """The columns that name the row."""
        return {"label": self.label, "network": self.network, "budget": " + ".join(self.budget), "guided": self.guided}


def options(doc: str | None, name: str) -> argparse.ArgumentParser:
    """The options that every driven script has."""
    made = parser(doc, name)
    made.add_argument("--data", type=Path, required=True, help="folder with the image sets and weights/")
    made.add_argument("--engine", default="onnxruntime")
    made.add_argument("--device", default="cpu", help="of the engine (default: %(default)s)")
    made.add_argument("--batch", type=int, default=1, help="of a measured inference (default: %(default)s)")
    made.add_argument("--train-device", default="cpu", help="where scores, recovery and training run (default: %(default)s)")
    made.add_argument(
        "--train-images", type=int, default=0, help="images to train on, shared by the stages of staged methods; 0 trains none"
    )
    made.add_argument("--base-images", type=int, default=0, help="images that a network without pretrained weights is trained on first")
    made.add_argument("--width", type=int, default=16, help="first width of ResNet-18; the papers' is 64 (default: %(default)s)")
    made.add_argument("--score-batches", type=int, default=16, help="batches to score with (default: %(default)s)")
    made.add_argument("--recovery-images", type=int, default=2048, help="(default: %(default)s)")
    made.add_argument("--test-images", type=int, default=10_000, help="of the evaluation images, so many of the first")
    made.add_argument("--stage-images", type=int, default=500, help="the same on the way, as cut and after stages (default: %(default)s)")
    made.add_argument("--seeds", nargs="+", type=int, default=[0])
    made.add_argument("--only", nargs="+", help="labels of the rows to run (default: all)")
    made.add_argument("--predictor", type=Path, help="kernel predictor of the engine, for rows that go by one")
    made.add_argument("--store", type=Path, default=Path("runs/papers.sqlite"), help="latency store (default: %(default)s)")
    made.add_argument("--work", type=Path, default=Path("runs/papers"), help="folder of the rows' progress (default: %(default)s)")
    made.add_argument("--no-latency", action="store_true", help="measure nothing; budgets must be counted then")
    made.add_argument("--picture", type=Path)
    return made


def main_of(args: argparse.Namespace, name: str, rows: Sequence[Row], published: Sequence[Any], **about: Any) -> list[dict[str, Any]]:
    """Run the rows that are not there, write each as it ends, and print the table.

    Returns:
        The rows of the file that were made with the same settings, those of other networks and engines too.

    Raises:
        SystemExit: A network has no pretrained weights, and nothing to train it on is given.
    """
    torch.set_num_threads(args.threads)
    wanted = [row for row in rows if not args.only or row.label in args.only]
    bare = sorted({row.network for row in wanted} - PRETRAINED)
    if bare and not args.base_images:
        raise SystemExit(f"{', '.join(bare)}: no pretrained weights; give --base-images to train on them first")
    file = ResultFile(args.output, f"papers-{name}", key=KEY, completed=completed, published=list(published), **about)
    args.store.parent.mkdir(parents=True, exist_ok=True)
    with Store(args.store) as store:
        for row in wanted:
            for seed in args.seeds:
                head = {**row.head, "engine": args.engine, "seed": seed}
                made_with = settings_of(args, row)
                if _there(file, {**head, **made_with}, measured=not args.no_latency):
                    continue
                with timed() as took:
                    found = _run(args, name, row, {**head, **made_with}, store)
                # What could be tried again has been: its old refusal goes, whatever it was tried with.
                file.rows = [other for other in file.rows if not (_open(other) and all(other[key] == head[key] for key in head))]
                file.add({**head, **made_with, **found, **took})
                print("  ".join(line({**head, **found, **took})), flush=True)
    shown = comparable(args, rows, file.rows)
    print(said(HEAD, [line(row) for row in shown]))
    return shown


def settings_of(args: argparse.Namespace, row: Row) -> dict[str, Any]:
    """The settings that a row is made with."""
    method = row.method() if row.method is not None else None
    return {
        "train_images": 0 if method is None else args.train_images,
        "base_images": 0 if row.network in PRETRAINED else args.base_images,
        "test_images": args.test_images,
        "stage_images": None if method is None else args.stage_images,
        "width": args.width if row.network == "resnet18" else None,
        "batch": args.batch,
        "device": args.device,
        "score_batches": None if method is None else args.score_batches,
        "recovery_images": None if method is None else args.recovery_images,
        "stages": 0 if method is None else method.schedule.count,
    }


def completed(row: dict[str, Any]) -> dict[str, Any]:
    """A row with the settings that rows did not say at first, which were the options' defaults."""
    dense = not row["budget"]
    first = {"base_images": 0, "stage_images": None, "width": None, "batch": 1, "device": "cpu"}
    return {**first, "score_batches": None if dense else 16, "recovery_images": None if dense else 2048, **row}


def comparable(args: argparse.Namespace, wanted: Iterable[Row], rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that were made with the settings of the command line and the stages of the methods wanted, as far as they have a part."""
    stages = {row.label: settings_of(args, row)["stages"] for row in wanted}

    def agrees(row: Mapping[str, Any], name: str) -> bool:
        apart = (name == "train_images" and not row["budget"]) or (name == "base_images" and row["network"] in PRETRAINED)
        return apart or row[name] in (getattr(args, name), None)

    names = [name for name in SETTINGS if name != "stages"]
    return [
        row
        for row in rows
        if all(agrees(completed(row), name) for name in names) and row.get("stages") in (None, stages.get(row["label"], row.get("stages")))
    ]


def _there(file: ResultFile, wanted: Mapping[str, Any], *, measured: bool) -> bool:
    """Whether the results have a row: ended, and measured where that is asked for."""
    return any(not _open(row) and ("refused" in row or not measured or row["ms"] is not None) for row in file.having(**wanted))


def _open(row: Mapping[str, Any]) -> bool:
    """Whether a row is a refusal that another try may not repeat."""
    return "refused" in row and not row.get("final", False)


def _run(args: argparse.Namespace, name: str, row: Row, head: Mapping[str, Any], store: Store) -> dict[str, Any]:
    """One row: accuracies on the way, what was delivered, the structure."""
    seed = head["seed"]
    if row.guided == "predictor" and args.predictor is None:
        return {"refused": "needs --predictor"}
    model, x = _base(args, row.network, seed)
    train, test = images_of(args, row.network, seed)
    target = Target(engine=args.engine, device=args.device, batch=args.batch)
    if row.method is None:
        return _plain(args, model, x, target, test)
    method = row.method()
    fit = None
    if args.train_images:
        chosen, few = _recipe(args, row.network, train, method.schedule.count)
        fit = fit_with(few, chosen, stage_epochs=chosen.epochs, threads=args.threads)
    elif isinstance(method.schedule, SoftMasks):
        return {"refused": "trains under masks: give --train-images"}
    try:
        result = latprune.prune(
            model,
            x,
            budget=list(row.budget),
            method=method,
            target=target,
            data=train,
            fit=fit,
            recover=method.keeps_weights and (not args.train_images or not isinstance(method.schedule, SoftMasks)),
            recovery_images=args.recovery_images,
            evaluate=FirstBatches(test, -(-args.stage_images // BATCH_OF_TEST)),
            importance_batches=args.score_batches,
            predictor=KernelPredictor.load(args.predictor) if row.guided == "predictor" else None,
            measure_latency=not args.no_latency,
            store=store,
            folder=args.work / folder_of(name, row, head, measured=not args.no_latency),
            seed=seed,
            name=row.network,
        )
    except LatpruneError as error:
        return {"refused": str(error), "final": isinstance(error, _FINAL)}
    record = result.record
    return {
        **_accuracies(result.model, test),
        "accuracies": [entry.model_dump() for entry in record.accuracies],
        "dense_ms": result.dense_latency_ms,
        "ms": result.latency_ms,
        "ratio": result.latency_ratio,
        "macs": record.pruned.macs,
        "dense_macs": record.dense.macs,
        "parameters": record.pruned.parameters,
        "dense_parameters": record.dense.parameters,
        "blocks_removed": list(record.blocks_removed),
        "groups": [entry.model_dump() for entry in record.groups],
        "verdict": str(result.verdict) if result.verdict else None,
    }


def folder_of(name: str, row: Row, head: Mapping[str, Any], *, measured: bool) -> str:
    """The name of the folder of a row's progress: everything that decides what lies in it."""
    made_with = [f"{key.removesuffix('_images')}{head[key]}" for key in SETTINGS if head[key] is not None]
    parts = [name, row.label, row.network, *row.budget, row.guided, head["engine"], str(head["seed"]), *made_with]
    return "-".join(re.sub(r"[^\w.]+", "_", part) for part in (*parts, *(() if measured else ("unmeasured",))))


def _plain(args: argparse.Namespace, model: nn.Module, x: torch.Tensor, target: Target, test: Any) -> dict[str, Any]:
    """The network as it is, measured alone."""
    graph, ms = trace(model, x), None
    if not args.no_latency:
        with get_engine(target.engine).compile(model, x, target) as compiled:
            ms = measure({"it": compiled}, max_seconds=15.0)["it"].ms
    macs, parameters = graph.macs(graph.dense_widths()), sum(parameter.numel() for parameter in model.parameters())
    counts = {"macs": macs, "dense_macs": macs, "parameters": parameters, "dense_parameters": parameters}
    return {
        **_accuracies(model, test),
        "ms": ms,
        "dense_ms": ms,
        "ratio": None if ms is None else 1.0,
        "blocks_removed": [],
        **counts,
    }


@torch.no_grad()
def _accuracies(model: nn.Module, test: Iterable[Any]) -> dict[str, float]:
    """Top-1 and top-5 as fractions."""
    from structures import top

    device = next(model.parameters()).device
    first, fifth = top(model, ((x.to(device), y.to(device)) for x, y in test), (1, 5))
    return {"top1": first / 100, "top5": fifth / 100}


def images_of(args: argparse.Namespace, name: str, seed: int) -> tuple[Any, Any]:
    """Training and evaluation batches of a network's data set."""
    if name not in ("resnet50", "mobilenet_v2"):
        test = cifar10_test(str(args.data), batch_size=BATCH_OF_TEST)
        return cifar10_train(str(args.data), seed=seed), FirstBatches(test, -(-args.test_images // BATCH_OF_TEST))
    pixels, labels = load_image_set(args.data / "imagenet_train_sample.npz")
    edge = (pixels.shape[1] - 224) // 2
    train = ImageLoader(
        pixels[:, edge : edge + 224, edge : edge + 224],
        labels,
        batch_size=25,
        normalisation=IMAGENET_NORMALISATION,
        shuffle=True,
        augmentation=Augmentation() if args.train_images else None,
        seed=seed,
    )
    held, named = load_image_set(args.data / "imagenet_eval_nips17.npz")
    edge = (held.shape[1] - 224) // 2
    test = ImageLoader(held[:, edge : edge + 224, edge : edge + 224], named, batch_size=BATCH_OF_TEST, normalisation=IMAGENET_NORMALISATION)
    return train, FirstBatches(test, -(-args.test_images // BATCH_OF_TEST))


def _recipe(args: argparse.Namespace, name: str, train: Any, stages: int) -> tuple[Recipe, Any]:
    """The papers' recipe for one of so many stages, and the batches of an epoch of it; together they see ``--train-images``."""
    chosen = recipe("mdp-imagenet" if name in ("resnet50", "mobilenet_v2") else "sp-lamp-cifar10")
    if train.batch_size != chosen.batch_size:
        # The learning rate goes with the batch (Goyal et al. 2017).
        chosen = replace(chosen, learning_rate=chosen.learning_rate * train.batch_size / chosen.batch_size, batch_size=train.batch_size)
    chosen = replace(chosen, precision=native_precision() if args.train_device == "cpu" else "bf16", channels_last=True)
    epoch, each = len(train) * train.batch_size, args.train_images / stages
    if each >= epoch:
        return chosen.with_epochs(round(each / epoch)), train
    return chosen.with_epochs(1), FirstBatches(train, max(1, round(each / train.batch_size)))


def _base(args: argparse.Namespace, name: str, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """The dense network on the training device; one without pretrained weights is trained once and kept in ``--work``."""
    model, x = network(name, args.data, width=args.width)
    if name in PRETRAINED:
        return model.to(args.train_device), x.to(args.train_device)
    kept = args.work / f"base-{name}-{args.width if name == 'resnet18' else ''}-{args.base_images}.safetensors"
    if not kept.exists():
        train = cifar10_train(str(args.data), batch_size=64)
        chosen = replace(recipe("sp-lamp-cifar10-base"), precision=native_precision(), channels_last=True)
        epochs = max(1, round(args.base_images / CIFAR_IMAGES))
        few = train if args.base_images >= CIFAR_IMAGES else FirstBatches(train, max(1, args.base_images // 64))
        with training_threads(args.threads):
            finetune(model.to(args.train_device), few, chosen.with_epochs(epochs), checkpoint_dir=args.work / f"{kept.stem}-checkpoints")
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, encode_tensors(model.state_dict()))
    model.load_state_dict(decode_tensors(kept.read_bytes(), source=str(kept)))
    return model.to(args.train_device).eval(), x.to(args.train_device)


def finished(row: dict[str, Any], prefix: str) -> float | None:
    """The last accuracy of a row whose stage begins with ``prefix``."""
    found = [entry["accuracy"] for entry in row.get("accuracies", ()) if entry["stage"].startswith(prefix)]
    return found[-1] if found else None


HEAD = ["row", "network", "budget", "latency", "im/s", "multiply-adds", "parameters", "blocks gone", "cut", "top-1", "top-5", "CPU s"]


def line(row: dict[str, Any]) -> list[str]:
    """A row as cells."""
    head = [row["label"], row["network"], row["budget"]]
    if "refused" in row:
        return [*head, f"refused: {row['refused'][:90]}", *[""] * 7, f"{row['cpu_seconds']:.0f}"]

    def share(value: float | None, digits: int = 1) -> str:
        return "–" if value is None else f"{100 * value:.{digits}f} %"

    return [
        *head,
        share(row["ratio"]),
        f"{1e3 / row['ms']:.0f}" if row.get("ms") else "–",
        share(row["macs"] / row["dense_macs"]),
        share(row["parameters"] / row["dense_parameters"]),
        str(len(row["blocks_removed"])),
        share(finished(row, "pruned"), 2),
        share(row["top1"], 2),
        share(row["top5"], 2),
        f"{row['cpu_seconds']:.0f}",
    ]
