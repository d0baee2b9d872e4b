from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from latprune.errors import InvalidArgumentError, LatpruneError
from latprune.graph import trace
from latprune.importance import TaylorConfig, cross_entropy_loss, score
from latprune.recovery.batches import calibration_pieces
from latprune.train import Recipe, evaluate, finetune, recalibrate_batch_norm
from latprune.train.batches import move, split_batch
from latprune.train.contracts import (
    accuracy_of,
    as_tensors,
    calling,
    check_accuracy,
    check_loss_value,
    check_targets,
    described,
    inputs_of,
    numbered,
)


@dataclass
class Output:
    """An output object, as frameworks return them."""

    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Classifier(nn.Module):
    """Returns an output object, with its own loss where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Output:
        logits = self.head(torch.relu(self.first(x)))
        return Output(logits, None if labels is None else nn.functional.cross_entropy(logits, labels.reshape(-1)) * 2.0)


def plain() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


X, LABELS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 1, 0])


def test_output_objects_and_batches_of_every_form_have_the_default_loss() -> None:
    model = Classifier()
    logits = model(X).logits
    wanted = nn.functional.cross_entropy(logits, LABELS)
    assert torch.equal(cross_entropy_loss(model, (X, LABELS)), wanted)
    assert torch.equal(cross_entropy_loss(model, ({"x": X}, LABELS)), wanted)
    # The model's own loss where it makes one of its labels.
    assert torch.equal(cross_entropy_loss(model, {"x": X, "labels": LABELS}), 2.0 * wanted)
    for labels in (LABELS.int(), LABELS.reshape(-1, 1), LABELS.tolist(), LABELS.numpy(), LABELS.to(torch.uint8)):
        assert torch.equal(cross_entropy_loss(model, (X.numpy(), labels)), wanted)
    known = torch.tensor([0, -1, 1, -100, 0])
    assert torch.allclose(cross_entropy_loss(model, (X, known)), nn.functional.cross_entropy(logits[[0, 2, 4]], known[[0, 2, 4]]))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (LABELS.float(), r"labels are float32 \[5\]; class indices must be integers"),
        (LABELS[:4], r"labels are int64 \[4\], and the model's output is float32 \[5, 3\]: class indices must have the shape \[5\]"),
        (LABELS + 1, r"labels hold the class 3, but the model has 3 classes \(0 to 2\)"),
        (["a", "b", "c", "a", "b"], "labels are a list"),
    ],
)
def test_labels_that_do_not_fit_are_told_as_the_users(labels: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        cross_entropy_loss(plain(), (X, labels))
    with pytest.raises(InvalidArgumentError, match=says.replace("labels ", "labels in batch 1 of the data ").replace("output is", ".*is")):
        evaluate(plain(), [(X, LABELS), (X, labels)])


def test_one_score_per_example_is_no_classification() -> None:
    with pytest.raises(InvalidArgumentError, match="give a loss"):
        cross_entropy_loss(nn.Linear(6, 1), (X, LABELS))
    with pytest.raises(InvalidArgumentError, match="no score for each of several classes"):
        evaluate(nn.Linear(6, 1), [(X, LABELS)])


def test_labels_in_a_column_count_one_each() -> None:
    logits = torch.eye(4)
    labels = torch.tensor([0, 1, 0, 0])
    assert evaluate(nn.Identity(), [(logits, labels)]) == evaluate(nn.Identity(), [(logits, labels.reshape(4, 1))]) == 0.5
    assert evaluate(nn.Identity(), [(logits.numpy(), labels.numpy())]) == 0.5
    assert evaluate(nn.Identity(), [(logits, torch.eye(4)[labels])]) == 0.5


def test_scores_per_position_are_turned_unless_the_model_may_shift_them() -> None:
    logits, labels = torch.randn(2, 7, 3), torch.randint(0, 3, (2, 7))
    turned, same = check_targets(logits, labels)
    assert turned.shape == (2, 3, 7) and torch.equal(same, labels)
    with pytest.raises(InvalidArgumentError, match="whether it shifts them"):
        check_targets(logits, labels, turn=False)


def test_a_model_that_fails_is_told_with_the_batch() -> None:
    images = torch.zeros(5, 6, dtype=torch.uint8)
    with pytest.raises(InvalidArgumentError, match=r"the model \(Sequential\) failed on batch 0 of the data, which is uint8 \[5, 6\]"):
        evaluate(plain(), [(images, LABELS)])
    with pytest.raises(InvalidArgumentError, match=r"the model \(Sequential\) failed, which is|given|uint8 \[5, 6\]"):
        cross_entropy_loss(plain(), (images, LABELS))


class Failing:
    """Data whose third batch cannot be made."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        yield X, LABELS
        yield X, LABELS
        raise KeyError("picture.png")


