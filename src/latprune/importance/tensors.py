"""Reading a model's tensors by the places that a channel group holds in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph.types import ChannelGroup, Member, Role
from latprune.importance.core import Blocks, GroupedModel, Importance, Scores

__all__ = [
    "along",
    "check_finite",
    "combine",
    "evenly_shared",
    "named_tensors",
    "norm_after",
    "present_units",
    "sum_per_unit",
    "tensor_of",
]


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones under each of their names."""
    tensors: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    tensors.update(model.named_buffers(remove_duplicate=False))
    return tensors


def tensor_of(tensors: Mapping[str, Tensor], member: Member) -> Tensor:
    """The tensor of a member; an error in words where the graph belongs to another model."""
    if member.tensor not in tensors:
        raise InvalidArgumentError(f"the model has no tensor '{member.tensor}' that the graph names; trace this model, not another one")
    tensor = tensors[member.tensor]
    if member.dim >= tensor.ndim or (member.positions.size and int(member.positions[-1]) >= tensor.shape[member.dim]):
        raise InvalidArgumentError(
            f"tensor '{member.tensor}' has shape {tuple(tensor.shape)}, too small for the graph's positions on dimension {member.dim}; "
            "trace the model as it is now"
        )
    return tensor


def check_finite(tensor: Tensor, name: str, what: str = "parameter") -> None:
    """Raise where a tensor holds NaN or infinite values."""
    # A sum is read in one pass, and no finite one has a part that is not; one that overflows says nothing.
    if tensor.is_floating_point() and bool(torch.isfinite(tensor.sum())):
        return
    bad = int((~torch.isfinite(tensor)).sum())
    if bad:
        raise InvalidArgumentError(
            f"{what} '{name}' holds {bad} NaN or infinite value(s) of {tensor.numel()}; importance needs finite ones"
        )


def along(values: Tensor, member: Member) -> Scores:
    """Sum a tensor over everything but the member's dimension.

    Args:
        values: Shape of the member's tensor.
        member: Its dimension counts; where it stands for some output filters alone (the inputs of one group of a grouped convolution), the
            sum is over those.

    Returns:
        ``(n,)`` float64: one sum for each of the member's positions.
    """
    if member.within is not None:
        values = values[member.within[0] : member.within[1]]
    others = [dim for dim in range(values.ndim) if dim != member.dim]
    sums = values.double().sum(dim=others) if others else values.double()  # (size of the dimension,)
    picked: Scores = sums.cpu().numpy()[member.positions]
    return picked


def sum_per_unit(values: Tensor, member: Member, units: int) -> Scores:
    """Sum a tensor over everything that belongs to each unit.

    Args:
        values: Shape of the member's tensor.
        member: Where the group's channels stand in it.
        units: Number of units of the group.

    Returns:
        ``(units,)`` float64; 0 for a unit that has no place in the tensor.
    """
    return np.bincount(member.units, weights=along(values, member), minlength=units).astype(np.float64)


def present_units(group: ChannelGroup) -> npt.NDArray[np.bool_]:
    """``(units,)``: whether a unit has a place in any tensor. In a view of a dense graph over a cut network the others are gone.

    All units of a group without members are present: nothing says otherwise.
    """
    if not group.members:
        return np.ones(group.units, dtype=np.bool_)
    present = np.zeros(group.units, dtype=np.bool_)
    for member in group.members:
        present[member.units] = True
    return present


def norm_after(graph: GroupedModel) -> dict[str, str]:
    """Kernel -> the norm that alone reads what it makes, inside the same blocks: it scales what the kernel makes, and no sum.

    A graph that does not know the flow of data goes by the order of the kernels: the norm that runs directly after.
    """
    known: Mapping[str, str] | None = getattr(graph, "norms", None)  # graphs of other packages may lack it
    if known is not None:
        return {kernel: norm for kernel, norm in known.items() if kernel in graph.kernels and norm in graph.kernels}
    kernels = list(graph.kernels.values())
    return {
        before.name: after.name
        for before, after in zip(kernels, kernels[1:], strict=False)
        if after.kind == "norm" and before.kind != "norm" and before.blocks == after.blocks
    }


def combine(groups: Mapping[str, Scores], parts: Mapping[str, Iterable[tuple[Blocks, Scores]]]) -> Importance:
    """Split each group's score over its layers in proportion to what each contributes (MDP's split).

    Args:
        groups: Group -> ``(units,)`` score.
        parts: Group -> ``(blocks, contribution (units,))`` of each layer, at least 0. A unit to which no layer contributes is split evenly.

    Returns:
        The scores with their shares; layers on the same blocks are one share.
    """
    shares: dict[tuple[str, Blocks], Scores] = {}
    for name, total in groups.items():
        layers = list(parts[name]) or [((), np.ones_like(total))]
        contributions = np.stack([contribution for _, contribution in layers])  # (layers, units)
        peak = contributions.max(axis=0)
        scaled = np.divide(contributions, peak, out=np.ones_like(contributions), where=peak > 0)  # keeps tiny contributions from underflow
        fractions = scaled / scaled.sum(axis=0)
        for (blocks, _), fraction in zip(layers, fractions, strict=True):
            key = (name, blocks)
            shares[key] = shares.get(key, np.zeros_like(total)) + fraction * total
    return Importance(units=dict(groups), shares=shares)


def evenly_shared(graph: GroupedModel, units: Mapping[str, Scores]) -> Importance:
    """Scores that say nothing of single layers: each group's are split evenly over the layers that make its channels.

    Without shares a block that goes would take nothing of a score with it, and removing blocks would be free.

    Args:
        graph: The groups.
        units: Group -> ``(units,)`` score.
    """
    parts: dict[str, list[tuple[Blocks, Scores]]] = {}
    for name, group in graph.groups.items():
        makers = dict.fromkeys((member.kernel, member.blocks) for member in group.members if member.role is Role.PRODUCER)
        parts[name] = [(blocks, np.ones(group.units)) for _, blocks in makers]
    return combine(units, parts)
