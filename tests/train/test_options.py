"""What a recipe offers beside a learning rate: averages, accumulated gradients, blended batches, precision, compilation."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.program import capture
from latprune.train import Constant, Recipe, TrainProgress, evaluate, finetune
from latprune.train.average import RunningAverage
from latprune.train.mixing import mix
from support.training_task import RECIPE, NoisyPoints, loader, network

X = torch.randn(24, 2, generator=torch.Generator().manual_seed(1))
Y = (X.prod(dim=1) > 0).long()
PLAIN = Recipe(epochs=2, learning_rate=0.1, schedule=Constant())
BATCHES = [(X[start : start + 4], Y[start : start + 4]) for start in range(0, 24, 4)]


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))


def same(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    left, right = a.state_dict(), b.state_dict()
    for name, value in left.items():
        torch.testing.assert_close(value, right[name], **(tolerance or {"rtol": 0.0, "atol": 0.0}))


def test_accumulated_batches_are_one_large_batch():
    one, other = linear(), linear()
    large = [(X[start : start + 12], Y[start : start + 12]) for start in range(0, 24, 12)]
    gathered = finetune(one, BATCHES, replace(PLAIN, accumulate=3))
    plain = finetune(other, large, PLAIN)
    assert gathered.steps == plain.steps == 4
    same(one, other, rtol=1e-5, atol=1e-6)


def test_the_rest_of_an_epoch_is_a_step_of_its_own():
    model, steps = linear(), []
    report = finetune(model, BATCHES, replace(PLAIN, accumulate=4), after_step=lambda network: steps.append(1))
    assert report.steps == len(steps) == 4  # 4 and 2 batches in each of two epochs


def test_the_average_is_what_is_evaluated_and_delivered():
    seen: list[dict[str, torch.Tensor]] = []
    raw: list[dict[str, torch.Tensor]] = []
    model = linear()
    expected = RunningAverage(model, 0.9)

    def after(network: nn.Module) -> None:
        raw.append({name: value.clone() for name, value in network.state_dict().items()})
        expected.update(network)

    def accuracy(network: nn.Module) -> float:
        seen.append({name: value.clone() for name, value in network.state_dict().items()})
        return evaluate(network, BATCHES)

    report = finetune(model, BATCHES, replace(PLAIN, ema=0.9), evaluate=accuracy, after_step=after)
    assert report.accuracy == evaluate(model, BATCHES)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.values[name], rtol=0.0, atol=0.0)
        torch.testing.assert_close(value, seen[-1][name], rtol=0.0, atol=0.0)
        assert not torch.equal(value, raw[-1][name])


def test_an_average_is_the_sum_that_its_formula_says():
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = RunningAverage(model, 0.5)
    for value in (2.0, 4.0):
        with torch.no_grad():
            model.weight.fill_(value)
        average.update(model)
    first = 0.1 * 1.0 + 0.9 * 2.0  # min(0.5, 1 / 10), then min(0.5, 2 / 11)
    assert average.values["weight"].item() == pytest.approx(2 / 11 * first + 9 / 11 * 4.0)


@pytest.mark.parametrize("options", [{"ema": 0.9}, {"accumulate": 4}, {"mixup": 0.4}, {"ema": 0.8, "accumulate": 2, "mixup": 0.2}])
@pytest.mark.parametrize("stop_at", [3, 8])
def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path, options, stop_at):
    recipe = replace(RECIPE, **options)
    whole, broken = network(), network()
    finetune(whole, loader(), recipe)

    def stop(progress: TrainProgress) -> None:
        if progress.step == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(broken, loader(), recipe, checkpoint_dir=tmp_path, checkpoint_seconds=0.0, progress=stop)
    every = options.get("accumulate", 1)
    kept = stop_at > every  # gradients that are half gathered are not in a checkpoint
    resumed = network(seed=5 if kept else 0)
    report = finetune(resumed, loader(), recipe, checkpoint_dir=tmp_path, checkpoint_seconds=0.0)
    assert report.resumed_from == (max(step for step in (2, 4, 6, 7) if step < stop_at and step % 6 % every == 0) if kept else None)
    same(whole, resumed)
    again = network(seed=6)
    assert finetune(again, loader(), recipe, checkpoint_dir=tmp_path).finished  # the average all the same
    same(whole, again)


def test_a_checkpoint_of_a_version_that_knew_fewer_options_is_taken_up(tmp_path):
    finetune(network(), loader(), RECIPE, checkpoint_dir=tmp_path)
    path = tmp_path / "train.json"
    record = json.loads(path.read_text())
    for name in ("mixup", "cutmix", "ema", "accumulate", "compile"):
        del record["recipe"][name]
    path.write_text(json.dumps(record))
    assert finetune(network(seed=3), loader(), RECIPE, checkpoint_dir=tmp_path).resumed_from == 18
    with pytest.raises(CheckpointError, match="in ema, mixup"):
        finetune(network(), loader(), replace(RECIPE, ema=0.9, mixup=0.1), checkpoint_dir=tmp_path)


def test_mixup_blends_examples_and_their_loss():
    recipe = replace(PLAIN, mixup=1.0)
    blended = mix(X, Y, recipe, step=3)
    again = mix(X, Y, recipe, step=3)
    assert torch.equal(blended.inputs, again.inputs) and blended.share == again.share
    assert not torch.equal(blended.inputs, mix(X, Y, recipe, step=4).inputs)
    rest = (blended.inputs - blended.share * X) / (1.0 - blended.share)
    for example, partner in zip(rest, blended.partners, strict=True):
        match = int((X - example).abs().sum(dim=1).argmin())
        torch.testing.assert_close(X[match], example, rtol=1e-3, atol=1e-3)
        assert Y[match] == partner


def test_cutmix_takes_a_box_and_counts_its_area():
    images = torch.arange(8.0).reshape(8, 1, 1, 1).expand(8, 3, 16, 12).clone()
    labels = torch.arange(8)
    for step in range(20):
        blended = mix(images, labels, replace(PLAIN, cutmix=1.0), step=step)
        for index in range(8):
            own = float((blended.inputs[index] == index).float().mean())
            partner = float(blended.partners[index])
            if partner == index:
                assert own == 1.0
                continue
            assert own == pytest.approx(blended.share, abs=1e-6)
            assert set(blended.inputs[index].unique().tolist()) <= {float(index), partner}


def test_what_is_blended_has_no_accuracy_of_its_own():
    report = finetune(linear(), BATCHES, replace(PLAIN, mixup=0.5))
    assert report.epochs[-1].train_accuracy is None and report.epochs[-1].loss > 0.0


@pytest.mark.parametrize(
    ("options", "batches", "words"),
    [
        ({"cutmix": 1.0}, BATCHES, "images"),
        ({"mixup": 1.0}, [(Y[:4], Y[:4])], "floating-point tensor"),
        ({"mixup": 1.0}, [(X[:4], torch.rand(4, 2))], "one class index"),
    ],
)
def test_what_cannot_be_blended_is_told(options, batches, words):
    with pytest.raises(InvalidArgumentError, match=words):
        finetune(linear(), batches, replace(PLAIN, **options))


@pytest.mark.parametrize(
    ("name", "value"), [("mixup", -1.0), ("cutmix", float("nan")), ("ema", 1.0), ("accumulate", 0), ("precision", "int8")]
)
def test_bad_values_are_named(name, value):
    with pytest.raises(InvalidArgumentError, match=name):
        replace(PLAIN, **{name: value})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains(tmp_path, precision):
    model, exact = linear(), linear()
    finetune(exact, BATCHES, PLAIN)
    finetune(model, BATCHES, replace(PLAIN, precision=precision), checkpoint_dir=tmp_path)
    same(model, exact, rtol=0.1, atol=0.02)
    record = json.loads((tmp_path / "train.json").read_text())
    assert (record["scaler"] is not None) == (precision == "fp16")
    if precision == "fp16":
        assert record["scaler"]["scale"] >= 1.0
        resumed = finetune(linear(), BATCHES, replace(PLAIN, precision="fp16"), checkpoint_dir=tmp_path)
        assert resumed.resumed_from == 12


# What compiles C++ takes half a minute; how the training and the compiled model go together does not depend on it.
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_through_a_compiled_model_the_same_comes_out(monkeypatch, backend):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    one, other = linear(), linear()
    finetune(one, BATCHES, replace(PLAIN, compile=True))
    finetune(other, BATCHES, PLAIN)
    assert list(one.state_dict()) == list(other.state_dict())
    same(one, other, rtol=1e-4, atol=1e-5)


def test_channels_last_trains_the_same_network_and_leaves_its_layout():
    images = torch.randn(24, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    batches = [(images[k : k + 8], torch.arange(8) % 2) for k in (0, 8, 16)]
    seen = []

    def convolutional() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 2))

    def look(model: nn.Module) -> None:
        seen.append(model[0].weight.is_contiguous(memory_format=torch.channels_last))

    one, other = convolutional(), convolutional()
    held = one[0].weight
    finetune(one, batches, replace(PLAIN, channels_last=True), after_step=look)
    finetune(other, batches, PLAIN)
    assert all(seen) and one[0].weight is held and held.is_contiguous()
    same(one, other, rtol=1e-4, atol=1e-5)


def test_noisy_points_learn_with_all_of_it_together():
    points = NoisyPoints()
    model = network()
    recipe = replace(RECIPE, epochs=25, ema=0.9, accumulate=2, mixup=0.1, max_gradient_norm=5.0)
    report = finetune(model, loader(), recipe, evaluate=[(points.points, points.labels)])
    assert report.accuracy > 0.85


@pytest.mark.parametrize("form", ["class", "program"])
def test_fixed_norms_train_with_the_statistics_that_they_have(form: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 2)).eval()
    network = capture(model, X[:4]) if form == "program" else model
    starts = {name: value.clone() for name, value in network.state_dict().items()}
    ends = {}
    for fixed in (True, False):
        trained = copy.deepcopy(network)
        finetune(trained, BATCHES, replace(PLAIN, fixed_norms=fixed))
        ends[fixed] = trained.state_dict()
        assert not trained.training
    for name, value in starts.items():
        statistics = "running" in name or "num_batches" in name
        assert torch.equal(ends[True][name], value) == statistics, name
        assert not statistics or not torch.equal(ends[False][name], value), name
