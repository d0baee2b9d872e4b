"""The activations of each channel group while the model runs, for the criteria that look at them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.captured import CapturedNetwork
from latprune.graph.types import ChannelGroup, Kernel, Member, Role
from latprune.importance.core import Blocks, GroupedModel
from latprune.importance.tensors import check_finite, named_tensors, norm_after
from latprune.modes import preserved_modes
from latprune.progress import counted
from latprune.train.batches import length_of
from latprune.train.contracts import answer, inputs_of, numbered

__all__ = ["ActivationPlace", "Visitor", "evaluating", "read_activations"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ActivationPlace:
    """Where a group's channels can be seen while the model runs.

    Attributes:
        group: Name of the group.
        module: Path of the module to watch.
        reads: Whether it reads the channels (its first input is taken) or makes them (its output is).
        positions: ``(n,)`` positions along the channel dimension.
        units: ``(n,)`` unit at each.
        blocks: Removable blocks that the module lies in.
    """

    group: str
    module: str
    reads: bool
    positions: npt.NDArray[np.int64]
    units: npt.NDArray[np.int64]
    blocks: Blocks


Visitor = Callable[[ActivationPlace, Tensor], None]
"""Takes a place and its activations ``(batch, n, ...)``: the channels second, then the rows and columns of a map or the tokens."""


def _input_positions(member: Member, weight: Tensor) -> npt.NDArray[np.int64]:
    if member.within is None:
        return member.positions
    group = member.within[0] // (member.within[1] - member.within[0])  # a grouped convolution numbers the inputs of each group from 0
    return member.positions + group * int(weight.shape[1])


def _places(model: nn.Module, graph: GroupedModel, name: str, group: ChannelGroup) -> list[ActivationPlace]:
    tensors = dict(model.named_parameters(remove_duplicate=False))
    modules = dict(model.named_modules(remove_duplicate=False))
    after = norm_after(graph)

    def place(member: Member, module: str, reads: bool) -> ActivationPlace:
        positions = _input_positions(member, tensors[member.tensor]) if reads else member.positions
        return ActivationPlace(group=name, module=module, reads=reads, positions=positions, units=member.units, blocks=member.blocks)

    readers, makers = [], []
    for member in group.members:
        path = member.tensor.rpartition(".")[0]
        if member.tensor not in tensors or not isinstance(modules.get(path), (nn.Linear, nn.modules.conv._ConvNd)):
            continue
        if member.role is Role.CONSUMER:
            readers.append(place(member, path, True))
        elif member.role is Role.PRODUCER:
            norm = graph.kernels[after[member.kernel]] if member.kernel in after else None
            behind = norm is not None and _keeps_places(modules, graph.kernels[member.kernel], path, norm)
            makers.append(place(member, str(norm.module) if norm is not None and behind else path, False))
    convolutions = [found for found in readers if not isinstance(modules[found.module], nn.Linear)]
    # A map is seen as it is read, after norm and activation; what only linear layers read was pooled or flattened on the way.
    mapped = any(not isinstance(modules[found.module], nn.Linear) for found in makers)
    return convolutions or (makers if mapped else readers or makers)


def _channel_dim(module: nn.Module | None) -> int:
    """The dimension of a layer's result that the channels lie on."""
    return -1 if isinstance(module, (nn.Linear, nn.LayerNorm, nn.RMSNorm)) else 1


def _keeps_places(modules: Mapping[str, nn.Module], maker: Kernel, path: str, norm: Kernel) -> bool:
    """Whether a norm is a module of its own, and gives the channels at the places at which they were made: not cut into heads."""
    if norm.module not in modules or norm.name != norm.module:
        return False
    made, normed = maker.attributes.get("output_shape"), norm.attributes.get("output_shape")
    return made is None or normed is None or made[_channel_dim(modules[path])] == normed[_channel_dim(modules[norm.module])]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each module's mode is put back."""
    with preserved_modes(model):
        model.eval()
        yield


@torch.no_grad()
def read_activations(
    model: nn.Module, graph: GroupedModel, data: Iterable[Any] | None, visit: Visitor, *, batches: int | None = None
) -> tuple[ActivationPlace, ...]:
    """Run batches in evaluation mode and hand every group's activations to ``visit``; labels are not looked at.

    A group is watched where convolutions read it (after norm and activation), else where it is made (behind the norm), else where linear
    layers read it. A module that runs several times in one batch is visited each time.

    Args:
        model: The traced model; left as it was found.
        graph: Its graph.
        data: Batches.
        visit: Called for each place in each batch.
        batches: Stop after so many; None takes all.

    Returns:
        The places, at least one for each group.

    Raises:
        InvalidArgumentError: No data; the data or the model fails at a batch, which is named; the model is a captured program, whose
            operations are no modules to watch; a group is neither read nor made by a linear or convolution module that runs.
    """
    if data is None:
        raise InvalidArgumentError("data (=None) must be batches: this criterion looks at activations")
    if any(isinstance(module, CapturedNetwork) for module in model.modules()):
        raise InvalidArgumentError(
            "model is a captured program, whose operations are not modules that could be watched: choose a criterion of weights or "
            "gradients, or form='class'"
        )
    for name, tensor in named_tensors(model).items():
        if tensor.is_floating_point():
            check_finite(tensor.detach(), name, "parameter" if isinstance(tensor, nn.Parameter) else "buffer")
    places = {name: _places(model, graph, name, group) for name, group in graph.groups.items()}
    seen: set[str] = set()
    handles = []

    def watch(found: ActivationPlace) -> None:
        module = model.get_submodule(found.module)
        channels = _channel_dim(module)
        index = torch.from_numpy(found.positions)

        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            value = args[0] if found.reads else output
            moved = value.detach().movedim(channels, 1) if value.ndim > 1 else value.detach()[None]
            if int(found.positions.max(initial=0)) >= moved.shape[1]:
                raise InvalidArgumentError(
                    f"the activations of module '{found.module}' have {moved.shape[1]} channels, fewer than group '{found.group}' has "
                    "there; trace the model as it is now"
                )
            seen.add(found.group)
            visit(found, moved[:, index.to(moved.device)])

        handles.append(module.register_forward_hook(hook))

    try:
        for found in (found for group in places.values() for found in group):
            watch(found)
        with evaluating(model):
            count = 0
            total = batches if batches is not None else length_of(data)
            for number, batch in counted(numbered(data), "activations", unit="batches", total=total):
                if batches is not None and count >= batches:
                    break
                answer(model, inputs_of(batch, model), batch=number)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise InvalidArgumentError("data holds no batch: this criterion looks at activations")
    missing = [name for name in graph.groups if name not in seen]
    if missing:
        raise InvalidArgumentError(
            f"the activations of {len(missing)} group(s) cannot be read (first '{missing[0]}'): no linear or convolution module that "
            "runs reads or makes them; keep them whole (keep=), or choose a criterion of weights or gradients"
        )
    return tuple(found for group in places.values() for found in group)
