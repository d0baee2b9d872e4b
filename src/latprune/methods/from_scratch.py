"""The pruned structure with fresh weights: what the weights that pruning keeps are worth (arXiv:1810.05270)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.methods.base import Method, Proposer, StageContext, get_method, register_method
from latprune.methods.offer import Offer
from latprune.methods.schedule import Schedule, SoftMasks
from latprune.program import ProgramModule, fresh_values

__all__ = ["FromScratch", "reinitialise"]


@register_method
@dataclass(frozen=True, slots=True, kw_only=True)
class FromScratch(Method):
    """Another method's network, initialised anew: the training that follows starts from nothing.

    Where that method goes to its budget in stages, so does this one, and what the last stage leaves is initialised.

    Attributes:
        structure: Name of the method, or the method, that chooses widths and blocks; not one that chooses while the network trains.
        score: Criterion of a method that is named; None leaves its own.

    Example:
        >>> FromScratch(structure="sp_lamp").schedule.count
        3
    """

    name: ClassVar[str] = "from_scratch"
    structure: str | Method = "mdp"
    score: object = None

    def __post_init__(self) -> None:
        if isinstance(self.chooser, FromScratch):
            raise InvalidArgumentError(f"structure (={self.structure!r}) must be another method, such as 'mdp'")
        if isinstance(self.schedule, SoftMasks):
            raise InvalidArgumentError(
                f"structure (={self.structure!r}) chooses while the network trains, and fresh weights after that never train: it must "
                "be a method that cuts before the training, such as 'mdp'"
            )

    @property
    def chooser(self) -> Method:
        """The method that chooses."""
        return get_method(self.structure, **({} if self.score is None else {"score": self.score}))

    @property
    def importance(self) -> object | None:
        """The other method's."""
        return self.chooser.importance

    @property
    def needs_tables(self) -> bool:
        """Where the other method does."""
        return self.chooser.needs_tables

    @property
    def keeps_weights(self) -> bool:
        """Fresh weights have nothing to recover."""
        return False

    @property
    def schedule(self) -> Schedule:
        """The other method's."""
        return self.chooser.schedule

    def check_budget(self, *, on_latency: bool, measures: bool) -> None:
        """What the other method refuses."""
        self.chooser.check_budget(on_latency=on_latency, measures=measures)

    def check_model(self, model: nn.Module) -> None:
        """Refuse a captured program whose fresh weights cannot be told."""
        self.chooser.check_model(model)
        for module in model.modules():
            if isinstance(module, ProgramModule):
                fresh_values(module)

    def offer(self, context: StageContext) -> Offer:
        """What the other method chooses from."""
        return self.chooser.offer(context)

    def prepare(self, context: StageContext) -> Proposer:
        """The other method's proposer."""
        return self.chooser.prepare(context)

    def rank(self, context: StageContext, removed_blocks: Iterable[str] = ()) -> Mapping[str, npt.NDArray[np.float64]]:
        """The other method's ranking."""
        return self.chooser.rank(context, removed_blocks)

    def finish(self, model: nn.Module, *, seed: int) -> None:
        """Draw the weights anew."""
        reinitialise(model, seed=seed)


@torch.no_grad()
def reinitialise(model: nn.Module, *, seed: int) -> None:
    """Draw every parameter anew, in place: by its module's own ``reset_parameters``, else from a normal distribution with the mean and
    the deviation that the parameter has (position embeddings and other parameters that no layer of PyTorch's owns).

    A captured program has no such modules: its parameters are drawn as the layers that its steps are would draw them, and its norms begin
    anew with their statistics (:func:`latprune.program.fresh_values`).

    The generators of the process are as before afterwards, those of the model's devices too.

    Raises:
        InvalidArgumentError: A captured program has a parameter that none of PyTorch's layers reads; nothing was changed.
    """
    programs = [module for module in model.modules() if isinstance(module, ProgramModule)]
    drawn = [(program, fresh_values(program)) for program in programs]
    held = {id(module) for program in programs for module in program.modules()}
    with _seeded(model, seed):
        for module in model.modules():
            if id(module) not in held:
                _reset(module)
        for program, values in drawn:
            tensors = program.stored()
            for name, fresh in values.items():
                fresh.draw(tensors[name])


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point() and parameter.numel() > 1:
            parameter.normal_(float(parameter.mean()), float(parameter.std()))


@contextmanager
def _seeded(model: nn.Module, seed: int) -> Iterator[None]:
    """The default generators of the CPU and of the model's devices begin at ``seed``, and are put back."""
    devices: dict[str, set[int]] = {"cpu": set()}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.device.type not in ("cpu", "meta"):
            devices.setdefault(tensor.device.type, set()).add(tensor.device.index or 0)
    with ExitStack() as kept:
        for kind, indices in devices.items():
            # torch.manual_seed would seed devices that are not put back, and those that begin to be used later.
            kept.enter_context(torch.random.fork_rng(sorted(indices), device_type="cuda" if kind == "cpu" else kind))
            for index in sorted(indices):
                module = getattr(torch, kind)
                with module.device(index):
                    module.manual_seed(seed)
        torch.default_generator.manual_seed(seed)
        yield
