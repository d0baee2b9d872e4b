"""What one batch gives: the network's own loss on it, its correct answers, and how many examples it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

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

__all__ = ["BatchLosses"]


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

    def own(self, batch: Any, *, number: int, step: int) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
        """The network's own loss; where it classifies, correct answers and labels, ``(2,)``; and the examples of the batch."""
        if self._loss is None:
            return self._classify(batch, number, step)
        what = named(self._loss, "(model, batch)")
        with calling(what, batch=number, given=batch):
            value = self._loss(self._wrapped, batch)
        return check_loss_value(value, what, batch=number), None, first_size(batch)

    def unlabelled(self, batch: Any, *, number: int) -> tuple[torch.Tensor | None, torch.Tensor | None, int]:
        """Run the network on the batch's inputs alone: the teacher's loss is all that counts."""
        self.judged = False
        inputs = inputs_of(batch, self._model)
        with calling(f"the model ({type(self._model).__name__})", batch=number, given=inputs):
            forward(self._wrapped, inputs)
        return None, None, first_size(inputs)

    def _classify(self, batch: Any, number: int, step: int) -> tuple[torch.Tensor, torch.Tensor | None, int]:
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
            return _without_labels(own, logits_of(output), targets), None, len(targets)
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
        if mixed is not None or targets.is_floating_point():  # class probabilities: no one class is right
            self.judged = False
            return loss, None, len(targets)
        known = targets >= 0
        right = (logits.detach().argmax(dim=1) == targets) & known
        return loss, torch.stack([right.sum(), known.sum()]).to(self._exact), len(targets)


def _without_labels(own: torch.Tensor, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """A model's own loss, 0 with a gradient of zero where no label counts and its mean is 0 / 0.

    A label at the first position counts for nothing where the model shifts labels against its scores.
    """
    none = (targets[:, 1:] < 0).all() if targets.ndim > 1 else (targets < 0).all()
    return torch.where(none & own.isnan(), scores.float().sum() * 0.0, own)
