"""What both detectors' jobs do: train the dense network, prune it to its budget, recover and fine-tune it, and judge it at each step."""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import latprune
from latprune import Target
from latprune.errors import LatpruneError
from latprune.latency import Store, get_engine
from latprune.latency.measuring.sampling import NetworkSampler
from latprune.pruning import fit_with
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.train import ProgressPrinter, Recipe, finetune

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "latency"))
from result_file import ResultFile

__all__ = ["Job", "ResultFile", "add_job_arguments", "check_job", "recipes", "refusals_in_words", "run_job"]

COUNTED = ("flops=", "params=")
"""Budgets that need no latency table."""

Evaluate = Callable[[nn.Module], float]


def add_job_arguments(parser: argparse.ArgumentParser, *, epochs: int, batch: int, work: str) -> None:
    """Add what both jobs are told."""
    parser.add_argument("--epochs", type=int, default=epochs, help="of the dense network (default: %(default)s)")
    parser.add_argument("--tune-epochs", type=int, help="of the pruned one (default: as many)")
    parser.add_argument("--learning-rate", type=float, help="peak (default: the recipe's)")
    parser.add_argument("--tune-learning-rate", type=float, help="peak of the fine-tuning (default: as for the dense network)")
    parser.add_argument("--batch", type=int, default=batch, help="of training (default: %(default)s)")
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--method", default="mdp")
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--threads", type=int, default=1, help="of one inference (default: %(default)s)")
    parser.add_argument("--train-threads", type=int, help="of training and evaluation (default: all cores)")
    parser.add_argument("--calibration", type=int, default=8, help="batches to score and recover with (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path(work), help="folder for checkpoints and the run (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, help="JSON file that takes the row")


def recipes(args: argparse.Namespace, base: Recipe) -> tuple[Recipe, Recipe]:
    """The recipes of the dense network and of the fine-tuning."""
    dense = replace(base.with_epochs(args.epochs), seed=args.seed, learning_rate=args.learning_rate or base.learning_rate)
    tune = dense.with_epochs(args.tune_epochs or args.epochs)
    return dense, replace(tune, learning_rate=args.tune_learning_rate or dense.learning_rate)


class Job:
    """One detector's job.

    Args:
        model: The network, at the weights that training begins with.
        inputs: What is traced and timed: one example.
        train: Batches of training, with a length.
        calibration: Batches whose inputs are the model's, for scores and recovery.
        train_loss: ``loss(model, batch)`` of ``train``.
        score_loss: The same of ``calibration``.
        evaluate: The metric of a network, between 0 and 1.
        recipes: Of the dense network and of the fine-tuning.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        inputs: Any,
        train: Any,
        calibration: Callable[[nn.Module], Any],
        train_loss: Callable[[nn.Module, Any], torch.Tensor],
        score_loss: Callable[[nn.Module, Any], torch.Tensor],
        evaluate: Evaluate,
        recipes: tuple[Recipe, Recipe],
    ) -> None:
        self.model, self.inputs, self.train, self.calibration = model, inputs, train, calibration
        self.train_loss, self.score_loss, self.evaluate, self.recipes = train_loss, score_loss, evaluate, recipes


@contextmanager
def refusals_in_words() -> Iterator[None]:
    """Around a whole script: what the library refuses ends it with one line and exit status 1."""
    try:
        yield
    except LatpruneError as error:
        raise SystemExit(f"error: {error}") from error


def check_job(job: Job, args: argparse.Namespace) -> None:
    """Find out before anything is trained whether the network can be cut at all, and whether its layers show in the engine's profile.

    Raises:
        LatpruneError: It cannot.
    """
    target = Target(engine=args.engine, threads=args.threads)
    model = copy.deepcopy(job.model).eval()
    pruner = latprune.Pruner(model, job.inputs, budget=args.budget, method=args.method, target=target, seed=args.seed)
    try:
        if not args.budget.startswith(COUNTED):
            NetworkSampler(pruner.model, pruner.graph, job.inputs, target, get_engine(args.engine)).close()
    finally:
        pruner.close()


def run_job(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """Train, prune, recover, fine-tune and evaluate; the figures of the row. Interrupted, it goes on where it stopped."""
    torch.set_num_threads(args.train_threads or torch.get_num_threads())
    start = time.perf_counter()
    dense = args.work / "dense.safetensors"
    args.work.mkdir(parents=True, exist_ok=True)
    if dense.exists():
        job.model.load_state_dict(decode_tensors(dense.read_bytes(), source=str(dense)))
    else:
        check_job(job, args)
        finetune(
            job.model,
            job.train,
            job.recipes[0],
            loss=job.train_loss,
            checkpoint_dir=args.work / "dense",
            progress=ProgressPrinter(),
        )
        write_atomic(dense, encode_tensors(job.model.state_dict()))
    trained = time.perf_counter() - start
    job.model.eval()
    print(f"dense: {job.evaluate(job.model):.2%}", flush=True)
    result = latprune.prune(
        job.model,
        job.inputs,
        budget=args.budget,
        method=args.method,
        target=Target(engine=args.engine, threads=args.threads),
        data=job.calibration(job.model),
        loss=job.score_loss,
        evaluate=job.evaluate,
        fit=fit_with(job.train, job.recipes[1], loss=job.train_loss, evaluate=None, threads=args.train_threads, progress=ProgressPrinter()),
        folder=args.work / "pruned",
        store=Store(args.work / "latency.sqlite"),
        seed=args.seed,
    )
    result.report(args.work / "pruned" / "report.html")
    record = result.record
    steps = [{"stage": entry.stage, "value": entry.accuracy} for entry in record.accuracies]
    for step in steps:
        print(f"{step['stage']}: {step['value']:.2%}")
    print(f"latency {result.dense_latency_ms:.2f} ms -> {result.latency_ms:.2f} ms, {result.latency_ratio:.1%} of dense")
    return {
        "steps": steps,
        "dense_ms": result.dense_latency_ms,
        "pruned_ms": result.latency_ms,
        "ratio": result.latency_ratio,
        "parameters": [record.dense.parameters, record.pruned.parameters],
        "macs": [record.dense.macs, record.pruned.macs],
        "blocks_removed": len(record.blocks_removed),
        "epochs": [recipe.epochs for recipe in job.recipes],
        "learning_rate": [recipe.learning_rate for recipe in job.recipes],
        "engine": args.engine,
        "threads": args.threads,
        "dense_training_seconds": trained,
        "seconds": time.perf_counter() - start,
    }
