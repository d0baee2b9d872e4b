"""A short distillation on the same unlabelled images: gradients, no labels; on its own or as a finisher after the refit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from latprune.argument_rules import check_flag, check_instance, check_number, check_one_of, check_whole
from latprune.progress import stretch
from latprune.recovery.augmentation import ImageVariants
from latprune.recovery.batches import alike, count, joined, reordered, run_on_few
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.likeness import Likeness
from latprune.recovery.norm_basis import norms_on_own_statistics
from latprune.recovery.refit import Refit
from latprune.recovery.report import LayerRecovery
from latprune.recovery.spread import restore_spread, vectors_of
from latprune.train.batches import forward
from latprune.train.optimizer import set_learning_rate, tensor_sizes

__all__ = ["Distil"]

_WARM_UP = 10
"""Steps in which the learning rate rises."""
_AWAY = 2.0
"""The rate is too high where it has made the error so many times as large: at its peak it may well be above where the refit left it."""
_SLOWER = 4.0
"""What the rate is divided by then."""


@register_strategy
@dataclass(frozen=True, kw_only=True)
class Distil(Recovery):
    """Adam on the dense network's outputs (and on the streams at the sums of residual branches), norms in evaluation mode.

    The loss is the squared error of each output and each stream relative to the dense one's variation. Where the inputs are images both
    networks see random variants of them. Weights are kept only if the outputs' error on held-out images, as they are, is lower than before.

    Attributes:
        first: Refit before it; False starts from the network as it is.
        epochs: Passes over the images.
        relative_rate: Peak of the learning rate (cosine to zero) as a share of the size of the weights, tensor by tensor: of the root
            mean square of their usual values. Adam moves a weight by about the learning rate in a step, whatever its size, and layers
            differ a hundredfold (depthwise and pointwise convolutions, a layer that refitting scaled). Where it takes the network away
            from the dense one, training begins again at a quarter of it, with the steps that are left.
        batch_size: Images of a step.
        features: Weight of all streams together, beside the outputs' 1.
        mirror: Whether images are mirrored at random.
        shift: Images are shifted at random by up to this share of their height and width.
        mix: Share of the steps in which each image is mixed with another one.
        precision: ``bf16`` runs each step in automatic mixed precision, ``fp32`` in what the networks are held in. Weights are kept,
            and held-out images judged, in full.
        memory: Bytes that a step may keep for its gradients; a step of more goes in several pieces, with the same sum.
        seconds: Wall time after which it ends early with what it has; the learning rate follows the time then, and the weights depend on
            the speed of the machine. None: no limit.
        refit: The refit that comes first.
    """

    name = "distil"
    checks_layers = True

    first: bool = True
    epochs: int = 8
    relative_rate: float = 0.03
    batch_size: int = 64
    features: float = 1.0
    mirror: bool = True
    shift: float = 0.125
    mix: float = 0.0
    precision: Literal["fp32", "bf16"] = "fp32"
    memory: float = 1e9
    seconds: float | None = None
    refit: Refit = Refit()

    def __post_init__(self) -> None:
        check_flag("first", self.first)
        check_whole("epochs", self.epochs, least=1)
        check_whole("batch_size", self.batch_size, least=1)
        check_number("relative_rate", self.relative_rate, "be a number above 0", 0.0, above=True)
        check_number("features", self.features, "be a number of at least 0", 0.0)
        check_one_of("precision", self.precision, ("fp32", "bf16"))
        check_number("memory", self.memory, "be a number of bytes, at least 1", 1.0)
        if self.seconds is not None:
            check_number("seconds", self.seconds, "be a number above 0, or None for no limit", 0.0, above=True)
        check_instance("refit", self.refit, Refit, "a latprune.recovery.Refit")
        self._variants()

    def _variants(self) -> ImageVariants:
        return ImageVariants(mirror=self.mirror, shift=self.shift, mix=self.mix)

    def settings(self) -> dict[str, Any]:
        """The options, for the record; without a precision that is the networks' own, as runs were saved before there was a choice."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("precision", "fp32")}

    @property
    def stand_in(self) -> Recovery:
        """What stands in for the refit that it begins with."""
        return self.refit.stand_in

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Refit, then train; the trained weights are taken only if they lower the error of the outputs on the held-out images."""
        start = vectors_of(situation)
        # The training goes by squared errors, of which the refit without its norms' spread leaves the least; the spread comes after it.
        layers = replace(self.refit, spread=False).run(situation) if self.first else []
        if any(layer.action for layer in layers):
            # A filter that was fitted behind a norm of next to no scale is huge, and what is trained there as sensitive.
            norms_on_own_statistics(situation.pruned, situation.fitted, within=situation.within)
        layers.append(self._distilled_where_possible(situation))
        spread = self.first and self.refit.spread and any(layer.action for layer in layers)
        norms = restore_spread(situation, start) if spread else None
        return layers if norms is None else [*layers, norms]

    def _distilled_where_possible(self, situation: Situation) -> LayerRecovery:
        parameters = [p for p in situation.pruned.get_submodule(situation.within).parameters() if p.is_floating_point()]
        with _trained(parameters):
            likeness = Likeness(situation, streams=self.features, piece=_piece(situation, self.memory), precision=self.precision)
            reason = _cannot(situation, likeness, parameters)
            if reason:
                situation.say(f"recovery: no distillation, {reason}")
                return LayerRecovery(layer="all layers", at="outputs", reason=reason)
            return self._distilled(situation, likeness, parameters)

    def _distilled(self, situation: Situation, likeness: Likeness, parameters: list[nn.Parameter]) -> LayerRecovery:
        before = [p.detach().clone() for p in parameters]
        watched = situation.held_out or situation.fitted
        start = likeness.error(watched)
        kept = False
        try:
            rate = self._train(situation, likeness, parameters, before, start)
            end = likeness.error(watched)
            kept = end < start
        finally:
            if not kept:
                _put(parameters, before)
        situation.say(f"recovery: distillation error {start:.4g} -> {end:.4g}{'' if kept else ', weights of before it stay'}")
        return LayerRecovery(
            layer="all layers",
            action="distil" if kept else "",
            at="outputs",
            held_out_before=start,
            held_out_after=end,
            reason="" if kept else f"the error on held-out images {'would grow' if end > start else 'is no lower after it'}",
            note=_note(self._variants(), situation.fitted) + (f"; at a relative rate of {rate:.3g}" if rate != self.relative_rate else ""),
        )

    def _train(self, situation: Situation, likeness: Likeness, parameters: list[nn.Parameter], before: list[Tensor], start: float) -> float:
        """Train in place, from the values ``before`` and the held-out error ``start``; the relative rate that it came down to."""
        watched = situation.held_out or situation.fitted
        generator = torch.Generator().manual_seed(situation.seed)
        data, variants = _Steps(situation, self.batch_size), self._variants()
        total, rate, begun = len(data) * self.epochs, self.relative_rate, time.perf_counter()
        optimizer, first, losses = _adam(parameters), 0, []
        steps = (inputs for _ in range(self.epochs) for inputs in data.of_epoch(generator))
        with stretch("distilling", total=total, unit="steps") as work:
            for step, inputs in enumerate(steps):
                through = (step - first) / (total - first)
                if self.seconds is not None:
                    through = max(through, (time.perf_counter() - begun) / self.seconds)
                if through >= 1:
                    situation.say(f"recovery: distillation ends after {step} of {total} steps, at its time limit")
                    break
                now = rate * min(1.0, (step - first + 1) / _WARM_UP) * 0.5 * (1 + math.cos(math.pi * through))
                set_learning_rate(optimizer, now)
                optimizer.zero_grad()
                losses.append(_gradients(likeness, variants(inputs, generator)))
                optimizer.step()
                work.reached(step + 1, loss=losses[-1])
                if (step + 1) % len(data) == 0:
                    mean = sum(losses[-len(data) :]) / len(data)
                    situation.say(f"recovery: distillation epoch {(step + 1) // len(data)} of {self.epochs}, loss {mean:.4g}")
                if step + 1 == first + _probe(total - first) and not (error := likeness.error(watched)) <= _AWAY * start:
                    situation.say(
                        f"recovery: a relative rate of {rate:.3g} takes the network away (error {start:.4g} -> {error:.4g}): begun again "
                        f"at {rate / _SLOWER:.3g}, {total - step - 1} steps are left"
                    )
                    _put(parameters, before)
                    optimizer, first, rate = _adam(parameters), step + 1, rate / _SLOWER
        return rate


def _probe(steps: int) -> int:
    """After how many of so many steps it is seen whether the rate is too high; 0, which is never, where they are too few."""
    return -(-steps // 4) if steps >= 2 * _WARM_UP else 0


@torch.no_grad()
def _put(parameters: list[nn.Parameter], values: list[Tensor]) -> None:
    for p, value in zip(parameters, values, strict=True):
        p.copy_(value)


@contextmanager
def _trained(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Gradients reach the parameters, frozen ones too; afterwards all flags are as they were."""
    flags = [p.requires_grad for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True)
        yield
    finally:
        for p, flag in zip(parameters, flags, strict=True):
            p.requires_grad_(flag)
            p.grad = None


