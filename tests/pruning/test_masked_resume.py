"""Training under masks that is broken off goes on to the bit, and only where all that decides the outcome is as it was."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import latprune
import support.masked_task
from latprune.errors import CheckpointError
from latprune.importance import TaylorConfig
from latprune.methods import HALP, MDP, SMCP, Method, SoftMasks
from latprune.pruning import MaskedTraining
from latprune.train import finetune
from latprune.train.driver import DriverState
from support.masked_task import METHOD, RECIPE, NoisyImages, X, loader, network, outcome, pruner_of, train

TASK = Path(support.masked_task.__file__)
FEW = SoftMasks(every=2, warmup=0.1, cooldown=0.4)
METHODS: dict[str, Method] = {
    "smcp": METHOD,
    "decay of its own": SMCP(masks=dataclasses.replace(FEW, weight_decay=0.01)),
    "norms scaled": SMCP(masks=dataclasses.replace(FEW, norm_scaling=True)),
    "held at zero": SMCP(masks=dataclasses.replace(FEW, straight_through=False)),
    "channels and blocks": MDP(soft_masks=FEW),
}


class Stop(BaseException):
    """Breaks a run off between two steps."""


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def broken_off(folder: Path, method: Method, *, after: int) -> None:
    """Train until ``after`` steps are done and in the checkpoint."""
    done = 0

    def stop(model: nn.Module) -> None:
        nonlocal done
        done += 1
        if done > after:
            raise Stop

    with pytest.raises(Stop):
        train(folder, pruner_of(method), after_step=stop)


def what(training: MaskedTraining) -> list[dict[str, Any]]:
    return [dataclasses.asdict(change) for change in training.changes]


@pytest.mark.parametrize("method", METHODS)
def test_it_goes_on_to_the_bit(tmp_path: Path, method: str) -> None:
    straight = pruner_of(METHODS[method])
    _, whole = train(None, straight)
    straight.step()
    assert any(change.returned for change in whole.changes) or "blocks" in method
    # Before the first mask (the first scores only), between two solutions, right before one, and across the epochs.
    for after in (1, 4, 5, 6, 9) if method == "smcp" else (5,):
        folder = tmp_path / str(after)
        broken_off(folder, METHODS[method], after=after)
        resumed = pruner_of(METHODS[method])
        report, training = train(folder, resumed)
        assert report.resumed_from == after and report.finished
        assert what(training) == what(whole)
        resumed.step()
        assert resumed.widths == straight.widths and same(resumed.model, straight.model)


def test_a_checkpoint_holds_dense_weights_and_no_pickle(tmp_path: Path) -> None:
    broken_off(tmp_path, METHOD, after=9)
    record = json.loads((tmp_path / "train.json").read_text())
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]
    assert record["driver"]["format"] == "latprune/masked-training" and record["driver"]["step"] == 9
    tensors = latprune.storage.decode_tensors((tmp_path / record["tensors"]).read_bytes(), source="checkpoint")
    assert all(int((tensors[f"model.{name}"] == 0).sum()) == 0 for name, p in network().named_parameters() if p.dim() == 4)
    assert any(name.startswith("driver.group.") for name in tensors)
    assert record["driver"]["selection"]["kept"]


def with_other(path: Path, change: Any) -> None:
    record = json.loads((path / "train.json").read_text())
    change(record["driver"])
    (path / "train.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": "flops=55%"}, "budget"),
        ({"method": SMCP(masks=SoftMasks(every=3, warmup=0.1, cooldown=0.4))}, "method option masks"),
        ({"method": METHODS["norms scaled"]}, "method option masks.norm_scaling=no, this one yes"),
        ({"method": SMCP(masks=FEW, score=TaylorConfig())}, "criterion"),
        ({"method": MDP(soft_masks=FEW)}, "method"),
        ({"keep": ["conv1"]}, "keep"),
        ({"solver": "exact"}, "solver"),
        ({"seed": 1}, "began with other weights"),
    ],
)
def test_a_run_of_another_kind_is_refused(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    broken_off(tmp_path, METHOD, after=5)
    with pytest.raises(CheckpointError, match=words):
        train(tmp_path, pruner_of(**options))


def test_other_steps_costs_and_damage_are_refused(tmp_path: Path) -> None:
    broken_off(tmp_path, METHOD, after=7)
    with pytest.raises(CheckpointError, match="batches per epoch"):
        train(tmp_path, pruner_of(), size=48)
    with pytest.raises(CheckpointError, match="another recipe"):
        train(tmp_path, pruner_of(), recipe=RECIPE.with_epochs(3))
    with pytest.raises(CheckpointError, match="holds a training under masks, and there are none here"):
        finetune(network(), loader(), RECIPE, checkpoint_dir=tmp_path)
    whole = (tmp_path / "train.json").read_text()
    for key, value, words in (
        ("value", 1.0, "was predicted at 1.0"),
        ("limits", [1.0], "limits are"),
        ("memory", 0.5, "memory"),
        ("steps", 13, "steps"),
        ("version", 1, "finish the run with the release that began it"),
        ("format", "latprune/held-masks", "held-masks"),
        ("selection", {"kept": {}}, "removed_blocks"),
    ):
        with_other(tmp_path, lambda driver, key=key, value=value: driver.update({key: value}))
        with pytest.raises(CheckpointError, match=words):
            train(tmp_path, pruner_of())
        (tmp_path / "train.json").write_text(whole)
    plain = tmp_path / "plain"
    finetune(network(), loader(), RECIPE, checkpoint_dir=plain)
    with pytest.raises(CheckpointError, match="training without masks"):
        train(plain, pruner_of())


def test_a_loop_of_ones_own_keeps_the_state_too() -> None:
    """Model, optimizer and the driver's state of one moment, put into a pruner that was made anew."""
    batches = [(images[None].repeat(8, 1, 1, 1), torch.full((8,), label)) for images, label in (NoisyImages(12)[i] for i in range(12))]

    def steps(model: nn.Module, training: MaskedTraining, optimizer: torch.optim.Optimizer, some: slice) -> None:
        model.train()
        for images, labels in batches[some]:
            training.before_forward()
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            training.after_backward()
            optimizer.step()
        model.eval()

    def begin() -> tuple[latprune.Pruner, torch.optim.Optimizer, MaskedTraining]:
        pruner = pruner_of()
        optimizer = torch.optim.SGD(pruner.model.parameters(), lr=0.05, momentum=0.9)
        return pruner, optimizer, pruner.masked_training(steps=12, optimizers=optimizer)

    first, optimizer, training = begin()
    steps(first.model, training, optimizer, slice(0, 7))
    with training.dense_values():
        weights = {name: value.clone() for name, value in first.model.state_dict().items()}
    kept, momentum = training.state(), json.loads(json.dumps(training.state().data))
    assert momentum == kept.data
    state = {"state": {k: {n: v.clone() for n, v in s.items()} for k, s in optimizer.state_dict()["state"].items()}}
    state["param_groups"] = optimizer.state_dict()["param_groups"]
    steps(first.model, training, optimizer, slice(7, 12))

    second, optimizer, again = begin()
    with again.dense_values():
        second.model.load_state_dict(weights)
    optimizer.load_state_dict(state)
    again.load_state(DriverState(data=json.loads(json.dumps(dict(kept.data))), tensors=kept.tensors))
    steps(second.model, again, optimizer, slice(7, 12))
    assert what(again) == what(training)
    first.step(), second.step()
    assert same(first.model, second.model)


