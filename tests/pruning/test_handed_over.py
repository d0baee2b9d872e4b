"""Batches and functions of the caller's own: taken in every form, told as theirs where they fail, and before the cut where that can be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

import latprune
from latprune.errors import InvalidArgumentError, UnfinishedRunError
from latprune.importance import CHIPConfig, DivergenceConfig, HRankConfig, TaylorConfig
from latprune.methods import MDP, SMCP, SPLAMP, SoftMasks
from latprune.pruning.exploring import explore
from latprune.pruning.finetuning import fit_with
from latprune.train import Recipe

MEASURED = MDP(score=DivergenceConfig(removed=(0.5,), priors=(), narrowings=(), rivals=(TaylorConfig(),), examples=8))
"""The default's criterion, with little work."""
OPTIONS: dict[str, Any] = {"budget": "flops=60%", "measure_latency": False, "method": MEASURED}
X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8) % 5
RECIPE = Recipe(epochs=1, learning_rate=0.01)


class Net(nn.Module):
    """Takes keyword inputs, of any type."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(pixel_values.float()).mean((2, 3)))


def network() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def run(model: nn.Module | None = None, **options: Any) -> Any:
    return latprune.prune(model if model is not None else network(), X[:1], **{**OPTIONS, **options})


class Pair(NamedTuple):
    """A batch of a loader's own type."""

    images: torch.Tensor
    classes: torch.Tensor


FORMS = {
    "arrays": (X.numpy(), LABELS.numpy()),
    "bytes": (X.numpy().astype(np.uint8), LABELS.numpy()),
    "target": {"pixel_values": X, "target": LABELS},
    "label": {"pixel_values": X, "label": LABELS},
    "column": (X, LABELS[:, None]),
    "named": Pair(X, LABELS),
}


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_every_form_feed_scores_recovery_training_and_evaluation(form: str) -> None:
    batches = [FORMS[form]] * 2
    said: list[str] = []
    result = run(data=batches, evaluate=batches, fit=RECIPE, progress=said.append)
    assert [entry.stage for entry in result.record.accuracies][:3] == ["dense", "pruned", "recovered"]
    assert not [line for line in said if "left out" in line]


@pytest.mark.parametrize("score", [CHIPConfig(), TaylorConfig()])
def test_other_criteria_take_them_too(score: object) -> None:
    assert run(method=MDP(score=score), data=[FORMS["target"]], recover=False).verdict == "under"


def test_the_input_that_a_network_needs_is_no_label() -> None:
    class Conditioned(Net):
        def forward(self, pixel_values: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return super().forward(pixel_values) * (1 + label[:, None])

    batch = {"pixel_values": X, "label": LABELS, "labels": LABELS}
    example = {"pixel_values": X, "label": LABELS}
    result = latprune.prune(Conditioned().eval(), example, data=[batch], evaluate=[batch], **OPTIONS)
    assert len(result.record.accuracies) == 3


class Failing:
    """Gives batches, and then fails; it can be read again."""

    def __init__(self, good: int) -> None:
        self.good = good

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.good):
            yield X, LABELS
        raise OSError("the disk is gone")


