from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import support.training_task
from latprune.errors import CheckpointError, FileFormatError, InvalidArgumentError, TrainingError
from latprune.train import AdamW, Constant, Distillation, ProgressPrinter, Recipe, TrainProgress, evaluate, finetune
from latprune.train.optimizer import build_optimizer
from support.training_task import RECIPE, NoisyPoints, loader, network, train

TASK = Path(support.training_task.__file__)


class Stop(Exception):
    """Raised from a callback to break a run off at a step."""


def same(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_it_learns_and_reports() -> None:
    model, report = train(None, recipe=replace(RECIPE, epochs=25))
    assert report.finished and report.steps == 25 * 6 and report.stopped == "" and report.resumed_from is None
    assert report.accuracy is not None and report.accuracy > 0.9
    losses = [epoch.loss for epoch in report.epochs]
    assert losses[-1] < 0.85 * losses[0]
    assert all(0.0 <= (epoch.train_accuracy or 0.0) <= 1.0 for epoch in report.epochs)
    assert model.training  # as it came in


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    first, _ = train(None)
    second, _ = train(None)
    other, _ = train(None, recipe=replace(RECIPE, seed=1))
    assert same(first, second) and not same(first, other)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_callers_autocast_changes_nothing(precision: str) -> None:
    """While it is open, its copies of the weights are kept, and a step's change would not be seen by the next one."""
    recipe = replace(RECIPE, precision=precision)
    plain, _ = train(None, recipe=recipe)
    model, points = network(), NoisyPoints().points
    with torch.autocast("cpu", torch.bfloat16):
        wanted = plain.eval()(points)
    with torch.autocast("cpu", torch.bfloat16):
        model.eval()(points)
        finetune(model.train(), loader(), recipe)
        assert torch.equal(model.eval()(points), wanted)
    assert same(plain, model)


def test_the_callers_generators_and_modes_are_untouched() -> None:
    model = network()
    model[1].eval()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = (torch.rand(1).item(), np.random.rand(), random.random())
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    finetune(model, loader(), replace(RECIPE, epochs=1))
    assert (torch.rand(1).item(), np.random.rand(), random.random()) == expected
    assert model.training and not model[1].training


@pytest.mark.parametrize("stop_at", [1, 5, 6, 7, 12, 17])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, stop_at: int) -> None:
    whole, expected = train(None)

    def stop(progress: TrainProgress) -> None:
        if progress.step == stop_at and progress.accuracy is None:
            raise Stop

    model = network()
    points = NoisyPoints()
    with pytest.raises(Stop):
        finetune(model, loader(), RECIPE, checkpoint_dir=tmp_path, checkpoint_seconds=0.0, progress=stop)
    resumed = network(seed=5)
    report = finetune(resumed, loader(), RECIPE, evaluate=[(points.points, points.labels)], checkpoint_dir=tmp_path, checkpoint_seconds=0.0)
    if stop_at > 1:
        assert report.resumed_from == stop_at - 1
    else:
        assert report.resumed_from is None  # nothing was written before the first step ended
        resumed, report = train(tmp_path / "again")
    assert same(resumed, whole)
    assert [epoch.loss for epoch in report.epochs] == [epoch.loss for epoch in expected.epochs]


def test_a_loader_with_a_generator_of_its_own_has_the_same_order_in_a_resumed_run(tmp_path: Path) -> None:
    def own() -> DataLoader[Any]:
        return DataLoader(NoisyPoints(), batch_size=16, shuffle=True, generator=torch.Generator().manual_seed(0))

    def stop(progress: TrainProgress) -> None:
        if progress.step == 9:
            raise Stop

    whole, data = network(), own()
    finetune(whole, data, RECIPE)
    assert torch.equal(data.generator.get_state(), torch.Generator().manual_seed(0).get_state())  # as it came in
    with pytest.raises(Stop):
        finetune(network(), own(), RECIPE, checkpoint_dir=tmp_path, checkpoint_seconds=0.0, progress=stop)
    resumed = network(seed=9)
    finetune(resumed, own(), RECIPE, checkpoint_dir=tmp_path)
    assert same(resumed, whole)


