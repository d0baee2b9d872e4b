"""What one batch gives: the network's own loss on it, its correct answers, and how many examples it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from latprune.train.batches import first_size, forward, logits_of, split_batch
from latprune.train.contracts import (
    answer,
    calling,
    check_loss_value,
    check_targets,
    inputs_of,
    named,
    own_loss,
    takes_labels,
)
from latprune.train.loss import classification_loss
from latprune.train.mixing import mix
from latprune.train.recipe import Recipe

__all__ = ["BatchLoss", "BatchLosses"]


class BatchLoss(NamedTuple):
    """What one batch gives.

    Attributes:
        loss: The network's own loss, a scalar; None where the teacher's is all that counts.
        judged: Correct answers and labels, ``(2,)``; None where no one class is right.
        examples: Examples of the batch.
        weight: How much the loss is the mean of: labels that count, where it classifies them; examples otherwise.
    """

    loss: torch.Tensor | None
    judged: torch.Tensor | None
    examples: int
    weight: torch.Tensor | float


class BatchLosses:
    """Losses of a run's batches.

    Args:
        model: The network.
        wrapped: The network as it is run.
        recipe: What is asked of the loss.
        loss: Loss of the caller's own; None classifies.
        teacher: Whose class scores are distilled, where the recipe says so.
        exact: Type that correct answers are counted in.
        rank: Number of this process.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapped: nn.Module,
        recipe: Recipe,
        *,
        loss: Callable[[nn.Module, Any], torch.Tensor] | None,
        teacher: nn.Module | None,
        exact: torch.dtype,
        rank: int,
    ) -> None:
        self._model = model
        self._wrapped = wrapped
        self._recipe = recipe
        self._loss = loss
        self._teacher = teacher
        self._exact = exact
        self._rank = rank
        self.judged = True
        """Whether every example so far had one right class, so that answers could be counted."""

    def own(self, batch: Any, *, number: int, step: int) -> BatchLoss:
        """The network's own loss."""
        if self._loss is None:
            return self._classify(batch, number, step)
        what = named(self._loss, "(model, batch)")
        with calling(what, batch=number, given=batch):
            value = self._loss(self._wrapped, batch)
        size = first_size(batch)
        return BatchLoss(check_loss_value(value, what, batch=number), None, size, size)

    def unlabelled(self, batch: Any, *, number: int) -> BatchLoss:
        """Run the network on the batch's inputs alone: the teacher's loss is all that counts."""
        self.judged = False
        inputs = inputs_of(batch, self._model)
        with calling(f"the model ({type(self._model).__name__})", batch=number, given=inputs):
            forward(self._wrapped, inputs)
        size = first_size(inputs)
        return BatchLoss(None, None, size, size)

    def _classify(self, batch: Any, number: int, step: int) -> BatchLoss:
        inputs, targets = split_batch(batch, self._model)
        mixed = mix(inputs, targets, self._recipe, step=step, rank=self._rank)
        if mixed is not None:
            inputs, targets = mixed.inputs, mixed.targets
        distillation = self._recipe.distillation if self._recipe.distillation is not None and self._recipe.distillation.of_classes else None
        plain = self._recipe.label_smoothing == 0.0 and distillation is None and mixed is None
        # A language model shifts its labels itself, so its own loss counts wherever its scores are not of one class per example.
        labelled = isinstance(batch, Mapping) and takes_labels(self._model) and plain
        with calling(f"the model ({type(self._model).__name__})", batch=number, given=inputs):
            output = forward(self._wrapped, {**inputs, "labels": targets} if labelled else inputs)
        if labelled and (own := own_loss(output)) is not None and logits_of(output).ndim > 2:
            self.judged = False
            known = _unshifted(targets) >= 0
            return BatchLoss(_without_labels(own, logits_of(output), known), None, len(targets), known.sum())
        logits, targets = check_targets(logits_of(output), targets, batch=number, turn=not takes_labels(self._model))
        taught = None
        if distillation is not None and self._teacher is not None:
            with torch.no_grad():
                taught = check_targets(logits_of(answer(self._teacher, inputs, batch=number)), targets, batch=number)[0]

        def loss_for(labels: torch.Tensor) -> torch.Tensor:
            return classification_loss(
                logits, labels, label_smoothing=self._recipe.label_smoothing, distillation=distillation, teacher_logits=taught
            )

        loss = loss_for(targets)
        if mixed is not None:
            loss = mixed.share * loss + (1.0 - mixed.share) * loss_for(mixed.partners.long())
        weight = _labels_in(targets) if distillation is None else len(targets)  # a teacher's answer counts without a label
        if mixed is not None or targets.is_floating_point():  # class probabilities: no one class is right
            self.judged = False
            return BatchLoss(loss, None, len(targets), weight)
        known = targets >= 0
        right = (logits.detach().argmax(dim=1) == targets) & known
        return BatchLoss(loss, torch.stack([right.sum(), known.sum()]).to(self._exact), len(targets), weight)


def _labels_in(targets: torch.Tensor) -> torch.Tensor | float:
    """How many labels count: class indices that are not negative, all examples of class probabilities."""
    return len(targets) if targets.is_floating_point() else (targets >= 0).sum()


def _unshifted(targets: torch.Tensor) -> torch.Tensor:
    """Labels that a model which shifts them against its scores can count: a label at the first position counts for nothing."""
    return targets[:, 1:] if targets.ndim > 1 else targets


def _without_labels(own: torch.Tensor, scores: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """A model's own loss, 0 with a gradient of zero where no label is ``known`` and its mean is 0 / 0."""
    return torch.where(~known.any() & own.isnan(), scores.float().sum() * 0.0, own)
