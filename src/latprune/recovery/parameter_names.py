"""The name of the parameter that a tensor of a run is, or is a view of."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

__all__ = ["ParameterNames"]


class ParameterNames:
    """Names by place in memory: several parameters may lie in one storage (flattened ones), and a view covers a part of one.

    Args:
        named: Names and tensors; of two with the same place the later one counts.

    Example:
        >>> from torch import nn
        >>> packed = nn.MultiheadAttention(4, 2)
        >>> ParameterNames(packed.named_parameters()).of(packed.in_proj_weight[4:8].t())
        'in_proj_weight'
    """

    def __init__(self, named: Iterable[tuple[str, Tensor]]) -> None:
        self._stored: dict[int, list[tuple[int, int, str]]] = {}
        for name, tensor in named:
            if tensor.numel():
                self._stored.setdefault(tensor.untyped_storage().data_ptr(), []).append((*_bytes(tensor), name))

    def of(self, tensor: Tensor) -> str | None:
        """The smallest parameter within which a tensor lies; None where there is none."""
        if not tensor.numel():
            return None
        start, end = _bytes(tensor)
        around = [
            (last - first, -place, name)
            for place, (first, last, name) in enumerate(self._stored.get(tensor.untyped_storage().data_ptr(), ()))
            if first <= start and end <= last
        ]
        return min(around)[2] if around else None


def _bytes(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor in its storage, and the one behind its last."""
    first = int(tensor.storage_offset())
    last = first + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return first * tensor.element_size(), (last + 1) * tensor.element_size()