def test_a_time_limit_delivers_the_average_and_training_goes_on_from_the_weights(tmp_path: Path) -> None:
    recipe, points = replace(RECIPE, ema=0.9), NoisyPoints()
    test = [(points.points, points.labels)]
    whole = network()
    finetune(whole, loader(), recipe)
    model, judged = network(), []

    def watched(network: nn.Module) -> float:
        judged.append({name: value.clone() for name, value in network.state_dict().items()})
        time.sleep(0.2)
        return evaluate(network, test)

    report = finetune(model, loader(), recipe, evaluate=watched, checkpoint_dir=tmp_path, time_limit=0.2)
    assert not report.finished and len(judged) == 1
    if report.steps == 6:  # nothing came after the evaluation
        assert all(torch.equal(value, judged[0][name]) for name, value in model.state_dict().items())
    resumed = network(seed=2)
    finetune(resumed, loader(), recipe, evaluate=test, checkpoint_dir=tmp_path)
    assert same(resumed, whole)


def test_a_batch_without_examples_is_named() -> None:
    with pytest.raises(InvalidArgumentError, match="batch 1 of data holds no example"):
        finetune(network(), [(torch.randn(4, 2), torch.zeros(4).long()), (torch.zeros(0, 2), torch.zeros(0).long())], RECIPE)


@pytest.mark.parametrize("relative", [False, True])
def test_adamw_and_groups_without_decay_resume_as_well(tmp_path: Path, relative: bool) -> None:
    chosen = replace(RECIPE, optimizer=AdamW(relative=relative), learning_rate=1e-2, decay_norm_and_bias=False)
    whole, _ = train(None, recipe=chosen)

    def stop(progress: TrainProgress) -> None:
        if progress.step == 8:
            raise Stop

    with pytest.raises(Stop):
        finetune(network(), loader(), chosen, checkpoint_dir=tmp_path, checkpoint_seconds=0.0, progress=stop)
    resumed = network(seed=9)
    finetune(resumed, loader(), chosen, checkpoint_dir=tmp_path)
    assert same(resumed, whole)


def test_a_time_limit_stops_with_a_checkpoint_and_the_run_goes_on(tmp_path: Path) -> None:
    whole, _ = train(None)
    model = network()
    report = finetune(model, loader(), RECIPE, checkpoint_dir=tmp_path, time_limit=1e-6)
    assert not report.finished and report.stopped == "time limit" and report.steps == 1
    model = network(seed=2)
    report = finetune(model, loader(), RECIPE, checkpoint_dir=tmp_path)
    assert report.finished and report.resumed_from == 1 and same(model, whole)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    whole, _ = train(tmp_path)
    model = network(seed=4)
    report = finetune(model, loader(), RECIPE, checkpoint_dir=tmp_path, progress=lambda progress: pytest.fail("trained again"))
    assert report.finished and report.resumed_from == report.steps == 18 and same(model, whole)
    fresh = finetune(network(), loader(), RECIPE, checkpoint_dir=tmp_path, resume=False)
    assert fresh.resumed_from is None and fresh.steps == 18


def test_a_run_of_another_kind_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    with pytest.raises(CheckpointError, match=r"another recipe \(in epochs, learning_rate\)"):
        finetune(network(), loader(), replace(RECIPE, epochs=4, learning_rate=0.2), checkpoint_dir=tmp_path)
    with pytest.raises(CheckpointError, match="6 batches per epoch, and the data has 3"):
        finetune(network(), loader(batch_size=32), RECIPE, checkpoint_dir=tmp_path)
    wider = nn.Sequential(nn.Linear(2, 20), nn.ReLU(), nn.Linear(20, 2))
    with pytest.raises(CheckpointError, match=r"another model: '0.weight' is \(16, 2\) there and \(20, 2\) here"):
        finetune(wider, loader(), RECIPE, checkpoint_dir=tmp_path)


def frozen(*layers: int) -> nn.Sequential:
    model = network()
    for layer in layers:
        model[layer].requires_grad_(False)
    return model


