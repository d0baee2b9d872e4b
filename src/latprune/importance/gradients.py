"""Accumulating weight-times-gradient terms over batches: the base of the Taylor and the Hessian-aware scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.conditions import preserved_buffers, preserved_state
from latprune.graph.types import ChannelGroup, Member
from latprune.importance.core import Blocks, GroupedModel, Importance, LossFunction, Scores, cross_entropy_loss
from latprune.importance.processes import mean_over_processes
from latprune.importance.tensors import along, check_finite, combine, named_tensors
from latprune.modes import preserved_modes
from latprune.progress import counted
from latprune.train.batches import length_of
from latprune.train.contracts import calling, check_loss_value, named, numbered, plain_loss

__all__ = ["GradientAccumulator", "Layer", "accumulate"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """The tensors of one kernel whose terms are summed with their signs, and the blocks that the kernel lies in."""

    kernel: str
    blocks: Blocks
    members: tuple[Member, ...]


def by_kernel(members: Iterable[Member]) -> tuple[Layer, ...]:
    """Collect members by the kernel that owns them, in their order."""
    collected: dict[tuple[str, Blocks], list[Member]] = {}
    for member in members:
        collected.setdefault((member.kernel, member.blocks), []).append(member)
    return tuple(Layer(kernel=kernel, blocks=blocks, members=tuple(found)) for (kernel, blocks), found in collected.items())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Places:
    """Where the terms of one layer come together: the same place of the layer's output (weight and bias; scale and shift) is one.

    Attributes:
        index: For each member the place of each of its positions.
        units: ``(places,)`` unit of each place.
        weight: ``(places,)`` share of the place's terms that counts for this group.
    """

    index: tuple[npt.NDArray[np.int64], ...]
    units: npt.NDArray[np.int64]
    weight: Scores


def _places(layer: Layer, nested: Mapping[tuple[str, int], Scores] | None, units: int) -> _Places:
    keys = [member.positions * units + member.units for member in layer.members]
    _, first, inverse = np.unique(np.concatenate(keys or [np.zeros(0, dtype=np.int64)]), return_index=True, return_inverse=True)
    # Places are numbered in the order in which the members name them.
    order = np.argsort(first, kind="stable")
    number = np.empty(len(order), dtype=np.int64)
    number[order] = np.arange(len(order))
    index = np.split(number[inverse], np.cumsum([len(key) for key in keys])[:-1]) if keys else []
    found = np.concatenate([member.units for member in layer.members] or [np.zeros(0, dtype=np.int64)])
    weight = np.ones(len(order))
    if nested is not None and keys:
        weight = np.concatenate([1.0 / nested[member.tensor, member.dim][member.positions] for member in layer.members])[first[order]]
    return _Places(index=tuple(index), units=found[first[order]].astype(np.int64), weight=weight)


def _nested(layers: Mapping[str, tuple[Layer, ...]]) -> dict[tuple[str, int], Scores]:
    """``(tensor, dimension)`` -> number of groups that score the terms of each of its positions."""
    counts: dict[tuple[str, int], Scores] = {}
    for found in layers.values():
        scored: dict[tuple[str, int], list[npt.NDArray[np.int64]]] = {}
        for layer in found:
            for member in layer.members:
                scored.setdefault((member.tensor, member.dim), []).append(member.positions)
        for key, positions in scored.items():
            at = np.unique(np.concatenate(positions))
            count = counts.get(key, np.zeros(0))
            if at.size and at[-1] >= count.size:
                count = np.append(count, np.zeros(int(at[-1]) + 1 - count.size))
            count[at] += 1.0
            counts[key] = count
    return counts


class GradientAccumulator(ABC):
    """Sums the scores of batches, fed by anybody's backward passes.

    Call :meth:`update` after each ``loss.backward()`` and before the gradients are zeroed; :meth:`importance` gives the mean so far. The
    gradients are those of the mean loss of a batch (undo a loss scaler first). Not thread-safe. The result depends only on the weights and
    gradients seen: the sums are float64 and in a fixed order.

    Args:
        model: The traced model; its parameters are read at each update.
        graph: Its traced graph.

    Example:
        >>> from latprune.importance import TaylorAccumulator, TaylorConfig, cross_entropy_loss
        >>> accumulator = TaylorAccumulator(model, graph, TaylorConfig())
        >>> for batch in batches:
        ...     optimizer.zero_grad()
        ...     cross_entropy_loss(model, batch).backward()
        ...     accumulator.update()
        ...     optimizer.step()
        >>> importance = accumulator.importance()
    """

    count_once: ClassVar[bool] = False
    """Whether a weight that belongs to units of several nested groups (a head, and a place within it) gives each an equal part of its term.
    The groups' scores then add up to what the network has; otherwise each has the whole term."""

    def __init__(self, model: nn.Module, graph: GroupedModel) -> None:
        self.model = model
        self.graph = graph
        tensors = named_tensors(model)
        self.layers: dict[str, tuple[Layer, ...]] = {name: self.layers_of(group, tensors) for name, group in graph.groups.items()}
        nested = _nested(self.layers) if self.count_once else None
        self._places = {
            name: tuple(_places(layer, nested, graph.groups[name].units) for layer in layers) for name, layers in self.layers.items()
        }
        names = (member.tensor for layers in self.layers.values() for layer in layers for member in layer.members)
        self.parameters: tuple[str, ...] = tuple(dict.fromkeys(names))
        self.batches = 0.0
        self._groups = {name: np.zeros(group.units) for name, group in graph.groups.items()}
        self._layers = {name: [np.zeros(graph.groups[name].units) for _ in layers] for name, layers in self.layers.items()}

    @abstractmethod
    def layers_of(self, group: ChannelGroup, tensors: Mapping[str, Tensor]) -> tuple[Layer, ...]:
        """The layers whose terms score a group; parameters only."""

    @abstractmethod
    def magnitude(self, terms: Scores) -> Scores:
        """What a batch's signed sum adds to the score: at least 0, the same shape."""

    def layer_score(self, terms: Scores, units: npt.NDArray[np.int64], count: int) -> Scores:
        """What one layer adds to its units' scores in one batch.

        Args:
            terms: ``(places,)`` signed term of each place of the layer's output.
            units: ``(places,)`` unit of each.
            count: Number of units.

        Returns:
            ``(count,)`` at least 0.
        """
        return self.magnitude(np.bincount(units, weights=terms, minlength=count).astype(np.float64))

    def update(self, gradients: Mapping[str, Tensor | None] | None = None) -> None:
        """Add one batch.

        Args:
            gradients: Gradient by parameter name; None reads ``.grad``. A parameter without one took no part in the loss: it counts as 0.

        Raises:
            InvalidArgumentError: No parameter has a gradient; one that is scored is frozen, so that backward passes cannot tell its term;
                a weight or a gradient is NaN or infinite (named).
        """
        tensors = named_tensors(self.model)
        if gradients is None:
            frozen = [name for name in self.parameters if tensors[name].grad is None and not tensors[name].requires_grad]
            if frozen:
                raise InvalidArgumentError(
                    f"{len(frozen)} parameter(s) of the channel groups are frozen (requires_grad=False; first '{frozen[0]}'): a "
                    "backward pass gives them no gradient, and without one their channels would score 0. Set requires_grad and leave "
                    "them out of the optimizer, hand the gradients over, or call score(), which computes them"
                )
        products: dict[str, Tensor] = {}
        seen = False
        for name in self.parameters:
            weight = tensors[name]
            gradient = weight.grad if gradients is None else gradients.get(name)
            if gradient is None:
                products[name] = torch.zeros_like(weight, dtype=torch.float64)
                continue
            seen = True
            check_finite(weight.detach(), name)
            check_finite(gradient, name, "the gradient of parameter")
            if weight.is_complex():  # its gradient holds the derivatives by real and imaginary part
                products[name] = (weight.detach().conj() * gradient.detach()).real.double()
            else:
                products[name] = weight.detach().to(torch.float64, copy=True).mul_(gradient.detach())
        if self.parameters and not seen:
            raise InvalidArgumentError(
                "no parameter of the channel groups has a gradient: call update() after backward(), before zero_grad()"
            )
        for name, layers in self.layers.items():
            units = self.graph.groups[name].units
            total = np.zeros(units)
            for index, (layer, places) in enumerate(zip(layers, self._places[name], strict=True)):
                terms = np.zeros(places.units.size)
                for member, at in zip(layer.members, places.index, strict=True):
                    np.add.at(terms, at, along(products[member.tensor], member))
                terms *= places.weight
                self._layers[name][index] += self.layer_score(terms, places.units, units)
                total += np.bincount(places.units, weights=terms, minlength=units)
            self._groups[name] += self.magnitude(total)
        self.batches += 1

    def importance(self) -> Importance:
        """The mean score over the batches so far."""
        if not self.batches:
            raise InvalidArgumentError("the accumulator has seen no batch; call update() after at least one backward pass")
        units = {name: total / self.batches for name, total in self._groups.items()}
        return combine(units, self.split(self._layers))

    def split(self, contributions: Mapping[str, list[Scores]]) -> dict[str, list[tuple[Blocks, Scores]]]:
        """The layers' summed scores with the blocks that they hang on."""
        return {
            name: [(layer.blocks, values) for layer, values in zip(self.layers[name], found, strict=True)]
            for name, found in contributions.items()
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The sums so far, as tensors (for safetensors); :meth:`load_state_dict` continues from them exactly."""
        state = {"batches": torch.tensor(self.batches, dtype=torch.float64)}
        for name, total in self._groups.items():
            rows = [total, *self._layers[name]]
            state[f"group.{name}"] = torch.from_numpy(np.stack(rows))  # (1 + layers, units)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a saved state of the same model and graph."""
        expected = {"batches"} | {f"group.{name}" for name in self._groups}
        if set(state) != expected:
            raise InvalidArgumentError(f"the accumulator's state names {sorted(set(state) ^ expected)[:4]} do not fit the graph's groups")
        for name, total in self._groups.items():
            rows = state[f"group.{name}"].double().cpu().numpy()
            if rows.shape != (1 + len(self.layers[name]), total.size):
                raise InvalidArgumentError(f"the accumulator's state of group '{name}' has shape {rows.shape}; the graph has changed")
            self._groups[name] = rows[0].copy()
            self._layers[name] = [row.copy() for row in rows[1:]]
        self.batches = float(state["batches"])

    def reset(self) -> None:
        """Forget all batches."""
        self.decay(0.0)

    def decay(self, factor: float) -> None:
        """Let the batches so far count ``factor`` times as much: called before each update, it makes the mean a moving average.

        After ``n`` batches the score is ``sum_k factor^(n-k) s_k / sum_k factor^(n-k)``.

        Args:
            factor: From 0 (forgets them) to 1 (changes nothing).
        """
        if not 0.0 <= factor <= 1.0:
            raise InvalidArgumentError(f"factor (={factor}) must be from 0 to 1")
        self.batches *= factor
        for sums in (*self._groups.values(), *(layer for layers in self._layers.values() for layer in layers)):
            sums *= factor

    def reduce(self) -> None:
        """Bring the sums of all processes of ``torch.distributed`` together; alone it changes nothing. Every process must call it.

        Each process then holds the mean of their sums and of their numbers of batches, so that the mean score is that of all batches and
        nothing counts twice when more batches and another reduction follow.
        """
        sums = [*self._groups.values(), *(layer for layers in self._layers.values() for layer in layers)]
        batches = np.array([self.batches])
        mean_over_processes([batches, *sums])
        self.batches = float(batches[0])


@contextmanager
def _evaluation_mode(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    with preserved_modes(model), preserved_state(model), preserved_buffers(model):
        model.eval()
        for parameter in frozen:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)


def loss_of(loss: LossFunction, model: nn.Module, batch: Any, *, number: int) -> Tensor:
    """The loss of batch ``number`` of the data, a scalar that can be followed back.

    Raises:
        InvalidArgumentError: The loss fails, or gives something else; the function and the batch are named.
    """
    what = named(loss, "(model, batch)")
    with calling(what, batch=number, given=batch):
        value = plain_loss(model, batch, number=number) if loss is cross_entropy_loss else loss(model, batch)
    return check_loss_value(value, what, batch=number)


def accumulate(
    accumulator: GradientAccumulator,
    data: Iterable[Any] | None,
    loss: LossFunction,
    *,
    batches: int | None,
    progress: Callable[[int], None] | None = None,
) -> Importance:
    """Run batches through the model in evaluation mode (norms use their running statistics) and score them.

    The model's gradients, buffers, modes and ``requires_grad`` flags are left as they were.

    Args:
        accumulator: Where the batches go.
        data: Batches for ``loss``.
        loss: Scalar loss of the model on one batch.
        batches: Stop after so many; None takes all.
        progress: Called with the number of batches done.

    Raises:
        InvalidArgumentError: ``data`` is missing or empty; the data or the loss fails at a batch, which is named; a weight, a buffer or
            the loss is NaN or infinite.
    """
    if data is None:
        raise InvalidArgumentError("data (=None) must be batches: this criterion needs gradients of the loss")
    what = named(loss, "(model, batch)")
    model = accumulator.model
    tensors = named_tensors(model)
    parameters = [(name, tensors[name]) for name in accumulator.parameters]
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            check_finite(tensor.detach(), name, "parameter" if isinstance(tensor, nn.Parameter) else "buffer")
    with _evaluation_mode(model, [tensor for _, tensor in parameters if isinstance(tensor, nn.Parameter)]), torch.enable_grad():
        total = batches if batches is not None else length_of(data)
        for index, batch in counted(numbered(data), "gradients", unit="batches", total=total):
            if batches is not None and index >= batches:
                break
            value = loss_of(loss, model, batch, number=index)
            if not bool(torch.isfinite(value)):
                raise InvalidArgumentError(f"the loss of batch {index} is {value.item()}; importance needs a finite loss")
            with calling(f"the gradient of {what}", batch=index):
                found = torch.autograd.grad(value, [tensor for _, tensor in parameters], allow_unused=True) if parameters else ()
            accumulator.update({name: gradient for (name, _), gradient in zip(parameters, found, strict=True)})
            if progress is not None:
                progress(index + 1)
    return accumulator.importance()
