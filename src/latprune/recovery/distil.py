"""A short distillation on the same unlabelled images: gradients, no labels; on its own or as a finisher after the refit."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.progress import stretch
from latprune.recovery.batches import count, tensors_of
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.pairing import Pairing
from latprune.recovery.recover import outputs_of
from latprune.recovery.refit import Refit
from latprune.recovery.report import LayerRecovery
from latprune.recovery.stepper import record_operations
from latprune.train.batches import forward

__all__ = ["Distil"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Feature:
    """A module whose result both networks have: which of the dense one's places are kept."""

    path: str
    dense_index: int


@register_strategy
@dataclass(frozen=True, kw_only=True)
class Distil(Recovery):
    """Adam on the dense network's outputs (and on the streams at the sums of residual branches), norms in evaluation mode.

    The loss is the squared error of each output and each stream relative to the dense one's variation. Where the inputs are images they are
    mirrored at random; the dense network sees the same mirrored images, so nothing is assumed about the task.

    Attributes:
        first: Refit before it; False starts from the network as it is.
        epochs: Passes over the images.
        learning_rate: Peak of the learning rate (cosine to zero).
        batch_size: Images of a step.
        features: Weight of all streams together, beside the outputs' 1.
        mirror: Whether images are mirrored.
        seconds: Wall time after which it ends early with what it has; the learning rate follows the time then. None: no limit.
        refit: The refit that comes first.
    """

    name = "distil"

    first: bool = True
    epochs: int = 5
    learning_rate: float = 1e-3
    batch_size: int = 64
    features: float = 1.0
    mirror: bool = True
    seconds: float | None = None
    refit: Refit = Refit()

    def __post_init__(self) -> None:
        for option, low in (("epochs", 1), ("learning_rate", 0.0), ("batch_size", 1), ("features", 0.0)):
            if not getattr(self, option) >= low:
                raise InvalidArgumentError(f"{option} (={getattr(self, option)}) must be at least {low}")

    def settings(self) -> dict[str, Any]:
        """The options, for the record."""
        return asdict(self)

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Refit, then train; the trained weights are taken only if they lower the error of the outputs on the held-out images."""
        layers = self.refit.run(situation) if self.first else []
        before = {name: value.detach().clone() for name, value in situation.pruned.named_parameters()}
        watched = situation.held_out or situation.fitted
        features = _features(situation)
        start = self._error(situation, features, watched)
        kept = False
        try:
            self._train(situation, features)
            end = self._error(situation, features, watched)
            kept = end < start
        finally:
            if not kept:
                with torch.no_grad():
                    for name, value in situation.pruned.named_parameters():
                        value.copy_(before[name])
        situation.say(f"recovery: distillation error {start:.4g} -> {end:.4g}{'' if kept else ', weights of before it stay'}")
        entry = LayerRecovery(
            layer="all layers",
            action="distil" if kept else "",
            at="outputs",
            held_out_before=start,
            held_out_after=end,
            reason="" if kept else "the error on held-out images would grow",
        )
        return [*layers, entry]

    @torch.no_grad()
    def _error(self, situation: Situation, features: list[_Feature], batches: list[Any]) -> float:
        total = 0.0
        pairing = _pairing(situation)
        for inputs in batches:
            total += float(self._loss(situation, pairing, features, inputs))
        return total / max(len(batches), 1)

    def _loss(self, situation: Situation, pairing: Pairing, features: list[_Feature], inputs: Any) -> Tensor:
        with torch.no_grad(), _watching(situation.dense, features) as theirs:
            wanted = outputs_of(forward(situation.dense, inputs))
        with _watching(situation.pruned, features) as mine:
            given = outputs_of(forward(situation.pruned, inputs))
        loss = sum((_relative(a, b) for a, b in zip(given, wanted, strict=True) if a.shape == b.shape), torch.zeros(()))
        if features and self.features:
            parts = []
            for f in features:
                target = pairing.target(f.dense_index, theirs[f.path], tuple(mine[f.path].shape))
                parts.append(_relative(mine[f.path], target))
            loss = loss + self.features * torch.stack(parts).mean()
        return loss

    def _train(self, situation: Situation, features: list[_Feature]) -> None:
        parameters = [p for p in situation.pruned.parameters() if p.is_floating_point()]
        flags = [p.requires_grad for p in parameters]
        pairing = _pairing(situation)
        optimizer = torch.optim.Adam(parameters, lr=self.learning_rate)
        generator = torch.Generator().manual_seed(situation.seed)
        steps_per_epoch = sum(-(-count(b) // self.batch_size) for b in situation.fitted)
        total, step, begun = steps_per_epoch * self.epochs, 0, time.perf_counter()
        for p in parameters:
            p.requires_grad_(True)
        try:
            with stretch("distilling", total=total, unit="steps") as work:
                for epoch in range(self.epochs):
                    last = 0.0
                    for inputs in _shuffled(situation.fitted, self.batch_size, generator):
                        through = step / total
                        if self.seconds is not None:
                            through = max(through, (time.perf_counter() - begun) / self.seconds)
                        if through >= 1:
                            return
                        for group in optimizer.param_groups:
                            group["lr"] = self.learning_rate * min(1.0, (step + 1) / 10) * 0.5 * (1 + math.cos(math.pi * through))
                        with torch.enable_grad():
                            loss = self._loss(situation, pairing, features, _mirrored(inputs, generator) if self.mirror else inputs)
                            optimizer.zero_grad()
                            loss.backward()  # type: ignore[no-untyped-call]
                        optimizer.step()
                        last = float(loss.detach())
                        step += 1
                        work.reached(step, loss=last)
                    situation.say(f"recovery: distillation epoch {epoch + 1} of {self.epochs}, loss {last:.4g}")
        finally:
            for p, flag in zip(parameters, flags, strict=True):
                p.requires_grad_(flag)
                p.grad = None


def _relative(given: Tensor, wanted: Tensor) -> Tensor:
    return (given - wanted).square().mean() / (wanted - wanted.mean(0)).square().mean().clamp_min(1e-12)


def _shuffled(batches: list[Any], size: int, generator: torch.Generator) -> Iterator[Any]:
    """Batches in a new order; where all are single tensors, images in a new order."""
    if all(isinstance(b, Tensor) for b in batches):
        images = torch.cat(batches)
        order = torch.randperm(images.shape[0], generator=generator).to(images.device)
        for at in torch.split(order, size):
            yield images[at]
        return
    for k in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[k]


def _mirrored(inputs: Any, generator: torch.Generator) -> Any:
    """A single batch of images, each mirrored with probability one half; other inputs as they are."""
    if not isinstance(inputs, Tensor) or inputs.dim() != 4 or not inputs.is_floating_point():
        return inputs
    turned = (torch.rand(inputs.shape[0], generator=generator) < 0.5).to(inputs.device)
    return torch.where(turned[:, None, None, None], inputs.flip(3), inputs)


def _pairing(situation: Situation) -> Pairing:
    example = (situation.fitted or situation.held_out)[0]
    dense = record_operations(situation.dense, example, situation.within)
    pruned = record_operations(situation.pruned, example, situation.within)
    return Pairing(situation.graph, situation.selection, dense, pruned, situation.dense, situation.pruned)


def _features(situation: Situation) -> list[_Feature]:
    """Modules that return the stream right after a block's sum (and what follows it), in both networks."""
    example = (situation.fitted or situation.held_out)[0]
    dense = record_operations(situation.dense, example, situation.within)
    pruned = record_operations(situation.pruned, example, situation.within)
    pairing = Pairing(situation.graph, situation.selection, dense, pruned, situation.dense, situation.pruned)
    joins = {situation.graph.calls[c].module for c in pairing.call_of.values() if situation.graph.calls[c].joins}
    joins &= {path for path in joins if path in dense.returned and path in pruned.returned}
    found = []
    for path in joins:
        at = dense.returned[path]
        mask = pairing.mask(at)
        if mask is None or sum(n > 1 for n in mask.shape) <= 1:
            found.append(_Feature(path=path, dense_index=at))
    return sorted(found, key=lambda f: f.dense_index)


@contextmanager
def _watching(model: nn.Module, features: list[_Feature]) -> Iterator[dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    modules = dict(model.named_modules())

    def note(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            tensors = tensors_of(output)
            if tensors:
                found[path] = tensors[0]

        return hook

    handles = [modules[f.path].register_forward_hook(note(f.path)) for f in features if f.path in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
