"""Batches none of whose labels count."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from latprune.train import SGD, Constant, Distillation, Recipe, finetune
from latprune.train.contracts import plain_loss
from latprune.train.loss import classification_loss

PLAIN = Recipe(epochs=1, learning_rate=0.1, optimizer=SGD(momentum=0.0), schedule=Constant())
X = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
NONE = torch.full((8,), -100)


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(2, 3)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"mixup": 0.5}, {"precision": "bf16"}])
@pytest.mark.parametrize("left_out", [-100, -1])
def test_they_add_nothing_to_the_loss_and_to_the_gradient(options: dict[str, Any], left_out: int) -> None:
    model = linear()
    report = finetune(model, [(X, torch.full((8,), left_out))], replace(PLAIN, **options))
    assert report.epochs[0].loss == 0.0
    assert all(torch.equal(value, linear().state_dict()[name]) for name, value in model.state_dict().items())


def test_the_teacher_goes_on_without_them() -> None:
    torch.manual_seed(1)
    scores, taught = torch.randn(8, 3), torch.randn(8, 3)
    for smoothing in (0.0, 0.1):
        found = classification_loss(scores, NONE, label_smoothing=smoothing, distillation=Distillation(weight=0.25), teacher_logits=taught)
        whole = classification_loss(scores, NONE, label_smoothing=smoothing, distillation=Distillation(weight=1.0), teacher_logits=taught)
        assert found.item() == pytest.approx(0.25 * whole.item())
    report = finetune(linear(), [(X, NONE)] * 2, replace(PLAIN, distillation=Distillation()), teacher=linear())
    assert report.finished


def test_among_gathered_batches_they_count_as_zero() -> None:
    one, other = linear(), linear()
    labels = torch.arange(8) % 3
    finetune(one, [(X, labels), (X, NONE)], replace(PLAIN, accumulate=2))
    finetune(other, [(X, labels)], replace(PLAIN, learning_rate=0.05))
    torch.testing.assert_close(one.weight, other.weight)


class Sentences(nn.Module):
    """A language model, which shifts its labels and has a loss of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Embedding(5, 5)

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
        logits = self.scores(tokens)
        return SimpleNamespace(logits=logits, loss=nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()))


def test_a_models_own_mean_over_no_label_is_nothing_too() -> None:
    model = Sentences()
    before = model.scores.weight.detach().clone()
    labels = torch.full((2, 4), -100)
    labels[:, 0] = 1  # shifted away
    report = finetune(model, [{"tokens": torch.zeros(2, 4, dtype=torch.long), "labels": labels}], PLAIN)
    assert report.epochs[0].loss == 0.0 and torch.equal(model.scores.weight, before)


def test_the_loss_of_scores_is_nothing_too() -> None:
    assert plain_loss(linear(), (X, NONE)).item() == 0.0


def test_training_accuracy_is_of_the_labels_that_count() -> None:
    model = linear()
    known = model(X).argmax(1)
    left_out = torch.where(torch.arange(8) % 2 == 0, known, -100)
    report = finetune(model, [(X, left_out), (X, NONE)], replace(PLAIN, learning_rate=1e-9))
    assert report.epochs[0].train_accuracy == 1.0
    assert finetune(model, [(X, NONE)], replace(PLAIN, learning_rate=1e-9)).epochs[0].train_accuracy is None


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"mixup": 1e-9}])
def test_the_mean_loss_of_an_epoch_is_of_the_labels_that_count(options: dict[str, Any]) -> None:
    labels = torch.arange(8) % 3
    recipe = replace(PLAIN, learning_rate=1e-12, **options)
    plain = finetune(linear(), [(X, labels)], recipe).epochs[0].loss
    assert finetune(linear(), [(X, labels), (X, NONE), (X[:3], NONE[:3])], recipe).epochs[0].loss == pytest.approx(plain)
    half = torch.where(torch.arange(8) < 2, labels, -1)
    both = finetune(linear(), [(X, labels), (X, half)], recipe).epochs[0].loss
    some = finetune(linear(), [(X, half)], recipe).epochs[0].loss
    assert both == pytest.approx((8 * plain + 2 * some) / 10, rel=1e-5)


def test_a_models_own_mean_counts_by_its_labels_too() -> None:
    tokens = torch.zeros(2, 4, dtype=torch.long)
    some, none = torch.ones(2, 4, dtype=torch.long), torch.full((2, 4), -100)
    slow = replace(PLAIN, learning_rate=1e-12)
    model = Sentences()
    plain = finetune(model, [{"tokens": tokens, "labels": some}], slow).epochs[0].loss
    both = finetune(model, [{"tokens": tokens, "labels": some}, {"tokens": tokens, "labels": none}], slow).epochs[0].loss
    assert both == pytest.approx(plain)


def test_a_teachers_answers_count_without_labels() -> None:
    recipe = replace(PLAIN, learning_rate=1e-12, distillation=Distillation(weight=1.0))
    torch.manual_seed(3)
    teacher = nn.Linear(2, 3)
    one = finetune(linear(), [(X, NONE)], recipe, teacher=teacher).epochs[0].loss
    assert one > 0 and finetune(linear(), [(X, NONE)] * 2, recipe, teacher=teacher).epochs[0].loss == pytest.approx(one)
