"""The demonstration: train a small residual network on handwritten digits, prune it to half its measured latency, and prove it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from latprune.errors import EngineError, LatpruneError
from latprune.importance import DivergenceConfig
from latprune.latency import Store, Target
from latprune.methods import get_method
from latprune.pruning.finetuning import fit_with, training_threads
from latprune.pruning.result import Result
from latprune.pruning.run import prune
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.train import Recipe, TrainProgress, evaluate, finetune
from latprune.train.precision import native_precision
from latprune.zoo import digits_resnet, digits_test, digits_train

__all__ = ["demo"]

TRAINING = Recipe(epochs=6, learning_rate=0.05, weight_decay=5e-4, channels_last=True)
FINE_TUNING = Recipe(epochs=3, learning_rate=0.02, weight_decay=5e-4, channels_last=True)


def demo(folder: str | Path, *, engine: str = "openvino", budget: str = "50%", say: Callable[[str], None] = print) -> Result:
    """Train, prune by MDP, fine-tune, verify in a new process, export and report; everything lands in ``folder``.

    Run again with the same folder, it goes on where it was interrupted.

    Args:
        folder: Where to put the result.
        engine: Engine to prune for.
        budget: What to prune to.
        say: Prints a line of progress.

    Returns:
        The result; ``folder/result`` holds it saved, ``folder/result/report.html`` the page, ``folder/result/model.onnx`` the export.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    train, test = digits_train(), digits_test()
    precision = native_precision()
    torch.manual_seed(0)
    model = digits_resnet()
    dense = folder / "dense.safetensors"
    if dense.exists():
        model.load_state_dict(decode_tensors(dense.read_bytes(), source=str(dense)))
    else:
        say(f"training a residual network on {len(train.labels)} images of handwritten digits")
        with training_threads():
            finetune(
                model,
                train,
                replace(TRAINING, precision=precision),
                evaluate=test,
                checkpoint_dir=folder / "training",
                progress=_epochs(say),
            )
        write_atomic(dense, encode_tensors(model.state_dict()))
    result = prune(
        model.eval(),
        torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)),
        budget=budget,
        target=Target(engine=engine, threads=1, batch=1),
        method=get_method("mdp", score=DivergenceConfig(examples=64)),
        data=train,
        fit=fit_with(train, replace(FINE_TUNING, precision=precision), evaluate=test, progress=_epochs(say)),
        evaluate=lambda network: evaluate(network, test),
        recovery_images=512,
        store=Store(folder / "latency.sqlite"),
        folder=folder,
        name="digits residual network",
        constructor="latprune.zoo:digits_resnet",
        progress=say,
    )
    say("verifying in a new process")
    verdict = subprocess.run(
        [sys.executable, "-m", "latprune.cli", "verify", str(folder / "result")], capture_output=True, text=True, check=False
    )
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


def _epochs(say: Callable[[str], None]) -> Callable[[TrainProgress], None]:
    def report(progress: TrainProgress) -> None:
        if progress.accuracy is not None:
            say(f"  epoch {progress.epoch + 1} of {progress.epochs}: loss {progress.loss:.3f}, test accuracy {progress.accuracy:.2%}")

    return report
