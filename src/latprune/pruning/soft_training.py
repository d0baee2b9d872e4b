"""Masks at work inside a training loop: scores gathered, masks solved for again, and the cut left to the end (SMCP, soft masks of MDP)."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from latprune.errors import BudgetInfeasibleError, CheckpointError, InvalidArgumentError
from latprune.graph.types import Selection
from latprune.importance import cross_entropy_loss
from latprune.methods import SoftMasks
from latprune.pruning.maskable import check_masks_move
from latprune.pruning.masked_record import (
    ChangeRecord,
    HeldMasksRecord,
    MaskedTrainingRecord,
    SelectionRecord,
    read_as,
    require_same,
)
from latprune.pruning.stage_search import propose_stage
from latprune.pruning.state import plain_settings, selection_to_dict
from latprune.rounding import ROUNDED
from latprune.train.driver import DriverState

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from latprune.pruning.proposal import StageProposal
    from latprune.pruning.pruner import Pruner

__all__ = ["HeldMasks", "MaskChange", "MaskedTraining"]

_PREDICTED_AGAIN = 1e-6
"""What a network's prediction may exceed its own limit by, as a share: the smallest network must stay within reach."""


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


class _UnderMasks:
    """Training while a pruner's masks are at work: a checkpoint holds the values beneath them."""

    _pruner: Pruner

    def dense_values(self) -> AbstractContextManager[None]:
        """For a while the parameters hold their dense values: those to keep in a checkpoint."""
        masks = self._pruner.masks
        return masks.dense_values() if masks is not None else nullcontext()


