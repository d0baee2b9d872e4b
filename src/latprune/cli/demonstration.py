"""The demonstration: train a small residual network on handwritten digits, prune it to half its measured latency, and prove it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latprune.cli.loading import load_tables
from latprune.errors import EngineError, LatpruneError
from latprune.export import restore
from latprune.export.record import AccuracyRecord
from latprune.graph import trace
from latprune.importance import DivergenceConfig
from latprune.latency import LatencyTables, Store, Target, build_tables
from latprune.methods import get_method
from latprune.progress import Progress, listening, say, stretch
from latprune.pruning.finetuning import training_threads
from latprune.pruning.pruner import Pruner
from latprune.pruning.result import Result
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.train import Recipe, evaluate, finetune
from latprune.train.precision import native_precision
from latprune.zoo import ImageLoader, digits_resnet, digits_test, digits_train

__all__ = ["demo"]

TRAINING = Recipe(epochs=5, learning_rate=0.05, weight_decay=5e-4, channels_last=True)
UPSCALE = 2
"""The digits are 8x8; 16x16 holds all that there is to see in them at a quarter of the work of 32x32."""
NETWORK: dict[str, Any] = {"blocks": 2}
TABLE_SECONDS = 30.0
"""Seconds after which no further networks are measured for the tables. What they are wrong by is measured and reported, and the search
corrects for it: only measured networks are delivered."""
POINTS = 100
EXAMPLES, BATCHES, IMAGES = 64, 16, 512


def demo(folder: str | Path, *, engine: str = "openvino", budget: str = "50%", progress: Progress | None = None) -> Result:
    """Train, measure tables, explore all budgets, prune by MDP, recover without training, verify in a new process, export and report.

    Run again with the same folder, it goes on where it was interrupted.

    Args:
        folder: Where to put the result.
        engine: Engine to prune for.
        budget: What to prune to.
        progress: Called with one line of text as the work goes on, or a listener (:mod:`latprune.progress`).

    Returns:
        The result; ``folder/explorer.html`` shows what every budget would have given, ``folder/result`` holds the result saved,
        ``folder/result/report.html`` its page, ``folder/result/model.onnx`` the export.
    """
    with listening(progress):
        return _demo(Path(folder), engine=engine, budget=budget)


def _demo(folder: Path, *, engine: str, budget: str) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    train, test = digits_train(upscale=UPSCALE), digits_test(upscale=UPSCALE)
    model = _trained(folder, train, test).eval()
    inputs = torch.randn(1, 1, 8 * UPSCALE, 8 * UPSCALE, generator=torch.Generator().manual_seed(0))
    if (folder / "result" / "result.json").exists():
        result = Result.load(folder / "result", model=restore(partial(digits_resnet, **NETWORK), folder / "result"), example_inputs=inputs)
    else:
        result = _pruned(folder, model, inputs, train, test, engine=engine, budget=budget)
        result.save(folder / "result")
    command = [sys.executable, "-m", "latprune.cli", "verify", str(folder / "result"), "--quiet"]
    with stretch("verifying in a new process", timed=True):
        verdict = subprocess.run(command, capture_output=True, text=True, check=False)
    if verdict.returncode:
        raise LatpruneError(f"verification in a new process failed with exit code {verdict.returncode}: {verdict.stderr.strip()}")
    for line in verdict.stdout.splitlines():
        say(f"  {line}")
    say("exporting ONNX and writing the report")
    errors = result.export_onnx(folder / "result" / "model.onnx").errors
    if not errors:
        raise EngineError("no ONNX runtime is installed to check the exported file; install the demo extra")
    say("  ONNX equals PyTorch to " + ", ".join(f"{error:.1e} in {runtime}" for runtime, error in errors.items()))
    saved = Result.load(folder / "result", model=result.model, example_inputs=result.example_inputs)
    saved.report(folder / "result" / "report.html")
    return saved


def _pruned(
    folder: Path, model: nn.Module, inputs: torch.Tensor, train: ImageLoader, test: ImageLoader, *, engine: str, budget: str
) -> Result:
    """Explore, prune and recover. One pruner does it all, so that scores and tables are made once."""
    target = Target(engine=engine, threads=1, batch=1)
    method = get_method("mdp", score=DivergenceConfig(examples=EXAMPLES))
    named: dict[str, Any] = {"name": "digits residual network", "constructor": "latprune.zoo:digits_resnet", "arguments": NETWORK}
    accuracies: list[AccuracyRecord] = []

    def judge(moment: str) -> None:
        accuracies.append(AccuracyRecord(stage=moment, accuracy=evaluate(model, test)))
        say(f"accuracy, {moment}: {accuracies[-1].accuracy:.4f}")

    with Store(folder / "latency.sqlite") as store:
        tables = _tables(folder, model, inputs, target, store)
        pruner = Pruner(model, inputs, budget=budget, target=target, method=method, tables=tables, store=store)
        try:
            found = pruner.explore(train, points=POINTS, batches=BATCHES, command=_command(folder, engine), **named)
            found.save(folder / "explorer.json")
            found.write_html(folder / "explorer.html")
            judge("dense")
            pruner.step(train, batches=BATCHES)
            judge("pruned")
            say(str(pruner.recover(train, images=IMAGES)))
            judge("recovered")
            fresh = pruner.fresh
            measured = (fresh.dense, fresh.pruned) if fresh is not None else None  # recovery changes values alone, and no latency
            recovery = pruner.recovery.to_dict() if pruner.recovery is not None else None
            return pruner.result(measured=measured, accuracies=accuracies, recovery=recovery, **named)
        finally:
            pruner.close()


def _trained(folder: Path, train: ImageLoader, test: ImageLoader) -> nn.Module:
    """The dense network: trained here, or read where an earlier run left it."""
    torch.manual_seed(0)
    model = digits_resnet(**NETWORK)
    dense = folder / "dense.safetensors"
    if dense.exists():
        model.load_state_dict(decode_tensors(dense.read_bytes(), source=str(dense)))
        return model
    say(f"training a residual network on {len(train.labels)} images of handwritten digits")
    with training_threads():
        finetune(
            model,
            train,
            replace(TRAINING, precision=native_precision()),
            evaluate=test,
            checkpoint_dir=folder / "training",
        )
    write_atomic(dense, encode_tensors(model.state_dict()))
    return model


def _tables(folder: Path, model: nn.Module, inputs: torch.Tensor, target: Target, store: Store) -> LatencyTables:
    """Latency tables within :data:`TABLE_SECONDS`, or those that an earlier run left."""
    path = folder / "tables.json"
    if path.exists():
        return load_tables(str(path))
    tables = build_tables(model, trace(model, inputs), inputs, target, store=store, time_limit=TABLE_SECONDS)
    write_atomic(path, json.dumps(tables.to_dict()).encode())
    residual = tables.residual
    say(f"latency tables: mean error {residual.mean_absolute:.1%} on {residual.networks} networks that they had not seen")
    return tables


def _command(folder: Path, engine: str) -> list[str]:
    """Arguments of ``latprune prune`` that lead to the networks which the page shows."""
    arguments = [word for name, value in NETWORK.items() for word in ("--model-arg", f"{name}={value}")]
    return [
        *("--model", "latprune.zoo:digits_resnet", *arguments, "--weights", str(folder / "dense.safetensors")),
        *("--input", f"1x1x{8 * UPSCALE}x{8 * UPSCALE}", "--engine", engine, "--tables", str(folder / "tables.json")),
        *("--criterion", "divergence", "--criterion-arg", f"examples={EXAMPLES}"),
        *("--data", "latprune.zoo:digits_train", "--test-data", "latprune.zoo:digits_test", "--data-arg", f"upscale={UPSCALE}"),
    ]