@pytest.mark.parametrize(
    ("then", "now", "words"),
    [
        ((), (4,), "training of parameter '4.weight', which is not trained here"),
        ((4,), (), "in which parameter '4.weight' was not trained, and here it is"),
        ((0,), (4,), "training of parameter '4.weight', which is not trained here"),
    ],
)
@pytest.mark.parametrize("earlier", [False, True])
def test_a_training_of_other_parameters_is_refused(
    tmp_path: Path, then: tuple[int, ...], now: tuple[int, ...], words: str, earlier: bool
) -> None:
    finetune(frozen(*then), loader(), RECIPE, checkpoint_dir=tmp_path, time_limit=1e-6)
    record = json.loads((tmp_path / "train.json").read_text())
    if earlier:  # releases that did not write the names tell the numbers of parameters apart
        del record["trained"]
        (tmp_path / "train.json").write_text(json.dumps(record))
        words = r"train.json: optimizer.param_groups\[0\].params"
    model = frozen(*now)
    if earlier and len(then) == len(now):
        return
    with pytest.raises((CheckpointError, FileFormatError), match=words):
        finetune(model, loader(), RECIPE, checkpoint_dir=tmp_path)
    assert same(model, network())


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("optimizer", "param_groups"), [], "optimizer.param_groups: must be 1 groups"),
        (("optimizer", "param_groups", 0), 5, r"optimizer.param_groups\[0\]"),
        (("optimizer", "param_groups", 0, "params"), [0, 1], r"optimizer.param_groups\[0\].params"),
        (("optimizer", "param_groups", 0, "momentum"), "x", r"optimizer.param_groups\[0\].momentum: \(='x'\) must be of the kind of"),
        (("optimizer", "param_groups", 0, "nesterov"), 1.5, r"optimizer.param_groups\[0\].nesterov"),
        (("optimizer", "state"), [], "optimizer.state"),
        (("optimizer", "state"), {"99": {}}, "optimizer.state.99"),
        (("optimizer", "state"), {"0": {"step": "x"}}, "optimizer.state.0"),
        (("optimizer",), {}, "optimizer.state"),
        (("random", "numpy"), [700, 0, 0.0], "random.numpy.0"),
        (("random", "numpy"), [1, 0], "random.numpy"),
        (("random", "numpy", 1), "x", "random.numpy.1"),
        (("random",), {}, "random.numpy"),
        (("random", "python_gauss"), "x", "random.python_gauss"),
        (("scaler", "scale"), -1.0, "scaler.scale"),
        (("scaler", "_growth_tracker"), None, "scaler._growth_tracker"),
        (("scaler",), {}, "scaler.scale"),
        (("average_updates",), -1, "average_updates"),
        (("position", "epoch"), 10**9, "stands at epoch 1000000000"),
        (("position", "batch"), 10**9, "batch 1000000000"),
    ],
)
def test_a_damaged_record_of_a_training_is_told_with_its_place(
    tmp_path: Path, place: tuple[str | int, ...], value: object, words: str
) -> None:
    recipe = replace(RECIPE, ema=0.9, precision="fp16")
    finetune(network(), loader(), recipe, checkpoint_dir=tmp_path, time_limit=1e-6)
    path = tmp_path / "train.json"
    record = json.loads(path.read_text())
    assert record["scaler"]["_growth_tracker"] == 1
    held = record
    for part in place[:-1]:
        held = held[part]
    held[place[-1]] = value
    path.write_text(json.dumps(record))
    model = network(seed=3)
    with pytest.raises(FileFormatError, match=words) as caught:
        finetune(model, loader(), recipe, checkpoint_dir=tmp_path)
    assert "train.json" in str(caught.value) and same(model, network(seed=3))


def test_a_batch_may_be_anything_that_the_loss_takes() -> None:
    model = network()
    points = NoisyPoints().points

    def loss(model: nn.Module, batch: None) -> torch.Tensor:
        return model(points).square().mean()

    assert finetune(model, [None, None], RECIPE, loss=loss).steps == 2 * RECIPE.epochs
    with pytest.raises(InvalidArgumentError, match="a batch is a NoneType; it must be a pair"):
        finetune(model, [None], RECIPE)


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    train(tmp_path)
    (tensors,) = tmp_path.glob("state-*.safetensors")
    record = (tmp_path / "train.json").read_text()
    data = tensors.read_bytes()
    tensors.write_bytes(data[:-8])
    with pytest.raises(CheckpointError, match="is not the file that"):
        finetune(network(), loader(), RECIPE, checkpoint_dir=tmp_path)
    tensors.unlink()
    with pytest.raises(CheckpointError, match="is not there"):
        finetune(network(), loader(), RECIPE, checkpoint_dir=tmp_path)
    (tmp_path / "train.json").write_text(record[:100])
    with pytest.raises(FileFormatError, match="is not JSON"):
        finetune(network(), loader(), RECIPE, checkpoint_dir=tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(json.loads(record) | {"version": 2}))
    with pytest.raises(FileFormatError, match="version"):
        finetune(network(), loader(), RECIPE, checkpoint_dir=tmp_path)


