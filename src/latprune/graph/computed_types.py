"""Which floating-point types a model computes in, whatever it is held in: ``autocast`` and casts of its own show in a run alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.graph.tensors import tensors_in

__all__ = ["computed_types"]


class _Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the floating-point types of all results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run the operation."""
        result = func(*args, **(kwargs or {}))
        made = [result] if isinstance(result, torch.Tensor) else tensors_in(result)
        self.found |= {tensor.dtype for tensor in made if tensor.is_floating_point()}
        return result


def computed_types(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[torch.dtype]:
    """Floating-point types of the results of one run, in the mode that the model is in; nothing where the model does not run.

    Example:
        >>> computed_types(nn.Linear(4, 2).bfloat16(), (torch.zeros(1, 4, dtype=torch.bfloat16),), {})
        {torch.bfloat16}
    """
    mode = _Types()
    with mode, torch.no_grad():
        try:
            model(*args, **kwargs)
        except Exception:  # whatever the model's code raises; what was found until then stands
            return mode.found
    return mode.found
