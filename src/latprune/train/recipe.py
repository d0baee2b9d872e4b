"""Recipes: everything that decides a fine-tuning run apart from the model and the data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal

from latprune.argument_rules import check_flag, check_number, check_object, check_whole
from latprune.errors import InvalidArgumentError

__all__ = ["SGD", "AdamW", "Constant", "Cosine", "Distillation", "Linear", "Optimizer", "Recipe", "Schedule", "Steps"]

_ABOVE_ONE = math.nextafter(1.0, 2.0)
_SCHEDULES = "Constant(), Cosine(...), Linear(...) or Steps(...)"


@dataclass(frozen=True, slots=True, kw_only=True)
class SGD:
    """Stochastic gradient descent with momentum."""

    momentum: float = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_number("momentum", self.momentum, "be a number in [0, 1)", 0.0, 1.0)
        check_flag("nesterov", self.nesterov)
        if self.nesterov and self.momentum == 0.0:
            raise InvalidArgumentError("nesterov (=True) needs a momentum above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (arXiv:1711.05101).

    Attributes:
        beta1: Decay of the mean of gradients.
        beta2: Decay of the mean of their squares.
        epsilon: Added to the root of the latter.
        relative: The learning rate is a share of each tensor's size: of the root mean square of its usual values when training begins.
            Adam moves a value by about the learning rate in a step, whatever its size, and those of a trained network differ a
            hundredfold between layers, and between weights and the scales of norms.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    relative: bool = False

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            check_number(name, value, "be a number in [0, 1)", 0.0, 1.0)
        check_number("epsilon", self.epsilon, "be a number of at least 0", 0.0)
        check_flag("relative", self.relative)


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """The learning rate stays."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """Half a cosine from the learning rate down to ``final`` times it, updated every step."""

    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("final", self.final, "be a number in [0, 1]", 0.0, _ABOVE_ONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A straight line from the learning rate down to ``final`` times it, updated every step."""

    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("final", self.final, "be a number in [0, 1]", 0.0, _ABOVE_ONE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """The learning rate is multiplied by ``gamma`` at the start of each epoch in ``milestones`` (counted from 0)."""

    milestones: tuple[int, ...]
    gamma: float = 0.1

    def __post_init__(self) -> None:
        if not isinstance(self.milestones, (tuple, list)):
            raise InvalidArgumentError(f"milestones (={self.milestones!r}) must be a tuple of whole numbers")
        for milestone in self.milestones:
            check_whole("milestones", milestone, instead=", each of them")
        if list(self.milestones) != sorted(set(self.milestones)) or min(self.milestones, default=1) < 1:
            raise InvalidArgumentError(f"milestones (={self.milestones}) must increase and begin at 1 or later")
        check_number("gamma", self.gamma, "be a number in (0, 1]", 0.0, _ABOVE_ONE, above=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """Learning from the dense network: from its outputs with any loss, and from its features.

    Classifiers need no more than the defaults (arXiv:1503.02531):
    ``(1 - weight) * cross_entropy + weight * T^2 * KL(teacher / T || student / T)`` with ``T = temperature``. With a ``loss`` it is
    ``(1 - weight) * own + weight * loss(student, teacher)``, where ``own`` is the cross-entropy or the ``loss(model, batch)`` that training
    was given. Features add ``feature_weight`` times their mean squared error, each relative to the dense one's variance over examples.

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
        check_number("temperature", self.temperature, "be a positive number", 0.0, above=True)
        alone = "be a number in (0, 1]; 0 goes with features alone"
        check_number("weight", self.weight, alone, 0.0, _ABOVE_ONE, above=not self.features)
        if self.loss is not None and self.loss != "matching" and not callable(self.loss):
            raise InvalidArgumentError(f"loss (={self.loss!r}) must be a function of the two networks' outputs, or 'matching'")
        features: Any = self.features
        if features != "streams" and not (isinstance(features, (tuple, list)) and all(isinstance(name, str) for name in features)):
            raise InvalidArgumentError(f"features (={features!r}) must be a tuple of module paths, or 'streams'")
        check_number("feature_weight", self.feature_weight, "be a positive number", 0.0, above=True)
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
        values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in data.items()}
        return cls(**values)


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
        check_whole("epochs", self.epochs, least=1)
        check_number("learning_rate", self.learning_rate, "be a positive number", 0.0, above=True)
        for name, kinds, listed in (("optimizer", Optimizer, "SGD(...) or AdamW(...)"), ("schedule", Schedule, _SCHEDULES)):
            if not isinstance(getattr(self, name), kinds):
                raise InvalidArgumentError(f"{name} (={getattr(self, name)!r}) must be {listed}")
        bound = f"be a number in [0, epochs) with epochs (={self.epochs})"
        check_number("warmup_epochs", self.warmup_epochs, bound, 0.0, float(self.epochs))
        for name in ("weight_decay", "mixup", "cutmix"):
            check_number(name, getattr(self, name), "be a number of at least 0", 0.0)
        check_number("label_smoothing", self.label_smoothing, "be a number in [0, 1)", 0.0, 1.0)
        if self.ema is not None:
            check_number("ema", self.ema, "be a number between 0 and 1, or None", 0.0, 1.0, above=True)
        check_whole("accumulate", self.accumulate, least=1)
        if self.precision not in ("fp32", "bf16", "fp16"):
            raise InvalidArgumentError(f"precision (={self.precision!r}) must be fp32, bf16 or fp16")
        for name in ("decay_norm_and_bias", "compile", "channels_last", "fixed_norms"):
            check_flag(name, getattr(self, name))
        if self.distillation is not None and not isinstance(self.distillation, Distillation):
            raise InvalidArgumentError(f"distillation (={self.distillation!r}) must be Distillation(...), or None")
        self._check_together()
        if self.after_recovery != "error":
            check_number("after_recovery", self.after_recovery, "be a positive number, or 'error'", 0.0, above=True)
        if self.max_gradient_norm is not None:
            check_number("max_gradient_norm", self.max_gradient_norm, "be a positive number, or None", 0.0, above=True)
        if self.batch_size is not None:
            check_whole("batch_size", self.batch_size, least=1, instead=", or None")
        check_whole("seed", self.seed, least=0)
        if not isinstance(self.notes, tuple) or not all(isinstance(note, str) for note in self.notes):
            raise InvalidArgumentError(f"notes (={self.notes!r}) must be a tuple of texts")

    def _check_together(self) -> None:
        """What does not go with the distillation."""
        chosen = self.distillation
        if chosen is None:
            return
        if self.compile and (chosen.loss is not None or chosen.features):
            raise InvalidArgumentError(
                "recipe.compile (=True) does not go with a distillation that has a loss of its own or features: they watch the network's "
                "modules, which compiling takes apart; set compile=False"
            )
        if not chosen.needs_labels:
            self._refuse_mixing("a distillation that reads no labels")

    def _refuse_mixing(self, beside: str) -> None:
        """Refuse what changes labels, or the inputs with them, beside a loss that does not go through the labels here."""
        for name in ("mixup", "cutmix", "label_smoothing"):
            if value := getattr(self, name):
                raise InvalidArgumentError(f"recipe.{name} (={value!r}) does nothing beside {beside}; set it to 0")

    def updates(self, batches: int) -> int:
        """Optimizer steps over so many batches of one epoch: what is left at its end is a step too."""
        return -(-batches // self.accumulate)

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

    def check_own_loss(self, loss: Callable[..., Any] | None) -> None:
        """Refuse what does not go with a loss of the caller's own; None is the classification loss.

        Raises:
            InvalidArgumentError: A distillation compares class scores, or labels would be mixed or smoothed, which is up to the loss.
        """
        if loss is not None:
            self._refuse_mixing("a loss of your own, which reads the labels itself")
        if self.distillation is not None and self.distillation.of_classes and loss is not None:
            raise InvalidArgumentError(
                "recipe.distillation without a loss compares class scores, which cannot go with a loss of your own for training; give "
                "Distillation(loss=...) on the outputs of both networks, such as latprune.train.matching_loss"
            )

    def check_types(self, parameters: Iterable[Any]) -> None:
        """Refuse scaled losses for parameters that are held in half precision.

        Raises:
            InvalidArgumentError: ``precision`` is fp16, and a parameter to train is float16.
        """
        if self.precision == "fp16" and any(p.requires_grad and str(p.dtype) == "torch.float16" for p in parameters):
            raise InvalidArgumentError(
                "recipe.precision (='fp16') scales losses for weights that are held in float32, and the model's are float16: bring it to "
                "float32 first (model.float())"
            )

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
        for held, name, plain in ((data, "after_recovery", 1.0), (data, "fixed_norms", False), (data["optimizer"], "relative", False)):
            if held.get(name) == plain:
                del held[name]  # as files of earlier releases have it
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
        values = dict(check_object("recipe", data))
        unknown = [name for name in values if name not in {known.name for known in fields(cls)}]
        if unknown:
            raise InvalidArgumentError(f"recipe has no {unknown[0]!r}; it has {', '.join(known.name for known in fields(cls))}")
        try:
            values["optimizer"] = _typed(values.get("optimizer", {"type": "SGD"}), {"SGD": SGD, "AdamW": AdamW}, "optimizer")
            kinds = {"Constant": Constant, "Cosine": Cosine, "Linear": Linear, "Steps": Steps}
            values["schedule"] = _typed(values.get("schedule", {"type": "Cosine"}), kinds, "schedule")
            if values.get("distillation") is not None:
                values["distillation"] = Distillation.from_dict(check_object("distillation", values["distillation"]))
            if isinstance(values.get("notes"), list):
                values["notes"] = tuple(values["notes"])
            return cls(**values)
        except TypeError as error:
            raise InvalidArgumentError(f"recipe: {error}") from error


def _typed(data: Mapping[str, Any], kinds: Mapping[str, type], argument: str) -> Any:
    values = dict(check_object(argument, data))
    kind = values.pop("type", None)
    if kind not in kinds:
        raise InvalidArgumentError(f"{argument} type (={kind!r}) must be one of {', '.join(kinds)}")
    if isinstance(values.get("milestones"), list):
        values["milestones"] = tuple(values["milestones"])
    try:
        return kinds[kind](**values)
    except TypeError as error:
        raise InvalidArgumentError(f"{argument}: {error}") from error
