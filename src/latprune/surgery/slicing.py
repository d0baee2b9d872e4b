"""Slicing and scaling one tensor as an edit says."""

from __future__ import annotations

import torch
from torch import Tensor

from latprune.surgery.edits import ScaleEdit, TensorEdit

__all__ = ["cut_tensor", "scale_tensor"]


def cut_tensor(tensor: Tensor, edit: TensorEdit) -> Tensor:
    """A smaller copy in the same memory format.

    Args:
        tensor: Of the shape that the edit is made for; a dimension that is not sliced may have another size.
        edit: What stays.
    """
    channels_last = tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    out = tensor
    if edit.grouped is not None:
        rows = set(edit.keep.get(0, range(edit.shape[0])))
        parts = []
        for start, stop, columns in edit.grouped:
            alive = torch.tensor([r for r in range(start, stop) if r in rows], dtype=torch.int64, device=tensor.device)
            parts.append(tensor.index_select(0, alive).index_select(1, torch.tensor(columns, dtype=torch.int64, device=tensor.device)))
        out = torch.cat(parts, 0)
    for dim, kept in edit.keep.items():
        if edit.grouped is not None and dim == 0:
            continue
        out = out.index_select(dim, torch.tensor(kept, dtype=torch.int64, device=tensor.device))
    out = out.clone()
    return out.contiguous(memory_format=torch.channels_last) if channels_last else out.contiguous()


@torch.no_grad()
def scale_tensor(tensor: Tensor, edit: ScaleEdit, power: int = 1) -> None:
    """Multiply positions of a tensor in place by ``factor ** power``."""
    factor = edit.factor**power
    if edit.positions is None:
        tensor.mul_(factor)
    else:
        at = torch.tensor(edit.positions, dtype=torch.int64, device=tensor.device)
        tensor.index_copy_(edit.dim, at, tensor.index_select(edit.dim, at) * factor)
