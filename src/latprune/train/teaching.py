"""Learning from the dense network with any loss on any outputs, and from its features at named modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.tensors import tensors_in
from latprune.train.contracts import calling, check_loss_value, described, named
from latprune.train.recipe import Distillation
from latprune.train.variation import RunningVariation

__all__ = ["KeptChannels", "Teaching", "matching_loss"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KeptChannels:
    """Which channels of a dense module's result the pruned network kept.

    Attributes:
        dim: Dimension of the result that the channels lie on.
        index: ``(kept,)`` int64 places along it, increasing.
    """

    dim: int
    index: Tensor

    def of(self, feature: Tensor) -> Tensor:
        """The kept channels of a dense result."""
        return feature.index_select(self.dim, self.index.to(feature.device))


def matching_loss(student: Any, teacher: Any) -> Tensor:
    """Squared error of all floating-point tensors of an output, each relative to the teacher's variance over the batch, averaged.

    As the loss of a :class:`~latprune.train.Distillation` it is relative to the variance over all batches so far, so that a batch of few
    examples, whose own variance may be next to nothing, counts no more than others.

    Args:
        student: Output of the network in training: a tensor, or a nest of tuples, lists, mappings and objects with attributes.
        teacher: The dense network's output of the same structure.

    Raises:
        InvalidArgumentError: The two have other numbers or shapes of tensors (detections after a threshold, say).

    Example:
        >>> float(matching_loss({"boxes": torch.zeros(4, 2)}, {"boxes": torch.zeros(4, 2)}))
        0.0
    """
    return _matching(student, teacher, RunningVariation())


def _matching(student: Any, teacher: Any, variation: RunningVariation) -> Tensor:
    mine = [t for t in tensors_in(student) if t.is_floating_point()]
    theirs = [t for t in tensors_in(teacher) if t.is_floating_point()]
    if not mine or [t.shape for t in mine] != [t.shape for t in theirs]:
        raise InvalidArgumentError(
            f"outputs to match are {described(student)} and the teacher's {described(teacher)}; they must hold floating-point tensors of "
            "the same shapes; give a loss of your own, or match features instead"
        )
    pairs = zip(mine, theirs, strict=True)
    return torch.stack([_relative(a, b, variation, f"output {k}") for k, (a, b) in enumerate(pairs)]).mean()


def _relative(given: Tensor, wanted: Tensor, variation: RunningVariation, name: str) -> Tensor:
    given, wanted = given.float(), wanted.float()
    return (given - wanted).square().mean() / variation.of(name, wanted)


class Teaching:
    """What the teacher adds to the loss of a step, seen through hooks so that any loss function's own call of the model counts.

    Args:
        distillation: What to learn.
        student: The network in training.
        teacher: The dense network, in evaluation mode on the same device.
        kept: Module -> its kept channels in the dense network; modules without an entry kept them all.

    Raises:
        InvalidArgumentError: A named module does not exist in both networks, or the features are those that only ``prune`` finds.
    """

    def __init__(self, distillation: Distillation, student: nn.Module, teacher: nn.Module, kept: Mapping[str, KeptChannels]) -> None:
        if isinstance(distillation.features, str):
            raise InvalidArgumentError(
                f"features (={distillation.features!r}) are found by prune(fit=...); name their modules in a training of your own, as "
                "latprune.recovery.stream_modules finds them"
            )
        self._features_at = distillation.features
        for name in self._features_at:
            for whose, model in (("the network", student), ("the teacher", teacher)):
                try:
                    model.get_submodule(name)
                except AttributeError as error:
                    raise InvalidArgumentError(
                        f"features name the module '{name}', which {whose} does not have; name one of named_modules() that both have"
                    ) from error
        self._distillation = distillation
        self._student, self._teacher = student, teacher
        self._kept = kept
        self.variation = RunningVariation()
        """What squared errors are relative to; a part of the run's state."""
        self._mine: dict[str, Tensor] = {}
        self._call: tuple[tuple[Any, ...], Mapping[str, Any], Any] | None = None

    @property
    def needs_labels(self) -> bool:
        """Whether the network's own loss has a share, so that batches must have labels."""
        return self._distillation.needs_labels

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Take note of what the network is given, makes of it, and has at the named modules."""
        self._mine, self._call = {}, None

        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self._call = args, kwargs, output

        with ExitStack() as stack:
            handle = self._student.register_forward_hook(note, with_kwargs=True)
            stack.callback(handle.remove)
            self._watch(self._student, self._mine, stack)
            yield

    def mixed(self, own: Tensor | None) -> Tensor:
        """The network's own loss with the teacher's share; call it after :meth:`watched`, before the next step.

        Args:
            own: The network's own loss; None where it has no share.

        Raises:
            InvalidArgumentError: The model was not called, or outputs or features do not go together.
        """
        if self._call is None:
            raise InvalidArgumentError("the loss did not call the model, so there is no output to compare with the teacher's")
        args, kwargs, output = self._call
        theirs: dict[str, Tensor] = {}
        with ExitStack() as stack, torch.no_grad():
            self._watch(self._teacher, theirs, stack)
            taught = self._teacher(*args, **kwargs)
        chosen = self._distillation
        parts: list[Tensor] = []
        if own is not None:
            parts.append(own if chosen.loss is None else (1.0 - chosen.weight) * own)
        if chosen.loss is not None and chosen.weight:
            loss = matching_loss if isinstance(chosen.loss, str) else chosen.loss
            what = named(loss, "(student, teacher)")
            if loss is matching_loss:
                loss = partial(_matching, variation=self.variation)
            with calling(what, given=(output, taught)):
                value = loss(output, taught)
            parts.append(chosen.weight * check_loss_value(value, what))
        if self._features_at:
            parts.append(chosen.feature_weight * self._features(theirs))
        self._mine, self._call = {}, None
        return torch.stack(parts).sum()

    def _watch(self, model: nn.Module, found: dict[str, Tensor], stack: ExitStack) -> None:
        def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                tensors = [t for t in tensors_in(output) if t.is_floating_point()]
                if tensors:
                    found[name] = tensors[0]

            return hook

        for name in self._features_at:
            handle = model.get_submodule(name).register_forward_hook(note(name))
            stack.callback(handle.remove)

    def _features(self, theirs: Mapping[str, Tensor]) -> Tensor:
        parts = []
        for name in self._features_at:
            if name not in self._mine or name not in theirs:
                raise InvalidArgumentError(f"the module '{name}' of features did not run, or gave no floating-point tensor")
            mine, wanted = self._mine[name], theirs[name]
            if name in self._kept:
                wanted = self._kept[name].of(wanted)
            if mine.shape != wanted.shape:
                raise InvalidArgumentError(
                    f"the module '{name}' of features gives {described(mine)} and the teacher's {described(theirs[name])}; give its kept "
                    "channels (latprune.recovery.kept_channels), or name one whose channels all stayed"
                )
            parts.append(_relative(mine, wanted, self.variation, name))
        return torch.stack(parts).mean()