def test_errors_of_data_and_functions_name_them() -> None:
    with pytest.raises(InvalidArgumentError, match=r"data \(a Failing\) failed on batch 2 of the data: KeyError: 'picture.png'"):
        evaluate(plain(), Failing())
    with pytest.raises(InvalidArgumentError, match=r"iterating over data \(a int\) failed"):
        list(numbered(3))  # type: ignore[arg-type]

    def my_loss(model: nn.Module, batch: Any) -> torch.Tensor:
        return batch["nothing"]  # type: ignore[no-any-return]

    model = plain()
    graph = trace(model, X)
    with pytest.raises(
        InvalidArgumentError, match=r"my_loss\(model, batch\) failed on batch 0 of the data, which is \(float32 \[5, 6\]"
    ) as told:
        score(model, graph, TaylorConfig(), [(X, LABELS)], loss=my_loss)
    assert isinstance(told.value.__cause__, TypeError)
    with pytest.raises(InvalidArgumentError, match=r"gave 1.5 for batch 0 of the data; it must return a scalar tensor"):
        score(model, graph, TaylorConfig(), [(X, LABELS)], loss=lambda model, batch: 1.5)  # type: ignore[arg-type,return-value]


def test_errors_of_ours_and_lack_of_memory_pass_through() -> None:
    for error in (InvalidArgumentError("as it is"), MemoryError("as it is")):
        with pytest.raises(type(error), match="^as it is$"), calling("f"):
            raise error
    assert issubclass(InvalidArgumentError, LatpruneError)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (93.4, "return 0.934 for 93.4 %"),
        (None, "is its return missing"),
        (float("nan"), "gave nan"),
        (-0.1, "gave -0.1"),
        ("x", "gave 'x'"),
    ],
)
def test_an_accuracy_is_a_fraction(value: Any, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        check_accuracy(value)
    assert check_accuracy(torch.tensor(0.5)) == 0.5 and check_accuracy(1) == 1.0


def test_a_loss_is_a_scalar_that_can_be_followed() -> None:
    with pytest.raises(InvalidArgumentError, match=r"f gave float32 \[2\] for batch 3"):
        check_loss_value(torch.ones(2, requires_grad=True), "f", batch=3)
    with pytest.raises(InvalidArgumentError, match="without a gradient"):
        check_loss_value(torch.tensor(1.0), "f")
    assert check_loss_value(torch.ones(1, requires_grad=True), "f").shape == ()


def test_what_is_given_is_described_in_a_line() -> None:
    assert described((X, {"labels": LABELS, "more": [np.zeros(3, np.float32)]})) == (
        "(float32 [5, 6], {labels: int64 [5], more: (numpy float32 [3])})"
    )
    assert isinstance(as_tensors({"a": [np.zeros(3)]})["a"][0], torch.Tensor)


def test_training_tells_the_same() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.01)
    with pytest.raises(InvalidArgumentError, match=r"labels in batch 0 of the data are float32 \[5\]"):
        finetune(plain(), [(X, LABELS.float())], recipe)
    with pytest.raises(InvalidArgumentError, match="return 0.934 for 93.4 %"):
        finetune(plain(), [(X, LABELS)], recipe, evaluate=lambda model: 93.4)
    report = finetune(Classifier(), [{"x": X.numpy(), "labels": LABELS.reshape(-1, 1).numpy()}], recipe)
    assert report.finished and report.epochs[0].train_accuracy is not None


class Stream:
    """A loader's view of a stream: it has ``len`` by its class, and does not know it; it fails when ``good`` batches are read."""

    def __init__(self, good: int = 9, length: int | None = None) -> None:
        self.good, self.length = good, length

    def __len__(self) -> int:
        if self.length is None:
            raise TypeError("object of type 'Lines' has no len()")
        return self.length

    def __iter__(self) -> Iterator[Any]:
        for number in range(3):
            if number == self.good:
                raise OSError("the disk is gone")
            yield X, LABELS


def test_data_that_fails_or_has_no_length_is_told_everywhere() -> None:
    recipe = Recipe(epochs=1, learning_rate=0.01)
    model = plain()
    graph = trace(model, X)
    with pytest.raises(InvalidArgumentError, match=r"data \(a Stream\) failed on batch 1 of the data: OSError: the disk is gone"):
        finetune(plain(), Stream(good=1, length=3), recipe)
    with pytest.raises(InvalidArgumentError, match="must have a length"):
        finetune(plain(), Stream(), recipe)
    with pytest.raises(InvalidArgumentError, match=r"data \(a Stream\) failed on batch 1"):
        score(model, graph, TaylorConfig(), Stream(good=1))
    assert evaluate(model, Stream()) <= 1.0  # a length is not needed
    assert score(model, graph, TaylorConfig(), Stream()).units


