"""Schedules: in how many steps a network goes to its budget, what happens between them, and whether channels may come back."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeVar

from latprune.argument_rules import check_flag, check_one_of, check_share, check_whole
from latprune.errors import InvalidArgumentError
from latprune.registry import ClassRegistry
from latprune.surgery.mask_decay import check_mask_decay

__all__ = [
    "Between",
    "Ramp",
    "Schedule",
    "SinglePass",
    "SoftMasks",
    "Stages",
    "get_schedule",
    "register_schedule",
    "registered_schedules",
    "schedule_type",
]

Ramp = Literal["linear", "exponential"]
Between = Literal["cut", "mask"]

RAMPS: tuple[Ramp, ...] = ("linear", "exponential")


def _ramped(ramp: Ramp, share: float, dense: float, limit: float) -> float:
    """The limit at ``share`` of the way from ``dense`` to ``limit``: along a line, or a line of logarithms (HALP's and SMCP's)."""
    if share >= 1.0:
        return limit
    if ramp == "linear":
        return dense - (dense - limit) * share
    return math.exp(share * math.log(limit) + (1.0 - share) * math.log(dense))


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule(ABC):
    """How a method goes to its budget. Subclass it for a schedule of your own; :class:`Stages` serves most."""

    name: ClassVar[str]

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of stages; the last one cuts to the budget."""

    @abstractmethod
    def limit(self, *, stage: int, dense: float, limit: float) -> float:
        """Limit of ``stage`` (1-based) on the way from the ``dense`` value to ``limit``, in the resource's unit."""

    @property
    def after_stage(self) -> Between:
        """What happens after every stage but the last: the network is ``cut``, or trains on under a ``mask``."""
        return "cut"

    def measured(self, stage: int) -> bool:
        """Whether the networks of ``stage`` are measured; where they are not, the tables' prediction decides. The last stage always is."""
        return stage == self.count

    @property
    def batches(self) -> int | None:
        """Batches of training between two stages; None leaves it to the training recipe."""
        return None

    def options(self) -> dict[str, Any]:
        """The schedule as a JSON object."""
        return {"name": self.name, **asdict(self)}


SCHEDULES = ClassRegistry[Schedule](
    Schedule, "schedule", group="latprune.schedules", hint="add one with latprune.methods.register_schedule"
)
"""Schedules by name."""

S = TypeVar("S", bound=type[Schedule])


def register_schedule(cls: S) -> S:
    """Class decorator: make a schedule available by its ``name``, for any method.

    Another package names its schedule in the group of entry points ``latprune.schedules``.

    Raises:
        InvalidArgumentError: Another schedule has the name.
    """
    return SCHEDULES.add(cls)


def registered_schedules() -> tuple[str, ...]:
    """Names of all registered schedules."""
    return SCHEDULES.names()


def schedule_type(name: str) -> type[Schedule]:
    """The class of the schedule called ``name``.

    Raises:
        InvalidArgumentError: No such schedule.
    """
    return SCHEDULES.get(name)


def get_schedule(schedule: str | Schedule, **options: Any) -> Schedule:
    """The schedule called ``schedule`` with ``options``, or ``schedule`` itself if it is one.

    Raises:
        InvalidArgumentError: No such schedule, or an option that it does not have.

    Example:
        >>> get_schedule("stages", stages=5, ramp="exponential").count
        5
    """
    return SCHEDULES.make(schedule, options)


@register_schedule
@dataclass(frozen=True, slots=True, kw_only=True)
class SinglePass(Schedule):
    """Score, solve and cut once (MDP)."""

    name: ClassVar[str] = "single_pass"

    @property
    def count(self) -> int:
        """One stage."""
        return 1

    def limit(self, *, stage: int, dense: float, limit: float) -> float:
        """The budget itself."""
        return limit


@register_schedule
@dataclass(frozen=True, slots=True, kw_only=True)
class Stages(Schedule):
    """Several stages with limits on a ramp, training in between (SP-LAMP: 10, linear; HALP and MDP in steps: 30, exponential).

    Attributes:
        stages: Number of stages ``k``.
        ramp: ``linear``: stage ``s`` is limited to ``dense - (dense - limit) s / k``. ``exponential``: to
            ``exp(a ln limit + (1 - a) ln dense)`` with ``a = s / k``.
        between: What happens after every stage but the last. ``cut`` removes at once, which makes training cheaper; ``mask`` trains the
            dense network with what is chosen so far held at zero. Both give the same networks, because what is gone does not return.
        measure: ``each`` measures a network of every stage, ``last`` only those of the last one.
        interval: Batches of training between two stages; None leaves it to the training recipe.
    """

    name: ClassVar[str] = "stages"
    stages: int = 3
    ramp: Ramp = "linear"
    between: Between = "cut"
    measure: Literal["last", "each"] = "each"
    interval: int | None = None

    def __post_init__(self) -> None:
        check_whole("stages", self.stages, least=1)
        check_one_of("ramp", self.ramp, RAMPS)
        check_one_of("between", self.between, ("cut", "mask"))
        check_one_of("measure", self.measure, ("last", "each"))
        if self.interval is not None:
            check_whole("interval", self.interval, least=1, instead=", the batches between two stages, or None")

    @property
    def count(self) -> int:
        """Number of stages."""
        return self.stages

    def limit(self, *, stage: int, dense: float, limit: float) -> float:
        """On the ramp."""
        return _ramped(self.ramp, stage / self.stages, dense, limit)

    @property
    def after_stage(self) -> Between:
        """As asked."""
        return self.between

    def measured(self, stage: int) -> bool:
        """Each stage, or the last."""
        return self.measure == "each" or stage == self.stages

    @property
    def batches(self) -> int | None:
        """As asked."""
        return self.interval