def test_checkpoints_hold_no_pickle_and_leave_no_rest(tmp_path: Path) -> None:
    train(tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 2 and names[0].startswith("state-") and names[0].endswith(".safetensors") and names[1] == "train.json"


def test_a_loss_that_diverges_is_an_error_with_its_place(tmp_path: Path) -> None:
    chosen = Recipe(epochs=2, learning_rate=0.1, schedule=Constant())
    poisoned = loader()
    poisoned.dataset.points[10, 0] = torch.nan  # type: ignore[attr-defined]
    with pytest.raises(TrainingError, match=r"epoch 1, step \d+ \(learning rate 0.1\)") as caught:
        finetune(network(), poisoned, chosen, checkpoint_dir=tmp_path, checkpoint_seconds=0.0)
    assert caught.value.epoch == 0 and 1 <= caught.value.step <= 6
    if (tmp_path / "train.json").exists():
        assert json.loads((tmp_path / "train.json").read_text())["position"]["batch"] < caught.value.step


def test_distillation_pulls_the_student_to_the_teacher() -> None:
    teacher = network(seed=42)  # knows nothing of the labels, so only distillation can bring the student to it
    with torch.no_grad():
        teacher[4].weight.mul_(4)  # type: ignore[union-attr, operator]
    points = NoisyPoints().points

    def distance(weight: float | None) -> float:
        student = network(seed=11)
        chosen = replace(RECIPE, epochs=15, distillation=None if weight is None else Distillation(temperature=2.0, weight=weight))
        finetune(student, loader(), chosen, teacher=None if weight is None else teacher)
        with torch.no_grad():
            return float((student.eval()(points).softmax(1) - teacher.eval()(points).softmax(1)).abs().mean())

    assert distance(1.0) < 0.5 * distance(None)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_masked_weights_can_be_held_at_zero() -> None:
    model = network()

    def mask(network: nn.Module) -> None:
        with torch.no_grad():
            network.get_submodule("0").weight[:4] = 0  # type: ignore[index, union-attr]

    finetune(model, loader(), replace(RECIPE, epochs=1), after_step=mask)
    assert model[0].weight[:4].abs().sum() == 0 and model[0].weight[4:].abs().sum() > 0  # type: ignore[index, union-attr]


def test_a_loss_of_ones_own_trains_another_task() -> None:
    model = nn.Linear(2, 1)

    def squared(network: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        points, _ = batch
        return (network(points).squeeze(1) - (3 * points[:, 0] - points[:, 1])).square().mean()

    report = finetune(model, loader(), Recipe(epochs=20, learning_rate=0.1), loss=squared)
    assert model.weight[0].tolist() == pytest.approx([3.0, -1.0], abs=0.05)
    assert report.epochs[-1].train_accuracy is None


def test_mappings_are_batches_too() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, points: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": self.inner(points)}

    class Mapped:
        def __len__(self) -> int:
            return 6

        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            for points, labels in loader():
                yield {"points": points, "labels": labels}

    plain, named = network(), Named()
    finetune(plain, loader(), RECIPE)
    finetune(named, Mapped(), RECIPE)
    assert same(plain, named.inner)


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()  # type: ignore[union-attr, operator]
    finetune(model, loader(), RECIPE)
    assert torch.equal(model[0].weight, before)  # type: ignore[arg-type]
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InvalidArgumentError, match="requires_grad"):
        finetune(model, loader(), RECIPE)


def test_norms_and_biases_can_be_kept_from_decay() -> None:
    groups = build_optimizer(network(), replace(RECIPE, weight_decay=0.1, decay_norm_and_bias=False)).param_groups
    assert [(group["weight_decay"], {parameter.ndim for parameter in group["params"]}) for group in groups] == [(0.1, {2}), (0.0, {1})]
    (group,) = build_optimizer(network(), replace(RECIPE, weight_decay=0.1)).param_groups
    assert group["weight_decay"] == 0.1 and len(group["params"]) == 6


def test_mixed_precision_trains_and_leaves_the_weights_in_single() -> None:
    model, report = train(None, recipe=replace(RECIPE, epochs=20, precision="bf16", max_gradient_norm=5.0, label_smoothing=0.05))
    assert (report.accuracy or 0.0) > 0.85
    assert {value.dtype for value in model.state_dict().values() if value.is_floating_point()} == {torch.float32}
    assert "forward" not in vars(model)  # nothing is left on the user's module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"teacher": network()}, "recipe.distillation is None"),
        ({"recipe": replace(RECIPE, distillation=Distillation())}, "needs teacher="),
        ({"recipe": replace(RECIPE, distillation=Distillation()), "teacher": network(), "loss": lambda a, b: a}, "loss of your own"),
        ({"data": iter([])}, "length"),
        ({"data": []}, "length"),
        ({"time_limit": 0.0}, r"time_limit \(=0.0\)"),
        ({"checkpoint_seconds": -1.0}, r"checkpoint_seconds \(=-1.0\)"),
        ({"data": [1, 2]}, "a batch is a int"),
        ({"data": [{"x": 1}]}, "must hold 'labels'"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        finetune(**({"model": network(), "data": loader(), "recipe": RECIPE} | arguments))  # type: ignore[arg-type]


def test_data_shorter_than_its_length_is_an_error() -> None:
    class Short:
        def __len__(self) -> int:
            return 9

        def __iter__(self) -> Iterator[object]:
            return iter(loader())

    with pytest.raises(InvalidArgumentError, match="data ended after 6 batches of epoch 1, but its length is 9"):
        finetune(network(), Short(), RECIPE)  # type: ignore[arg-type]


def test_progress_is_told_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    seen: list[TrainProgress] = []
    points = NoisyPoints()
    finetune(network(), loader(), RECIPE, evaluate=lambda model: evaluate(model, [(points.points, points.labels)]), progress=seen.append)
    assert [progress.step for progress in seen if progress.accuracy is None] == list(range(1, 19))
    assert sum(progress.accuracy is not None for progress in seen) == 3
    assert all(progress.seconds_left >= 0 and progress.examples_per_second > 0 for progress in seen)
    ticks = iter(range(100))
    printer = ProgressPrinter(every=5, clock=lambda: next(ticks))
    for progress in seen:
        printer(progress)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("epoch 1/3  step 1/18  loss ") and sum("accuracy" in line for line in lines) == 3
    assert 5 <= len(lines) <= 8


def last_checkpoint(folder: Path) -> int:
    """When the record of the last whole checkpoint was put in place; 0 where there is none."""
    return max((path.stat().st_mtime_ns for path in folder.glob("*.json")), default=0)


def run_until_done(folder: Path, kills: int, rng: random.Random) -> tuple[dict[str, object], int]:
    """Start the task again and again, killing the first ``kills`` processes at random moments; the last one's result and the kills."""
    killed = 0
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    while True:
        process = subprocess.Popen(
            [sys.executable, str(TASK), str(folder), "0.03" if killed < kills else "0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        if killed < kills:
            # The first checkpoint shows that the process has begun to train; from there on any moment will do.
            before = last_checkpoint(folder)
            deadline = time.monotonic() + 60
            while process.poll() is None and time.monotonic() < deadline:
                if last_checkpoint(folder) != before:
                    break
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.2))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                killed += 1
        output, _ = process.communicate(timeout=120)
        if process.returncode == 0:
            return json.loads(output), killed
        assert process.returncode == -signal.SIGKILL


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    # In a process like the others: the last bits depend on its threads.
    expected, _ = run_until_done(tmp_path / "whole", 0, random.Random(0))
    found, killed = run_until_done(tmp_path / "killed", 1, random.Random(1))
    assert killed == 1 and found["digest"] == expected["digest"] and found["steps"] == 18
    assert found["resumed_from"] is not None


@pytest.mark.slow
def test_fifty_kills_lose_nothing(tmp_path: Path) -> None:
    expected, _ = run_until_done(tmp_path / "whole", 0, random.Random(0))
    rng, total, run = random.Random(2), 0, 0
    while total < 50:
        found, killed = run_until_done(tmp_path / f"killed-{run}", 5, rng)
        assert found["digest"] == expected["digest"] and found["steps"] == 18
        total, run = total + killed, run + 1
        assert run < 60


class OwnPrecision(nn.Module):
    """A model with an autocast of its own in its forward."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            output: torch.Tensor = self.inner(x)
        return output


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_model_with_an_autocast_of_its_own_sees_each_step(precision: str) -> None:
    model, plain = OwnPrecision(), network()
    recipe = replace(RECIPE, epochs=3, precision=precision)
    finetune(model, loader(), recipe)
    finetune(plain, loader(), replace(recipe, precision="bf16"))
    assert same(model.inner, plain)
    for enabled in (True, False):
        inside = OwnPrecision()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            finetune(inside, loader(), recipe)
        assert same(inside.inner, plain)