def test_what_a_run_calls_after_each_step_is_told_as_theirs() -> None:
    def after_step(model: nn.Module) -> None:
        raise KeyError("ema")

    with pytest.raises(InvalidArgumentError, match=r"after_step\(model\) failed: KeyError"):
        finetune(plain(), [(X, LABELS)], Recipe(epochs=1, learning_rate=0.01), after_step=after_step)


def test_statistics_are_taken_of_inputs_alone_and_put_back_where_a_batch_fails() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
    before = model[1].running_mean.clone()
    for data in ([(X, LABELS), (X[:, :3], LABELS)], Stream(good=1)):
        with pytest.raises(InvalidArgumentError, match="failed on batch 1"):
            recalibrate_batch_norm(model, data)
        assert torch.equal(model[1].running_mean, before)
    assert recalibrate_batch_norm(model, iter([X.numpy(), {"input": X, "target": LABELS}])) == 1
    assert torch.allclose(model[1].running_mean, model[0](X).mean(0), atol=1e-6)


def test_labels_have_one_of_several_names_unless_the_model_needs_it() -> None:
    for name in ("labels", "label", "targets", "target"):
        model = Classifier()
        own = 2.0 * cross_entropy_loss(model, (X, LABELS))  # the model's own loss, whatever the batch calls its labels
        assert torch.equal(cross_entropy_loss(model, {"x": X, name: LABELS}), own)
        assert inputs_of({"x": X, name: LABELS}).keys() == {"x"}
        assert split_batch({"x": X, name: LABELS})[1] is LABELS

    class Conditioned(nn.Module):
        def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
            return x * label[:, None]

    assert inputs_of({"x": X, "label": LABELS}, Conditioned()).keys() == {"x", "label"}
    assert split_batch({"x": X, "label": LABELS, "target": X}, Conditioned())[1] is X


@pytest.mark.parametrize("name", ["label", "targets", "target"])
def test_an_input_named_so_beside_the_labels_reaches_the_model(name: str) -> None:
    class Shifted(nn.Module):
        def forward(self, x: torch.Tensor, label: Any = None, targets: Any = None, target: Any = None) -> torch.Tensor:
            given = {"label": label, "targets": targets, "target": target}[name]
            return x if given is None else given

    shift = torch.eye(6)[LABELS]
    batch = {"x": X, name: shift, "labels": LABELS}
    assert inputs_of(batch, Shifted()).keys() == {"x", name}
    assert evaluate(Shifted(), [batch]) == 1.0
    assert inputs_of(batch, plain()).keys() == {"x"}  # of a model without such an input it is another label
    assert split_batch({"x": X, name: LABELS}, Shifted()) == ({"x": X}, LABELS)


def test_batches_of_a_class_of_their_own_are_handed_to_the_model() -> None:
    @dataclass
    class Scene:
        x: torch.Tensor

    scene = Scene(X)
    assert inputs_of(scene) is scene and inputs_of((scene, LABELS)) is scene
    for nothing in (None, (), []):
        with pytest.raises(InvalidArgumentError, match="it must hold inputs"):
            inputs_of(nothing)
    with pytest.raises(InvalidArgumentError, match="are a Scene, and recovery takes pieces"):
        calibration_pieces([scene], 4, torch.device("cpu"))


def test_batches_without_arrays_are_handed_on_as_they_are() -> None:
    class Pair(NamedTuple):
        x: Any
        y: Any

    for batch in ((X, LABELS), Pair(X, LABELS), {"x": [X]}):
        assert as_tensors(batch) is batch
    changed = as_tensors(Pair(X.numpy(), LABELS))
    assert isinstance(changed, Pair) and isinstance(changed.x, torch.Tensor)
    assert isinstance(move(Pair(X, [LABELS]), torch.device("cpu")), Pair)


def test_an_evaluation_is_named() -> None:
    def my_accuracy(model: nn.Module) -> float:
        raise KeyError("top1")

    with pytest.raises(InvalidArgumentError, match=r"evaluate\(model\), which is .*my_accuracy, failed: KeyError: 'top1'"):
        accuracy_of(my_accuracy, plain())
    with pytest.raises(InvalidArgumentError, match=r"evaluate\(model\), which is .*, gave 93.4"):
        accuracy_of(lambda model: 93.4, plain())
