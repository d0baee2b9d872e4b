from __future__ import annotations

import pytest
import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.train import evaluate, recalibrate_batch_norm
from latprune.train.loss import classification_loss, distillation_loss
from latprune.train.recipe import Distillation


def test_accuracy_is_the_share_of_right_answers_and_the_mode_stays() -> None:
    model = nn.Sequential(nn.Identity(), nn.Dropout(0.9))
    logits = torch.eye(4)
    data = [(logits, torch.tensor([0, 1, 2, 0])), (logits[:1], torch.tensor([0]))]
    assert evaluate(model, data) == pytest.approx(4 / 5)
    assert model.training and model[1].training


def test_unlabelled_positions_are_left_out() -> None:
    logits = torch.randn(2, 3, 5)
    targets = logits.argmax(1)
    targets[0, :2] = -100
    targets[1, 0] = (targets[1, 0] + 1) % 3
    assert evaluate(nn.Identity(), [(logits, targets)]) == pytest.approx(7 / 8)
    with pytest.raises(InvalidArgumentError, match="no example"):
        evaluate(nn.Identity(), [])


def test_batch_norm_statistics_become_those_of_the_data() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5), nn.ReLU(), nn.Dropout(0.5)).eval()
    batches = [(torch.randn(8, 3, 4, 4) * 3 + 1, None) for _ in range(7)]
    weights = {name: value.clone() for name, value in model.named_parameters()}
    assert recalibrate_batch_norm(model, batches, batches=5) == 1
    with torch.no_grad():
        inner = torch.stack([model[0](images).mean(dim=(0, 2, 3)) for images, _ in batches[:5]])
    assert torch.allclose(model[1].running_mean, inner.mean(0), atol=1e-5)  # type: ignore[arg-type]
    assert model[1].momentum == 0.1 and not any(module.training for module in model.modules())
    assert all(torch.equal(value, weights[name]) for name, value in model.named_parameters())
    again = {name: value.clone() for name, value in model.named_buffers()}
    recalibrate_batch_norm(model, iter(batches), batches=5)  # an iterator loses none of its batches
    assert all(torch.equal(value, again[name]) for name, value in model.named_buffers())


def test_recalibration_refuses_what_it_cannot_do() -> None:
    model = nn.Sequential(nn.BatchNorm1d(2))
    model[0].running_mean.fill_(4.0)  # type: ignore[union-attr, operator]
    with pytest.raises(InvalidArgumentError, match="no batch"):
        recalibrate_batch_norm(model, [])
    with pytest.raises(InvalidArgumentError, match=r"batches \(=0\)"):
        recalibrate_batch_norm(model, [(torch.randn(3, 2), None)], batches=0)
    assert model[0].running_mean.tolist() == [4.0, 4.0]  # type: ignore[union-attr, operator]
    assert recalibrate_batch_norm(nn.Linear(2, 2), []) == 0


def test_distillation_is_zero_at_the_teacher_and_has_its_gradient_scale() -> None:
    teacher = torch.randn(6, 10)
    assert distillation_loss(teacher.clone(), teacher, 3.0).item() == pytest.approx(0.0, abs=1e-6)
    student = torch.randn(6, 10, requires_grad=True)
    # By hand: T^2 / n * sum p_t (log p_t - log p_s).
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    expected = 9 * (p * (p.log() - q.log())).sum(1).mean()
    assert distillation_loss(student, teacher, 3.0).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_losses_mix_by_weight() -> None:
    student, teacher, targets = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    plain = nn.functional.cross_entropy(student, targets, label_smoothing=0.1)
    mixed = classification_loss(
        student, targets, label_smoothing=0.1, distillation=Distillation(temperature=2.0, weight=0.25), teacher_logits=teacher
    )
    assert mixed.item() == pytest.approx(0.75 * plain.item() + 0.25 * distillation_loss(student, teacher, 2.0).item(), rel=1e-5)


def test_scores_that_are_no_numbers_are_no_answers() -> None:
    logits = torch.eye(3)
    logits[1, 2] = torch.nan
    data = [(torch.eye(3), torch.arange(3)), (logits, torch.arange(3))]
    with pytest.raises(InvalidArgumentError, match=r"Identity\) gave NaN for 1 of 3 labels in batch 1 of the data"):
        evaluate(nn.Identity(), data)
    assert evaluate(nn.Identity(), [(logits, torch.tensor([0, -1, 2]))]) == 1.0  # left out
    ruled_out = torch.where(torch.eye(3) > 0, 0.0, -torch.inf)
    assert evaluate(nn.Identity(), [(ruled_out, torch.arange(3))]) == 1.0