BAD = {
    "data that fails at once": ({"data": Failing(0)}, "batch 0.*OSError: the disk is gone"),
    "data that fails later": ({"data": Failing(1)}, "batch 1.*OSError: the disk is gone"),
    "a generator that fails": ({"data": iter(Failing(1))}, "batch 1.*OSError: the disk is gone"),
    "labels of no class": ({"data": [(X, LABELS + 7)]}, "batch 0 of the data hold the class 11"),
    "too few labels": ({"data": [(X, LABELS[:3])]}, r"batch 0 of the data are int64 \[3\]"),
    "labels with a fraction": ({"data": [(X, LABELS.float())]}, r"batch 0 of the data are float32 \[8\].*long"),
    "labels in words": ({"data": [(X, list("abcdefgh"))]}, "batch 0 of the data are a list"),
    "inputs of another shape": ({"data": [(X[:, :2], LABELS)], "recover": False}, r"\(Net\) failed on batch 0.*2 channels"),
    "a later batch of another shape": ({"data": [(X, LABELS), (X[:, :2], LABELS)]}, r"\(Net\) failed on batch 1.*2 channels"),
    "a fit of one argument": ({"data": [(X, LABELS)], "fit": lambda model: None}, r"called as fit\(model, context\)"),
    "an evaluate of no argument": ({"data": [(X, LABELS)], "evaluate": lambda: 0.5}, r"called as evaluate\(model\)"),
    "an accuracy of more than 1": ({"data": [(X, LABELS)], "evaluate": lambda model: 93.4}, "return 0.934 for 93.4 %"),
    "an accuracy that is none": ({"data": [(X, LABELS)], "evaluate": lambda model: float("nan")}, "gave nan"),
    "no accuracy": ({"data": [(X, LABELS)], "evaluate": lambda model: None}, "gave None"),
    "a number to evaluate on": ({"data": [(X, LABELS)], "evaluate": 3}, "a function evaluate"),
    "a recipe's own evaluation": (
        {"data": [(X, LABELS)], "fit": fit_with([(X, LABELS)], RECIPE, evaluate=[(X, LABELS + 7)])},
        "batch 0 of the data hold the class 11",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_fails_before_the_cut_is_told_as_theirs_and_changes_nothing(case: str) -> None:
    options, words = BAD[case]
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match=words):
        run(model, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_labels_that_nobody_reads_may_be_anything() -> None:
    inputs = [(X, [{"boxes": torch.zeros(2, 4)}] * 8)]
    said: list[str] = []
    assert run(data=inputs, progress=said.append).verdict == "under"
    assert [line for line in said if "left out" in line]
    assert run(method=MDP(score=CHIPConfig()), data=[(X, LABELS + 7)]).verdict == "under"


def test_an_exploration_says_the_same() -> None:
    options = {"resource": "flops", "method": MEASURED, "points": 2, "measure_latency": False}
    with pytest.raises(InvalidArgumentError, match="batch 0 of the data hold the class 11"):
        explore(network(), X[:1], data=[(X, LABELS + 7)], **options)
    with pytest.raises(InvalidArgumentError, match="batch 1.*OSError"):
        explore(network(), X[:1], data=iter(Failing(1)), **options)


class Judge:
    """An evaluation that fails at one of its calls."""

    def __init__(self, fails: int) -> None:
        self.calls, self.fails = 0, fails

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls == self.fails:
            raise KeyError("accuracy")
        return 0.5


def careful(model: nn.Module, context: Any) -> None:
    """Trains, so that its work is known again."""
    with torch.no_grad():
        model.head.bias.add_(1.0)


def failing_fit(model: nn.Module, context: Any) -> None:
    raise OSError("the disk is full")


def handing_back(model: nn.Module, context: Any) -> Any:
    careful(model, context)
    return model


GOOD: dict[str, Any] = {"data": [(X, LABELS), (X, LABELS)], "evaluate": Judge(0), "fit": careful}
LATER = {
    "the second evaluation": ({"evaluate": Judge(2)}, "KeyError"),
    "the evaluation after recovery": ({"evaluate": Judge(3)}, "KeyError"),
    "the evaluation after training": ({"evaluate": Judge(4)}, "KeyError"),
    "the training": ({"fit": failing_fit}, "the disk is full"),
    "what the training returns": ({"fit": handing_back}, r"returned a Net; it must return None, or \(epoch, accuracy\) pairs"),
    "an accuracy of the training": ({"fit": lambda model, context: [(1, 93.4)]}, "93.4"),
}


@pytest.mark.parametrize("case", LATER)
def test_what_fails_after_the_cut_says_so_and_goes_on_from_the_folder(case: str, tmp_path: Path) -> None:
    options, words = LATER[case]
    model = network()
    with pytest.raises(UnfinishedRunError, match=words) as caught:
        run(model, **{**GOOD, **options}, folder=tmp_path / "run")
    assert not isinstance(caught.value, InvalidArgumentError)
    assert caught.value.folder == tmp_path / "run" and caught.value.stage == 1
    assert "pruned by now" in str(caught.value) and str(tmp_path / "run") in str(caught.value)
    assert model.body[0].out_channels < 16
    trained: list[int] = []

    def fit(net: nn.Module, context: Any) -> None:
        trained.append(context.stage)
        careful(net, context)

    said: list[str] = []
    again = run(**{**GOOD, "fit": fit}, folder=tmp_path / "run", progress=said.append)
    assert [entry.stage for entry in again.record.accuracies] == ["dense", "pruned", "recovered", "fine-tuned"]
    # What was recovered is not recovered again, and what was trained not trained again.
    assert any("recovering" in line for line in said) == (case == "the second evaluation")
    assert trained == ([] if case in ("the evaluation after training", "what the training returns", "an accuracy of the training") else [1])
    if case != "an accuracy of the training":
        whole = run(**GOOD)
        assert all(torch.equal(value, whole.model.state_dict()[name]) for name, value in again.model.state_dict().items())


def test_a_recipe_whose_second_batch_is_bad_says_that_the_model_is_pruned() -> None:
    model = network()
    with pytest.raises(UnfinishedRunError, match="batch 1 of the data hold the class 11.*pruned by now.*with folder="):
        run(model, data=[(X, LABELS), (X, LABELS + 7)], fit=RECIPE, method="uniform")
    assert model.body[0].out_channels < 16
    with pytest.raises(UnfinishedRunError, match="batch 1.*OSError"):

        class Sized(Failing):
            def __len__(self) -> int:
                return 2

        run(data=Sized(1), fit=RECIPE, method="uniform", recover=False)


def test_after_soft_masks_the_recovered_network_is_evaluated_and_a_run_goes_on_to_it(tmp_path: Path) -> None:
    method = SMCP(masks=SoftMasks(every=2))
    options: dict[str, Any] = {"data": [(X, LABELS)] * 8, "fit": RECIPE, "method": method, "folder": tmp_path / "run"}
    with pytest.raises(UnfinishedRunError, match="KeyError.*pruned by now"):
        run(**options, evaluate=Judge(3))
    result = run(**options, evaluate=Judge(0))
    assert [entry.stage for entry in result.record.accuracies] == ["dense", "pruned", "recovered"]


@pytest.mark.parametrize(
    ("raised", "told", "words"),
    [
        (OSError("the disk is full"), UnfinishedRunError, "the disk is full.*not yet cut"),
        (KeyboardInterrupt("stop"), KeyboardInterrupt, "stop"),
        (torch.OutOfMemoryError("no memory is left"), torch.OutOfMemoryError, "no memory is left"),
    ],
)
def test_masks_come_off_a_model_whose_training_failed(raised: BaseException, told: type[BaseException], words: str) -> None:
    def fit(model: nn.Module, context: Any) -> None:
        raise raised

    model = network()
    with pytest.raises(told, match=words):
        run(model, method=SPLAMP(stages=2, between="mask"), fit=fit, recover=False)
    before = network().state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_model_that_is_pruned_in_a_copy_is_as_it_was() -> None:
    model = network()
    with pytest.raises(InvalidArgumentError, match="the disk is full"):
        run(model, method="uniform", form="program", fit=failing_fit, recover=False)
    assert model.body[0].out_channels == 16


def test_test_batches_from_an_iterator_are_read_once() -> None:
    result = run(data=[(X, LABELS)], evaluate=iter([(X, LABELS)]))
    assert len(result.record.accuracies) == 3


@dataclass
class Scene:
    """A batch that is neither a tuple nor a mapping."""

    images: torch.Tensor
    classes: torch.Tensor


class OfScenes(Net):
    def forward(self, pixel_values: Any) -> torch.Tensor:
        return super().forward(pixel_values.images if isinstance(pixel_values, Scene) else pixel_values)


def scene_loss(model: nn.Module, batch: Scene) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch), batch.classes)