@pytest.mark.parametrize("method", ["smcp", "held at zero", "halp"])
def test_prune_goes_on_in_the_middle_of_training_under_masks(tmp_path: Path, method: str) -> None:
    """The whole call: broken off while it trains under moving masks, or under masks that are held between two stages."""
    chosen = HALP(stages=3) if method == "halp" else METHODS[method]
    options: dict[str, Any] = {"budget": "flops=50%", "method": chosen, "measure_latency": False, "importance_batches": 2}
    stop_at = 17 if method == "halp" else 8  # in the second stage's training; in the first epoch's second half

    def run(folder: Path, stop: int | None) -> nn.Module:
        seen = 0

        def fit(model: nn.Module, context: Any) -> None:
            def count(_: nn.Module) -> None:
                nonlocal seen
                seen += 1
                if seen == stop:
                    raise Stop

            finetune(
                model,
                loader(),
                RECIPE.with_epochs(2),
                driver=context.attach,
                checkpoint_dir=context.folder,
                checkpoint_seconds=0.0,
                after_step=count,
            )

        model = network()
        latprune.prune(model, X, data=batches, fit=fit, folder=folder, **options)
        return model

    batches = [
        (torch.stack(images), torch.tensor(labels)) for images, labels in [zip(*(NoisyImages(16)[i] for i in range(16)), strict=True)]
    ]
    whole = run(tmp_path / "whole", None)
    with pytest.raises(Stop):
        run(tmp_path / "broken", stop_at)
    stage = max(int(path.name.removeprefix("fit-")) for path in (tmp_path / "broken").glob("fit-*"))
    assert stage == (2 if method == "halp" else 1)
    assert same(run(tmp_path / "broken", None), whole)


@pytest.mark.parametrize(("method", "kind"), [(METHOD, "latprune/masked-training"), (HALP(stages=2), "latprune/held-masks")])
def test_a_recipe_keeps_checkpoints_under_masks(tmp_path: Path, method: Method, kind: str) -> None:
    fit = RECIPE.with_epochs(1)
    latprune.prune(network(), X, budget="flops=50%", method=method, data=loader(48), fit=fit, folder=tmp_path, measure_latency=False)
    record = json.loads((tmp_path / "fit-1" / "train.json").read_text())
    assert record["finished"] and record["driver"]["format"] == kind


def killed_and_resumed(folder: Path) -> dict[str, Any]:
    """Run the task in a process that is killed once its second checkpoint is there, and then in another one to the end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for last in (False, True):
        process = subprocess.Popen(
            [sys.executable, str(TASK), str(folder), "0" if last else "0.1"], stdout=subprocess.PIPE, env=environment, text=True
        )
        if not last:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                record = folder / "train.json"
                if record.is_file() and json.loads(record.read_text())["driver"]["step"] >= 5:
                    break
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == (0 if last else -signal.SIGKILL)
    found: dict[str, Any] = json.loads(output)
    return found


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    whole: dict[str, Any] = json.loads(json.dumps(outcome(tmp_path / "whole")))
    killed = killed_and_resumed(tmp_path / "killed")
    assert killed.pop("resumed_from") >= 5 and whole.pop("resumed_from") is None
    assert killed == whole