class MaskedTraining(_UnderMasks):
    """Drives a pruner with a :class:`~latprune.methods.SoftMasks` schedule through a training run.

    Call :meth:`before_forward` before each batch's forward pass and :meth:`after_backward` between ``loss.backward()`` and
    ``optimizer.step()``; cut when the last batch is through.

    Between two steps its :meth:`state` can be kept, and another process goes on from it to the bit.

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
        if idle := check_masks_move(pruner.schedule, steps=steps, gradients=pruner.needs_gradients):
            pruner._progress(idle)
        self.step = 0
        self._reachable = False
        self._delivers: float | None = None
        """Predicted value of a network that was measured within the budget; None before the cool-down, and where nothing is measured."""
        self.changes: list[MaskChange] = []

    def before_forward(self) -> None:
        """Solve for the masks again where they are due.

        Raises:
            BudgetInfeasibleError: The limit at the end cannot be met; said as soon as there are scores, before anything is masked.
        """
        pruner, schedule = self._pruner, self._schedule
        if pruner.needs_gradients and not pruner.scorer.gathered:
            return
        if not self._reachable:
            pruner.propose(pruner.limit, measure=False)
            self._reachable = True
        if not schedule.due(self.step, self._steps):
            return
        limit = self._limit_now(pruner.limits.dense, pruner.limit)
        if limit is None:
            return
        before = pruner.selection
        with pruner.clock.timed("solve masks"):
            proposal = self._proposed(limit)
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

    def _limit_now(self, dense: float, limit: float) -> float | None:
        """Where a resource is limited at this step on the way from ``dense`` to ``limit``; None during the warm-up."""
        return self._schedule.limit_at(step=self.step, steps=self._steps, dense=dense, limit=limit)

    def _proposed(self, limit: float) -> StageProposal:
        """The network to mask to. Where the clock decides, the first one at the budget itself and the last one are searched for by it, and
        those between are solved for under what the first was predicted at: what trains under the last mask can then be cut as it is.
        """
        pruner = self._pruner
        if not pruner.limits.measured or limit > pruner.limit * ROUNDED:
            return self._under(limit, measure=False)
        known = self._delivers * (1.0 + _PREDICTED_AGAIN) if self._delivers is not None else None
        if known is not None and self.step < self._schedule.last_solution(self._steps):
            return self._under(known, measure=False)
        try:
            found = self._under(limit, measure=True)
        except BudgetInfeasibleError:
            if known is None:
                raise
            return self._under(known, measure=False)  # one was measured within the budget before; the cut is measured again
        self._delivers = found.predicted
        return found

    def _under(self, limit: float, *, measure: bool) -> StageProposal:
        """The best network under a limit by the scores gathered so far; further budgets are as far on their way as the first."""

        def further(dense: float, end: float) -> float:
            now = self._limit_now(dense, end)
            return end if now is None else now

        return propose_stage(
            self._pruner, limit=limit, on_the_way=further, data=None, loss=cross_entropy_loss, batches=None, measure=measure
        )

    def after_backward(self) -> None:
        """Gather the gradients of the batch."""
        if self._pruner.needs_gradients:
            self._pruner.accumulate()
        self.step += 1

    def state(self) -> DriverState:
        """Where it stands, with all that decides where it ends: settings, limits, the mask, the solutions so far, the running scores.

        Keep it beside the model's state dict of the same moment, taken within :meth:`dense_values`, and the optimizers'.
        """
        pruner, limits = self._pruner, self._pruner.limits
        masked = pruner.masks is not None and pruner.masks.selection is not None
        record = MaskedTrainingRecord(
            settings=plain_settings(pruner),
            dense=pruner.dense_digest,
            steps=self._steps,
            memory=self._memory,
            dense_ms=pruner.dense_ms,
            dense_value=limits.dense,
            limits=(pruner.limit, *(other.value for other in limits.others())),
            step=self.step,
            delivers=self._delivers,
            selection=SelectionRecord.model_validate(selection_to_dict(pruner.selection)) if masked else None,
            value=limits.resource.value(pruner.widths, pruner.selection.removed_blocks) if masked else None,
            changes=tuple(ChangeRecord.model_validate(asdict(change)) for change in self.changes),
        )
        return DriverState(data=record.model_dump(mode="json"), tensors=pruner.scorer.state_dict())

    def load_state(self, state: DriverState) -> None:
        """Go on from a saved state; load the model's state dict of the same moment, within :meth:`dense_values`, before.

        Raises:
            CheckpointError: Something that decides the outcome is not as it was then: a setting, the network to begin with, the steps, a
                limit, a cost.
        """
        pruner, record = self._pruner, read_as(MaskedTrainingRecord, state.data)
        require_same(pruner, record)
        for name, then, now in (("steps", record.steps, self._steps), ("memory", record.memory, self._memory)):
            if then != now:
                raise CheckpointError(f"the checkpoint is of a training with {name} (={then}), and this one has {now}")
        pruner.dense_ms = record.dense_ms  # shares are of the latency that was measured then
        limits = (pruner.limit, *(other.value for other in pruner.limits.others()))
        if (record.dense_value, record.limits) != (pruner.limits.dense, limits):
            raise CheckpointError(
                f"the checkpoint's limits are {record.limits}, of {record.dense_value} dense, and this run's {limits}, of "
                f"{pruner.limits.dense}: give the latency tables of then, or start again in another folder"
            )
        selection = record.selection.selection() if record.selection is not None else None
        pruner.mask(selection)
        if selection is not None:
            assert pruner.masks is not None
            pruner.masks.attach(*self._optimizers)
            value = pruner.limits.resource.value(pruner.widths, selection.removed_blocks)
            if value != record.value:
                raise CheckpointError(
                    f"the masked network was predicted at {record.value} when the checkpoint was written, and is at {value} now: give the "
                    "latency tables of then, or start again in another folder"
                )
        try:
            pruner.scorer.load_state_dict(pruner.cut_to, state.tensors)
        except InvalidArgumentError as error:
            raise CheckpointError(f"the checkpoint's scores are of another criterion or network: {error}") from error
        self.step, self._reachable, self._delivers = record.step, True, record.delivers
        self.changes = [MaskChange(**change.model_dump()) for change in record.changes]


class HeldMasks(_UnderMasks):
    """Masks that stay while the network trains, between two stages: nothing to do at a step, but a checkpoint must know of them.

    Args:
        pruner: The pruner, whose masks are at work.
    """

    def __init__(self, pruner: Pruner) -> None:
        self._pruner = pruner

    def before_forward(self) -> None:
        """Nothing to do."""

    def after_backward(self) -> None:
        """Nothing to do: between stages, scores are gathered by the next one."""

    def state(self) -> DriverState:
        """Settings and mask."""
        pruner = self._pruner
        selection = SelectionRecord.model_validate(selection_to_dict(pruner.selection))
        record = HeldMasksRecord(settings=plain_settings(pruner), dense=pruner.dense_digest, selection=selection)
        return DriverState(data=record.model_dump(mode="json"), tensors={})

    def load_state(self, state: DriverState) -> None:
        """Go on under the same mask, which the run has put on already.

        Raises:
            CheckpointError: It was another mask, or another run.
        """
        record = read_as(HeldMasksRecord, state.data)
        require_same(self._pruner, record)
        if record.selection != SelectionRecord.model_validate(selection_to_dict(self._pruner.selection)):
            raise CheckpointError("the checkpoint is of a training under another mask; use another folder, or start again")


def _units(pruner: Pruner, selection: Selection, name: str) -> set[int]:
    kept = selection.kept.get(name)
    return set(range(pruner.graph.groups[name].units)) if kept is None else set(kept.tolist())


def _masked(pruner: Pruner, selection: Selection) -> int:
    return sum(pruner.graph.groups[name].units - kept.size for name, kept in selection.kept.items())


def _returned(pruner: Pruner, before: Selection, after: Selection) -> int:
    return sum(len(_units(pruner, after, name) - set(kept.tolist())) for name, kept in before.kept.items())
