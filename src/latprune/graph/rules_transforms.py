"""Rules for Fourier transforms, complex numbers, and the sliding windows of ``unfold`` and ``fold``."""

from __future__ import annotations

import torch

from latprune.graph.fields import varying
from latprune.graph.recording import Fields
from latprune.graph.rules import Step, register_rule

__all__: list[str] = []


@register_rule("aten::_fft_r2c", "aten::_fft_c2r", "aten::_fft_c2c")
def fourier(step: Step) -> Fields:
    """Transforms along dimensions without labels treat each channel by itself; along labelled ones they mix all of them."""
    source: torch.Tensor = step.args[0]
    dims = {d % source.dim() for d in step.args[1]}
    step.freeze((f for f in step.fields(source) if set(varying(f)) & dims), f"channels are transformed into frequencies by {step.place}")
    return tuple(f for f in step.fields(source) if not set(varying(f)) & dims)


@register_rule("aten::view_as_complex")
def as_complex(step: Step) -> Fields:
    """The last dimension, real and imaginary part, becomes one number."""
    source: torch.Tensor = step.args[0]
    step.freeze((f for f in step.fields(source) if f.shape[-1] > 1), "real and imaginary part of complex numbers")
    return tuple(f.squeeze(-1) for f in step.fields(source) if f.shape[-1] == 1)


@register_rule("aten::view_as_real")
def as_real(step: Step) -> Fields:
    """Real and imaginary part along a new last dimension."""
    return tuple(f.unsqueeze(-1) for f in step.fields(step.args[0]))


@register_rule("aten::im2col")
def unfold(step: Step) -> Fields:
    """``(batch, channels, h, w)`` to ``(batch, channels * window, places)``: each channel stands for its window."""
    source: torch.Tensor = step.args[0]
    window = step.out.shape[-2] // source.shape[-3]
    channel = source.dim() - 3
    result = []
    for f in step.fields(source):
        if varying(f) == (channel,):
            result.append(f.reshape([-1 if d == channel else 1 for d in range(source.dim() - 1)]).repeat_interleave(window, channel))
        else:
            step.freeze([f], f"channels vary along the image in {step.place}")
    return tuple(result)


@register_rule("aten::col2im")
def fold(step: Step) -> Fields:
    """The reverse: the places of a window are summed, so they carry one channel."""
    source: torch.Tensor = step.args[0]
    channels = step.out.shape[-3]
    channel = source.dim() - 2
    result = []
    for f in step.fields(source):
        if varying(f) == (channel,):
            rows = f.reshape(channels, -1)
            step.space.unite(rows, rows[:, :1].expand_as(rows))
            result.append(rows[:, 0].reshape([-1 if d == channel else 1 for d in range(step.out.dim())]))
        else:
            step.freeze([f], f"channels vary along the image in {step.place}")
    return tuple(result)
