"""Which precision a processor trains fastest in."""

from __future__ import annotations

from typing import Literal

import torch

__all__ = ["autocast_type", "native_precision"]


def autocast_type(precision: str) -> torch.dtype:
    """The type of automatic mixed precision; of ``fp32``, which has none, the one that stands for it while it is switched off."""
    return torch.float16 if precision == "fp16" else torch.bfloat16


def native_precision() -> Literal["fp32", "bf16"]:
    """``bf16`` where this machine multiplies it in hardware, else ``fp32``: emulated, it is several times slower than fp32.

    A GPU is asked where there is one; of a processor PyTorch tells whether it has AVX512-BF16 or AMX. Where it cannot tell, ``fp32``.
    """
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    asked = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return "bf16" if any(ask() for ask in asked if callable(ask)) else "fp32"
