"""Layers that an engine's profile does not show: a price for them at the rate of the layers that it shows."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from latprune.errors import EngineError
from latprune.graph.types import Kernel
from latprune.latency.features import LAYERS
from latprune.latency.measuring.matching import KernelShare, MatchedProfile

__all__ = ["PRICED", "is_priced", "price_unseen", "unseen_layers"]

PRICED = "priced"
"""Stands among the attached steps of a kernel (and so in its signature) whose time is a price and no step's own."""
_MOST = 0.5
"""Share of the layers' multiply-adds that may lack a step: beyond it the prices would be the profile."""


def unseen_layers(kernels: Sequence[Kernel], profile: MatchedProfile, widths: Mapping[str, int], engine: str) -> tuple[str, ...]:
    """Names of the layers (convolutions and matrix products with weights) that no step of a network's profile belongs to.

    Layers that no output depends on need none: engines leave them out.

    Raises:
        EngineError: No step, or too few of them, could be matched for the others to be priced by them.
    """
    if not profile.shares:
        raise EngineError(f"{engine}: no step of its profile could be matched to a kernel of the model; the profile names no known module")
    layers = [kernel for kernel in kernels if kernel.kind in LAYERS and (kernel.read or kernel.name in profile.shares)]
    unseen = [kernel for kernel in layers if kernel.name not in profile.shares]
    work = sum(_work(kernel, widths, ()) for kernel in layers)
    if unseen and sum(_work(kernel, widths, ()) for kernel in unseen) > _MOST * work:
        named = ", ".join(kernel.name for kernel in unseen[:4]) + (", ..." if unseen[4:] else "")
        raise EngineError(
            f"{engine}: no step of its profile could be matched to {len(unseen)} of the model's layers ({named}), which make more than "
            "half of its multiply-adds. Profiles name modules, so a convolution or matrix product must run in the forward of a module that "
            "the engine can name; run these layers as modules of their own (nn.Linear, nn.Conv2d), or take another engine"
        )
    return tuple(kernel.name for kernel in unseen)


def price_unseen(
    profile: MatchedProfile,
    kernels: Sequence[Kernel],
    names: Collection[str],
    widths: Mapping[str, int],
    removed_blocks: Collection[str] = (),
) -> MatchedProfile:
    """The profile with a price for the layers of ``names``: their multiply-adds at the rate of the network's other layers.

    Their time is in the profile already, booked on kernels beside them, so the sum stays what it was: the others give it up in proportion.
    What the price is wrong by shows in the residual of the tables, and their calibration on whole networks corrects it.

    Args:
        profile: Profile of one network.
        kernels: The model's kernels.
        names: Layers without a step, as ``unseen_layers`` names them for the dense network.
        widths: Group name -> width of this network.
        removed_blocks: Blocks that this network lacks.
    """
    if not names:
        return profile
    running = [kernel for kernel in kernels if kernel.kind in LAYERS and not set(kernel.blocks) & set(removed_blocks)]
    seen = [kernel for kernel in running if kernel.name in profile.shares and kernel.name not in names]
    work = sum(_work(kernel, widths, removed_blocks) for kernel in seen)
    if not work:
        return profile
    rate = sum(profile.shares[kernel.name].ms for kernel in seen) / work
    prices = {kernel.name: rate * _work(kernel, widths, removed_blocks) for kernel in running if kernel.name in names}
    total = sum(share.ms for share in profile.shares.values())
    left = total / (total + sum(prices.values())) if total else 1.0
    shares = {name: replace(share, ms=share.ms * left) for name, share in profile.shares.items() if name not in prices}
    shares |= {name: KernelShare(ms=price * left, attached=(PRICED,)) for name, price in prices.items()}
    return replace(profile, shares=shares)


def is_priced(signature: str) -> bool:
    """Whether a kernel's signature says that its time is a price."""
    return f'"{PRICED}"' in signature and PRICED in json.loads(signature).get("attached", ())


def _work(kernel: Kernel, widths: Mapping[str, int], removed_blocks: Collection[str]) -> float:
    """Multiply-adds of a kernel at ``widths``."""
    return kernel.macs * math.prod(axis.size(widths, removed_blocks) for axis in kernel.axes)