@pytest.mark.parametrize("score", [MEASURED.score, CHIPConfig(), TaylorConfig()])
def test_batches_of_a_class_that_the_model_takes(score: object) -> None:
    options: dict[str, Any] = {"data": [Scene(X, LABELS)] * 2, "loss": scene_loss, "method": MDP(score=score)}
    assert run(OfScenes().eval(), recover=False, **options).verdict == "under"
    with pytest.raises(InvalidArgumentError, match="are a Scene, and recovery takes pieces"):
        run(OfScenes().eval(), **options)


class OfEight(Net):
    """Written for one batch size."""

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().forward(pixel_values.reshape(8, 3, 8, 8))


@pytest.mark.parametrize("recover", [False, "refit", "distil"])
def test_a_network_of_one_batch_size_is_scored_and_recovered_on_whole_batches(recover: Any) -> None:
    options: dict[str, Any] = {**OPTIONS, "data": [(X, LABELS)] * 3, "recover": recover}
    assert latprune.prune(OfEight().eval(), X, **options).verdict == "under"
    options["data"] = [(X[:5], LABELS[:5])]
    with pytest.raises(InvalidArgumentError, match=r"\(OfEight\) failed on batch 0 of the data, which is float32 \[5, 3, 8, 8\]"):
        latprune.prune(OfEight().eval(), X, **options)


