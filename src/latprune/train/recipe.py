"""Recipes: everything that decides a fine-tuning run apart from the model and the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from latprune.errors import InvalidArgumentError

__all__ = ["SGD", "AdamW", "Constant", "Cosine", "Distillation", "Linear", "Optimizer", "Recipe", "Schedule", "Steps"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.momentum < 1.0:
            raise InvalidArgumentError(f"momentum (={self.momentum}) must lie in [0, 1)")
        if self.nesterov and self.momentum == 0.0:
            raise InvalidArgumentError("nesterov (=True) needs a momentum above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101)."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0.0 <= value < 1.0:
                raise InvalidArgumentError(f"{name} (={value}) must lie in [0, 1)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The learning rate stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Half a cosine from the learning rate down to ``final`` times it, updated every step."""

    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.final <= 1.0:
            raise InvalidArgumentError(f"final (={self.final}) must lie in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A straight line from the learning rate down to ``final`` times it, updated every step."""

    final: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.final <= 1.0:
            raise InvalidArgumentError(f"final (={self.final}) must lie in [0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The learning rate is multiplied by ``gamma`` at the start of each epoch in ``milestones`` (counted from 0)."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise InvalidArgumentError(f"milestones (={self.milestones}) must increase and begin at 1 or later")
        if not 0.0 < self.gamma <= 1.0:
            raise InvalidArgumentError(f"gamma (={self.gamma}) must lie in (0, 1]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """Learning from the dense network: from its outputs with any loss, and from its features.

    Classifiers need no more than the defaults (arXiv:1503.02531):
    ``(1 - weight) * cross_entropy + weight * T^2 * KL(teacher / T || student / T)`` with ``T = temperature``. With a ``loss`` it is
    ``(1 - weight) * own + weight * loss(student, teacher)``, where ``own`` is the cross-entropy or the ``loss(model, batch)`` that training
    was given. Features add ``feature_weight`` times their mean squared error, each relative to the dense one's variation over the batch.

    Attributes:
        temperature: Of the softmax, where no ``loss`` is given.
        weight: Share of the teacher, up to 1. At 1 with a ``loss``, batches need no labels. 0 learns from features alone.
        loss: ``loss(student output, teacher output) -> scalar`` on outputs of any structure; the two networks get the same inputs, the
            teacher in evaluation mode. ``"matching"`` is :func:`latprune.train.matching_loss`.
        features: Modules (paths, as in ``named_modules()``) whose results are matched with the dense network's kept channels;
            ``"streams"`` for those that return the sum of a residual branch, which ``prune`` finds
            (:func:`latprune.recovery.stream_modules` for a training of your own).
        feature_weight: Weight of all features together, beside the rest.
    """

    temperature: float = 4.0
    weight: float = 0.5
    loss: Callable[[Any, Any], Any] | Literal["matching"] | None = None
    features: tuple[str, ...] | Literal["streams"] = ()
    feature_weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0.0:
            raise InvalidArgumentError(f"temperature (={self.temperature}) must be positive")
        if not 0.0 <= self.weight <= 1.0 or (self.weight == 0.0 and not self.features):
            raise InvalidArgumentError(f"weight (={self.weight}) must lie in (0, 1]; 0 goes with features alone")
        if self.loss is not None and self.loss != "matching" and not callable(self.loss):
            raise InvalidArgumentError(f"loss (={self.loss!r}) must be a function of the two networks' outputs, or 'matching'")
        features: Any = self.features
        if features != "streams" and (isinstance(features, str) or not all(isinstance(name, str) for name in features)):
            raise InvalidArgumentError(f"features (={features!r}) must be a tuple of module paths, or 'streams'")
        if not (math.isfinite(self.feature_weight) and self.feature_weight > 0.0):
            raise InvalidArgumentError(f"feature_weight (={self.feature_weight}) must be a positive number")
        object.__setattr__(self, "features", features if features == "streams" else tuple(features))

    def at(self, features: Iterable[str]) -> Distillation:
        """The same with its features at these modules; without features where there are none and the outputs teach alone."""
        return replace(self, features=tuple(features))

    @property
    def of_classes(self) -> bool:
        """Whether class scores are distilled, with the labels' cross-entropy."""
        return self.loss is None and self.weight > 0.0

    @property
    def needs_labels(self) -> bool:
        """Whether the network's own loss has a share, so that batches must have labels."""
        return self.weight < 1.0 or self.loss is None

    def to_dict(self) -> dict[str, Any]:
        """As a JSON object; a loss is its name, which cannot be read back."""
        data: dict[str, Any] = {"temperature": self.temperature, "weight": self.weight}
        if self.loss is not None:
            data["loss"] = self.loss if isinstance(self.loss, str) else _name_of(self.loss)
        if self.features:
            listed = self.features if isinstance(self.features, str) else list(self.features)
            data |= {"features": listed, "feature_weight": self.feature_weight}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Distillation:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InvalidArgumentError: It had a loss of its own, or a value breaks its rule.
        """
        if data.get("loss") not in (None, "matching"):
            raise InvalidArgumentError(f"the distillation's loss (={data['loss']!r}) is a function, which no file holds; give it anew")
        features = data.get("features", ())
        return cls(**{**data, "features": features if isinstance(features, str) else tuple(features)})


def _name_of(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


Optimizer = SGD | AdamW
Schedule = Constant | Cosine | Linear | Steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to train.

    Attributes:
        epochs: Passes over the data.
        learning_rate: Peak learning rate.
        optimizer: ``SGD(...)`` or ``AdamW(...)``.
        schedule: ``Constant()``, ``Cosine()``, ``Linear()`` or ``Steps(...)``; begins after the warm-up.
        warmup_epochs: Epochs (fractions allowed) in which the learning rate rises in a straight line to its peak.
        weight_decay: Weight decay.
        decay_norm_and_bias: Whether vectors (norm scales and shifts, biases) decay too.
        label_smoothing: Share of the target spread over all classes.
        mixup: Strength of mixup (arXiv:1710.09412), the ``alpha`` of its Beta distribution: each example is blended with another one of its
            batch, and so is the loss. 0 mixes nothing.
        cutmix: Strength of CutMix (arXiv:1905.04899): a box of each image is taken from another one, and the loss is blended by area. With
            both, each batch gets one of the two, at equal chance.
        ema: Decay of a running average of the weights, such as 0.999; the average is evaluated and delivered. None keeps none. Its decay
            begins small, ``min(ema, (1 + updates) / (10 + updates))``, so that short runs are not held at their start.
        accumulate: Batches whose gradients are averaged for one step of the optimizer.
        precision: ``fp32``; ``bf16`` or ``fp16`` for automatic mixed precision, the latter with scaled losses.
        compile: Train through :func:`torch.compile`; the model itself stays as it is.
        channels_last: Train with the weights of 2-d convolutions laid out channels last, which many processors run faster.
        distillation: Learn from the dense network as well; None does not.
        fixed_norms: Whether batch norms keep their running statistics and train with them, as they are in evaluation mode. Steps must be
            smaller then: nothing brings a layer's result back to its scale.
        after_recovery: Factor on the learning rate where the network was recovered without training before (``prune``'s ``recover``);
            ``"error"`` takes the share of the outputs' error that recovery left, at least a tenth (:meth:`after_recovering`).
        max_gradient_norm: Clip the norm of all gradients together; None does not.
        batch_size: Batch size that the recipe was made for; for whoever builds the data loader.
        seed: Seed of dropout and everything else random in the model; the data's order has its own.
        notes: What the recipe's source leaves open and what was chosen here.
    """

    epochs: int
    learning_rate: float
    optimizer: Optimizer = field(default_factory=SGD)
    schedule: Schedule = field(default_factory=Cosine)
    warmup_epochs: float = 0.0
    weight_decay: float = 0.0
    decay_norm_and_bias: bool = True
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    ema: float | None = None
    accumulate: int = 1
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = False
    channels_last: bool = False
    distillation: Distillation | None = None
    fixed_norms: bool = False
    after_recovery: float | Literal["error"] = 1.0
    max_gradient_norm: float | None = None
    batch_size: int | None = None
    seed: int = 0
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise InvalidArgumentError(f"epochs (={self.epochs}) must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise InvalidArgumentError(f"learning_rate (={self.learning_rate}) must be a positive number")
        if not 0.0 <= self.warmup_epochs < self.epochs:
            raise InvalidArgumentError(f"warmup_epochs (={self.warmup_epochs}) must lie in [0, epochs) with epochs (={self.epochs})")
        if not self.weight_decay >= 0.0:
            raise InvalidArgumentError(f"weight_decay (={self.weight_decay}) must be at least 0")
        if not 0.0 <= self.label_smoothing < 1.0:
            raise InvalidArgumentError(f"label_smoothing (={self.label_smoothing}) must lie in [0, 1)")
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if not (math.isfinite(value) and value >= 0.0):
                raise InvalidArgumentError(f"{name} (={value}) must be a number of at least 0")
        if self.ema is not None and not 0.0 < self.ema < 1.0:
            raise InvalidArgumentError(f"ema (={self.ema}) must lie between 0 and 1, or be None")
        if self.accumulate < 1:
            raise InvalidArgumentError(f"accumulate (={self.accumulate}) must be at least 1")
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise InvalidArgumentError(f"precision (={self.precision!r}) must be fp32, bf16 or fp16")
        factor = self.after_recovery
        if factor != "error" and not (isinstance(factor, (int, float)) and math.isfinite(factor) and factor > 0.0):
            raise InvalidArgumentError(f"after_recovery (={factor!r}) must be a positive number, or 'error'")
        if self.max_gradient_norm is not None and not self.max_gradient_norm > 0.0:
            raise InvalidArgumentError(f"max_gradient_norm (={self.max_gradient_norm}) must be positive, or None")
        if self.batch_size is not None and self.batch_size < 1:
            raise InvalidArgumentError(f"batch_size (={self.batch_size}) must be at least 1, or None")

    def check_under_masks(self) -> None:
        """Refuse what does not go with masks that the network trains under.

        Raises:
            InvalidArgumentError: The recipe keeps a running average, or trains in fp16.
        """
        for name, given, instead in (
            ("ema", self.ema is not None, "average in the fine-tuning after the last stage"),
            ("precision", self.precision == "fp16", "use bf16: a step that fp16 skips would still be scored"),
        ):
            if given:
                value = getattr(self, name)
                raise InvalidArgumentError(f"recipe.{name} (={value!r}) does not go with masks that the network trains under; {instead}")

    def with_epochs(self, epochs: int) -> Recipe:
        """The same recipe squeezed or stretched to ``epochs``: warm-up and milestones keep their share of the run."""
        share = epochs / self.epochs
        schedule = self.schedule
        if isinstance(schedule, Steps):
            moved = sorted({max(1, round(milestone * share)) for milestone in schedule.milestones})
            schedule = replace(schedule, milestones=tuple(moved))
        return replace(self, epochs=epochs, warmup_epochs=self.warmup_epochs * share, schedule=schedule)

    def after_recovering(self, error_left: float | None) -> Recipe:
        """The same recipe for a network that recovery has brought nearer to the dense one: its learning rate times ``after_recovery``.

        With ``"error"`` the factor is ``error_left``, at least 0.1 and at most 1: steps as much smaller as the way that is left.

        Args:
            error_left: Root of the outputs' squared error after recovery over that before it
                (``RecoveryReport.error_left``); None where it is not known, which counts as 0.25.

        Example:
            >>> Recipe(epochs=1, learning_rate=0.02, after_recovery="error").after_recovering(0.25).learning_rate
            0.005
        """
        factor = self.after_recovery
        share = min(1.0, max(0.1, 0.25 if error_left is None else error_left)) if factor == "error" else factor
        return replace(self, learning_rate=self.learning_rate * share)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as a JSON object; optimizer and schedule carry their ``type``."""
        data = asdict(replace(self, distillation=None))
        data["optimizer"] = {"type": type(self.optimizer).__name__, **data["optimizer"]}
        data["schedule"] = {"type": type(self.schedule).__name__, **data["schedule"]}
        data["distillation"] = self.distillation.to_dict() if self.distillation is not None else None
        for name, plain in (("after_recovery", 1.0), ("fixed_norms", False)):
            if data[name] == plain:
                del data[name]  # as files of earlier releases have it
        data["notes"] = list(self.notes)
        if "milestones" in data["schedule"]:
            data["schedule"]["milestones"] = list(data["schedule"]["milestones"])
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_dict` wrote.

        Raises:
            InvalidArgumentError: A key or type is unknown, or a value breaks its rule.
        """
        values = dict(data)
        try:
            values["optimizer"] = _typed(values.get("optimizer", {"type": "SGD"}), {"SGD": SGD, "AdamW": AdamW}, "optimizer")
            kinds = {"Constant": Constant, "Cosine": Cosine, "Linear": Linear, "Steps": Steps}
            values["schedule"] = _typed(values.get("schedule", {"type": "Cosine"}), kinds, "schedule")
            if values.get("distillation") is not None:
                values["distillation"] = Distillation.from_dict(values["distillation"])
            values["notes"] = tuple(values.get("notes", ()))
            return cls(**values)
        except TypeError as error:
            raise InvalidArgumentError(f"recipe: {error}") from error


def _typed(data: Mapping[str, Any], kinds: Mapping[str, type], argument: str) -> Any:
    values = dict(data)
    kind = values.pop("type", None)
    if kind not in kinds:
        raise InvalidArgumentError(f"{argument} type (={kind!r}) must be one of {', '.join(kinds)}")
    if "milestones" in values:
        values["milestones"] = tuple(values["milestones"])
    return kinds[kind](**values)