class _Steps:
    """The batches of each epoch: images in a new order where all inputs have one form, else the batches in a new order."""

    def __init__(self, situation: Situation, size: int) -> None:
        batches = situation.fitted
        self._mixed = _few(situation) is not batches[0] and alike(batches)
        self._batches = [joined(batches)] if self._mixed and len(batches) > 1 else batches
        self._size = size

    def __len__(self) -> int:
        return -(-count(self._batches[0]) // self._size) if self._mixed else len(self._batches)

    def of_epoch(self, generator: torch.Generator) -> Iterator[Any]:
        if self._mixed:
            order = torch.randperm(count(self._batches[0]), generator=generator)
            for at in torch.split(order, self._size):
                yield reordered(self._batches[0], at)
            return
        for k in torch.randperm(len(self._batches), generator=generator).tolist():
            yield self._batches[k]


def _adam(parameters: list[nn.Parameter]) -> torch.optim.Adam:
    """Adam whose rate is relative to the sizes that the parameters have now."""
    return torch.optim.Adam([{"params": [p], "size": size} for p, size in zip(parameters, tensor_sizes(parameters), strict=True)])


def _cannot(situation: Situation, likeness: Likeness, parameters: list[nn.Parameter]) -> str:
    """Why there is nothing to train."""
    if not any(p.numel() for p in parameters):
        return "there are no weights to train"
    if not likeness.compared:
        return "no output varies that has the dense network's shape"
    with torch.enable_grad():
        return "" if likeness.loss(_few(situation)).requires_grad else "no gradient leads from the outputs to the weights"


def _few(situation: Situation) -> Any:
    """A few images of the first batch; the batch where it cannot be divided, or the network takes no other size."""
    return run_on_few(situation.pruned, situation.fitted[0])[0]


def _piece(situation: Situation, memory: float) -> int | None:
    """Images whose gradients fit into ``memory`` bytes; None where batches cannot be divided."""
    inputs = _few(situation)
    if inputs is situation.fitted[0]:
        return None
    stored = {p.untyped_storage().data_ptr() for p in situation.pruned.parameters()}
    sizes: dict[int, int] = {}
    kept: list[Tensor] = []  # so that no address is used twice

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in stored:
            sizes[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        forward(situation.pruned, inputs)
    return max(1, int(memory * count(inputs) / max(sum(sizes.values()), 1)))


def _gradients(likeness: Likeness, inputs: Any) -> float:
    """Gradients of the mean loss over a batch; the loss."""
    total = 0.0
    for part in likeness.parts(inputs):
        with torch.enable_grad():
            loss = likeness.loss(part) * (count(part) / count(inputs))
            if loss.requires_grad:  # a piece may have nothing to compare
                loss.backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach())
    return total


def _note(variants: ImageVariants, batches: list[Any]) -> str:
    return f"images {variants}" if variants.apply_to(batches[0]) else "inputs as they are: they are no batches of images"
