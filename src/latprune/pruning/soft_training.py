"""Masks at work inside a training loop: scores gathered, masks solved for again, and the cut left to the end (SMCP, soft masks of MDP)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latprune.errors import InvalidArgumentError
from latprune.graph.types import Selection
from latprune.methods import SoftMasks

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.pruning.pruner import Pruner

__all__ = ["MaskChange", "MaskedTraining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskChange:
    """One solution on the way.

    Attributes:
        step: Optimizer step, 0-based, before which it took effect.
        limit: Its limit, in the resource's unit.
        masked: Units that are masked.
        returned: Units that were masked before and are back.
        widths: Group -> width.
        removed_blocks: Blocks that are masked.
    """

    step: int
    limit: float
    masked: int
    returned: int
    widths: Mapping[str, int]
    removed_blocks: tuple[str, ...]


class MaskedTraining:
    """Drives a pruner with a :class:`~latprune.methods.SoftMasks` schedule through a training run.

    Call :meth:`before_forward` before each batch's forward pass and :meth:`after_backward` between ``loss.backward()`` and
    ``optimizer.step()``; cut when the last batch is through.

    Args:
        pruner: The pruner.
        steps: Optimizer steps of the whole run.
        optimizers: Optimizers of the model.
        memory: What scores of earlier solutions still count after a new one, between 0 and 1.

    Example:
        >>> training = pruner.masked_training(steps=len(loader), optimizers=optimizer)  # doctest: +SKIP
        >>> for images, labels in loader:  # doctest: +SKIP
        ...     training.before_forward()
        ...     optimizer.zero_grad()
        ...     loss(model(images), labels).backward()
        ...     training.after_backward()
        ...     optimizer.step()
        >>> pruner.step(optimizers=optimizer)  # doctest: +SKIP
    """

    def __init__(self, pruner: Pruner, *, steps: int, optimizers: Optimizer | tuple[Optimizer, ...], memory: float = 0.9) -> None:
        if not isinstance(pruner.schedule, SoftMasks):
            raise InvalidArgumentError(
                f"method {pruner.method.name!r} has the schedule {pruner.schedule.name!r}; masks are solved for again while training "
                "only under soft_masks (method 'smcp', or mdp with soft_masks)"
            )
        if steps < 1:
            raise InvalidArgumentError(f"steps (={steps}) must be the optimizer steps of the training, at least 1")
        if not 0.0 <= memory <= 1.0:
            raise InvalidArgumentError(f"memory (={memory}) must lie between 0 and 1")
        self._pruner = pruner
        self._schedule = pruner.schedule
        self._steps = steps
        self._optimizers = optimizers if isinstance(optimizers, tuple) else (optimizers,)
        self._memory = memory
        self.step = 0
        self.changes: list[MaskChange] = []

    def before_forward(self) -> None:
        """Solve for the masks again where they are due."""
        pruner, schedule = self._pruner, self._schedule
        if not schedule.due(self.step) or (pruner.needs_gradients and not pruner.scorer.gathered):
            return
        limit = schedule.limit_at(step=self.step, steps=self._steps, dense=pruner.limits.dense, limit=pruner.limit)
        if limit is None:
            return
        before = pruner.selection
        with pruner.clock.timed("solve masks"):
            proposal = pruner.propose(limit, measure=False)
            first = pruner.masks is None
            pruner.mask(proposal)
        assert pruner.masks is not None
        if first:
            pruner.masks.attach(*self._optimizers)
        pruner.scorer.decay(self._memory)
        self.changes.append(
            MaskChange(
                step=self.step,
                limit=limit,
                masked=_masked(pruner, proposal.selection),
                returned=_returned(pruner, before, proposal.selection),
                widths=pruner.widths,
                removed_blocks=tuple(sorted(proposal.selection.removed_blocks)),
            )
        )

    def after_backward(self) -> None:
        """Gather the gradients of the batch."""
        if self._pruner.needs_gradients:
            self._pruner.accumulate()
        self.step += 1

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, as a JSON object; tensors of masks and scores are the masks' and the scorer's own."""
        return {"step": self.step, "steps": self._steps}


def _units(pruner: Pruner, selection: Selection, name: str) -> set[int]:
    kept = selection.kept.get(name)
    return set(range(pruner.graph.groups[name].units)) if kept is None else set(kept.tolist())


def _masked(pruner: Pruner, selection: Selection) -> int:
    return sum(pruner.graph.groups[name].units - kept.size for name, kept in selection.kept.items())


def _returned(pruner: Pruner, before: Selection, after: Selection) -> int:
    return sum(len(_units(pruner, after, name) - set(kept.tolist())) for name, kept in before.kept.items())
