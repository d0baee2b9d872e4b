"""The training loss: cross-entropy with label smoothing, and distillation from the dense network."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from latprune.train.recipe import Distillation

__all__ = ["classification_loss", "distillation_loss"]


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
        targets: ``(batch, ...)`` class indices, or class probabilities of the logits' shape.
        label_smoothing: Share of the target spread over all classes.
        distillation: Temperature and weight.
        teacher_logits: The dense network's logits; needed with ``distillation``.
    """
    loss = F.cross_entropy(logits.float(), targets, label_smoothing=label_smoothing)
    if distillation is None:
        return loss
    assert teacher_logits is not None
    taught = distillation_loss(logits, teacher_logits, distillation.temperature)
    return (1.0 - distillation.weight) * loss + distillation.weight * taught