class ByNumber:
    """Test batches that are read by their number alone."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if number >= len(self):
            raise IndexError(number)
        return X, LABELS


@pytest.mark.parametrize("batches", [lambda: iter([(X, LABELS)] * 2), ByNumber])
@pytest.mark.parametrize("fit", [None, RECIPE])
def test_test_batches_that_are_read_once_or_by_number(batches: Any, fit: Any) -> None:
    result = run(data=[(X, LABELS)], evaluate=batches(), fit=fit, recover=False)
    assert len(result.record.accuracies) == (3 if fit else 2)


class Counted(list[Any]):
    """Batches that count how often they are read from the first one on."""

    read = 0

    def __iter__(self) -> Iterator[Any]:
        self.read += 1
        return super().__iter__()


@pytest.mark.parametrize("score", [MEASURED.score, TaylorConfig()])
def test_the_preflight_reads_one_batch_once_and_asks_the_loss_once(score: object) -> None:
    asked: list[int] = []

    def loss(model: nn.Module, batch: Any) -> torch.Tensor:
        asked.append(1)
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    def evaluate(model: nn.Module) -> float:
        raise OSError(f"read {data.read}, asked {len(asked)}")  # the dense network's evaluation is what comes next

    data = Counted([(X, LABELS)] * 2)
    with pytest.raises(InvalidArgumentError, match="read 1, asked 1"):
        run(data=data, loss=loss, evaluate=evaluate, fit=RECIPE, method=MDP(score=score))


class Moved(Net):
    """Runs move its buffers on, in evaluation mode too: a counter, and a cache of the batch's size; a list of its own grows."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("place", torch.zeros(1, 3, 1, 1))
        self.sizes: list[int] = []

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.sizes.append(len(pixel_values))
        if len(self.place) != len(pixel_values):
            self.place = torch.zeros(len(pixel_values), 3, 1, 1)
        return super().forward(pixel_values + self.place)


def moved() -> Moved:
    torch.manual_seed(0)
    return Moved().eval()


@pytest.mark.parametrize("score", [MEASURED.score, TaylorConfig(), HRankConfig(), CHIPConfig()])
@pytest.mark.parametrize("test_batches", [False, True])
def test_what_is_tried_first_leaves_buffers_and_lists_of_the_model_alone(score: object, test_batches: bool) -> None:
    model = moved()
    if test_batches:
        options: dict[str, Any] = {"evaluate": [(X, LABELS + 7)], "fit": RECIPE}
    else:

        def evaluate(network: Any) -> float:
            assert (int(network.calls), network.place.shape, network.sizes) == (0, (1, 3, 1, 1), [])
            raise OSError("told")

        options = {"evaluate": evaluate}
    with pytest.raises(InvalidArgumentError, match="class 11" if test_batches else "OSError: told"):
        run(model, data=[(X, LABELS)] * 2, method=MDP(score=score), **options)
    assert (int(model.calls), model.place.shape, model.sizes) == (0, (1, 3, 1, 1), [])


def test_a_model_whose_runs_move_its_buffers_is_recovered_and_a_run_of_it_goes_on(tmp_path: Path) -> None:
    options: dict[str, Any] = {"data": [(X, LABELS)] * 4, "folder": tmp_path / "run", "fit": careful}

    def evaluate(network: nn.Module) -> float:
        network(X)
        return judge(network)

    judge = Judge(3)
    model = moved()
    with pytest.raises(UnfinishedRunError, match="KeyError"):
        run(model, **options, evaluate=evaluate)
    assert model.place.shape == (1, 3, 1, 1)
    judge = Judge(0)
    result = run(moved(), **options, evaluate=evaluate)
    assert [entry.stage for entry in result.record.accuracies] == ["dense", "pruned", "recovered", "fine-tuned"]
    assert result.model.place.shape == (1, 3, 1, 1) and result.verdict == "under"


def test_recovery_leaves_what_runs_move_on_and_gives_norms_their_statistics() -> None:
    model = moved()
    pruner = latprune.Pruner(model, X[:1], budget="flops=60%", method="uniform", measure_latency=False)
    pruner.step()
    calls, mean = int(model.calls), model.body[1].running_mean.clone()
    report = pruner.recover([(X, LABELS)] * 4)
    assert any(layer.action for layer in report.layers)
    assert (int(model.calls), model.place.shape) == (calls, (1, 3, 1, 1))
    assert not torch.equal(model.body[1].running_mean, mean)
    assert int(pruner.dense_model.calls) == 0 and pruner.dense_model.place.shape == (1, 3, 1, 1)
