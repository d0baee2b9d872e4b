"""The training loss: cross-entropy with label smoothing, and distillation from the dense network."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from latprune.train.recipe import Distillation

__all__ = ["IGNORED", "classification_loss", "cross_entropy", "distillation_loss"]

IGNORED = -100
"""Class index that PyTorch's cross-entropy leaves out."""


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor, *, label_smoothing: float = 0.0) -> torch.Tensor:
    """Mean cross-entropy over the labels that are not left out; 0, with a gradient of zero, where all of them are.

    Args:
        logits: ``(batch, classes, ...)``.
        targets: ``(batch, ...)`` class indices, negative ones of which are left out, or class probabilities of the logits' shape.
        label_smoothing: Share of the target spread over all classes.

    Example:
        >>> cross_entropy(torch.zeros(2, 3), torch.tensor([-100, -100]))
        tensor(0.)
    """
    logits = logits.float()
    if targets.is_floating_point():
        return F.cross_entropy(logits, targets, label_smoothing=label_smoothing)
    left_out = targets < 0
    # A mean over no label is 0 / 0: the batch is given labels, which count nothing. No value is asked for, so no device is waited for.
    none = left_out.all()
    targets = torch.where(none, 0, torch.where(left_out, IGNORED, targets))
    return F.cross_entropy(logits, targets, label_smoothing=label_smoothing) * (~none).to(logits.dtype)


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, mean over the batch (arXiv:1503.02531).

    Args:
        student: ``(batch, classes, ...)`` logits.
        teacher: Logits of the same shape.
        temperature: ``T``.
    """
    log_student = F.log_softmax(student.float() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.float() / temperature, dim=1)
    positions = log_student.numel() / log_student.shape[1]
    return F.kl_div(log_student, log_teacher, reduction="sum", log_target=True) * (temperature**2 / positions)


def classification_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    *,
    label_smoothing: float = 0.0,
    distillation: Distillation | None = None,
    teacher_logits: torch.Tensor | None = None,
) -> torch.Tensor:
    """Cross-entropy, mixed with the distillation loss where ``distillation`` is given.

    Args:
        logits: ``(batch, classes, ...)``.
        targets: ``(batch, ...)`` class indices, negative ones of which are left out, or class probabilities of the logits' shape. What is
            left out still learns from the teacher.
        label_smoothing: Share of the target spread over all classes.
        distillation: Temperature and weight.
        teacher_logits: The dense network's logits; needed with ``distillation``.
    """
    loss = cross_entropy(logits, targets, label_smoothing=label_smoothing)
    if distillation is None:
        return loss
    assert teacher_logits is not None
    taught = distillation_loss(logits, teacher_logits, distillation.temperature)
    return (1.0 - distillation.weight) * loss + distillation.weight * taught
