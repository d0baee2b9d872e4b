"""Which precision a processor trains fastest in, and the context that a step is computed in."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch

__all__ = ["mixed_precision", "native_precision"]


def _autocast_type(precision: str) -> torch.dtype:
    """The type of automatic mixed precision; of ``fp32``, which has none, the one that stands for it while it is switched off."""
    return torch.float16 if precision == "fp16" else torch.bfloat16


def mixed_precision(device: str, precision: str) -> AbstractContextManager[Any]:
    """Automatic mixed precision in ``bf16`` or ``fp16``; ``fp32`` switches one off that a caller has enabled.

    Autocast keeps the copies that it makes of weights until the outermost context ends, whatever is written into the weights meanwhile.
    A caller may have a context open, so :func:`latprune.train.batches.forward` drops them before each run.

    Args:
        device: Type of the device, such as ``cpu``.
        precision: ``fp32``, ``bf16`` or ``fp16``.
    """
    if precision == "fp32" and not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
        return nullcontext()
    return torch.autocast(device, _autocast_type(precision), enabled=precision != "fp32")


def native_precision() -> Literal["fp32", "bf16"]:
    """``bf16`` where this machine multiplies it in hardware, else ``fp32``: emulated, it is several times slower than fp32.

    A GPU is asked where there is one; of a processor PyTorch tells whether it has AVX512-BF16 or AMX. Where it cannot tell, ``fp32``.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(ask() for ask in asked if callable(ask)) else "fp32"