@register_schedule
@dataclass(frozen=True, slots=True, kw_only=True)
class SoftMasks(Schedule):
    """Masks that are solved for again every few batches while the network trains; channels may come back (SMCP, MDP appendix E, SFP).

    Training has four phases: ``warmup`` without masks, a ramp of the limit, ``cooldown`` at the budget itself with masks that still move,
    but for ``held`` at its end, and, after the last batch, the cut of what trained under the last mask. Forward and backward see the masked
    network; gradients reach the masked weights straight through.

    Attributes:
        warmup: Share of the training without masks.
        cooldown: Share of the training at the budget.
        held: Share of the training, at the end of the cool-down, under the last mask: what is cut has then learnt to work without the rest.
        every: Batches between two solutions.
        ramp: Shape of the limit between warm-up and cool-down.
        straight_through: Whether masked weights go on learning; False holds them at zero (they come back with the values that they had).
        weight_decay: Decay of masked weights in place of the optimizer's own; None leaves them to the optimizer.
        norm_scaling: Whether the gradient of a layer whose inputs are masked and that a batch norm normalises is multiplied, per output
            channel, by ``||W * m|| / ||W||``: masks narrow the spread that the norm divides by, and gradients grow by the inverse. This
            project's own form of SMCP's scaling of batch norms.
    """

    name: ClassVar[str] = "soft_masks"
    warmup: float = 0.1
    cooldown: float = 0.3
    held: float = 0.1
    every: int = 10
    ramp: Ramp = "exponential"
    straight_through: bool = True
    weight_decay: float | None = None
    norm_scaling: bool = False

    def __post_init__(self) -> None:
        for name in ("warmup", "cooldown", "held"):
            check_share(name, getattr(self, name), of="the training")
        if self.warmup + self.cooldown > 1.0:
            raise InvalidArgumentError(
                f"warmup (={self.warmup}) and cooldown (={self.cooldown}) are shares of the training: together at most 1"
            )
        check_whole("every", self.every, least=1, instead=", the batches between two solutions")
        check_one_of("ramp", self.ramp, RAMPS)
        check_flag("straight_through", self.straight_through)
        check_mask_decay(self.weight_decay, straight_through=self.straight_through)
        check_flag("norm_scaling", self.norm_scaling)

    @property
    def count(self) -> int:
        """The cut at the end is the one stage."""
        return 1

    @property
    def after_stage(self) -> Between:
        """Masks, until the cut."""
        return "mask"

    def limit(self, *, stage: int, dense: float, limit: float) -> float:
        """The budget itself: limits on the way are :meth:`limit_at`'s."""
        return limit

    def limit_at(self, *, step: int, steps: int, dense: float, limit: float) -> float | None:
        """Limit at optimizer step ``step`` of ``steps``; None during the warm-up."""
        done = step / max(steps, 1)
        if done < self.warmup:
            return None
        if step >= self.last_solution(steps):
            return limit
        ramp = 1.0 - self.warmup - self.cooldown
        return _ramped(self.ramp, 1.0 if ramp <= 0 else min((done - self.warmup) / ramp, 1.0), dense, limit)

    def due(self, step: int, steps: int) -> bool:
        """Whether masks are solved for again before optimizer step ``step`` (0-based) of ``steps``."""
        return step % self.every == 0 and step <= self.last_solution(steps)

    def last_solution(self, steps: int) -> int:
        """The optimizer step of ``steps`` before which masks are solved for the last time; at least one is, after the warm-up.

        At step 0 there are no gradients to score by, so that it is not the last where another one follows.
        """
        moving = math.floor((1.0 - min(self.held, self.cooldown)) * max(steps - 1, 0)) // self.every
        first = max(math.ceil(self.warmup * steps / self.every), 1)
        last = self.every * max(moving, first)
        return last if last < steps else self.every * moving

    def masks_within(self, steps: int, *, gradients: bool = True) -> bool:
        """Whether masks are solved for at all in a training of ``steps`` optimizer steps; ``gradients``: whether scores are made of its
        gradients, of which there are none before the first step.
        """
        last = self.last_solution(steps)
        return last >= self.warmup * steps and (last > 0 or not gradients)
