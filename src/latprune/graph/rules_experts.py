"""Rule for the product of a mixture of experts: each row is multiplied by the matrix of the expert that it was sent to."""

from __future__ import annotations

import math

import torch

from latprune.graph.fields import varying
from latprune.graph.recording import Fields, KernelDraft
from latprune.graph.rules import Step, register_rule
from latprune.graph.rules_contract import reads_unlabelled

__all__: list[str] = []

_BYTES = 16
"""The kernel's matrices begin each row at a multiple of so many bytes."""
_NARROWEST = 2
"""Bytes of the narrowest type that it takes: what fits that one fits every type that the pruned network is brought into."""


@register_rule("aten::_grouped_mm")
def grouped_product(step: Step) -> Fields:
    """``(rows, in)`` by ``(experts, in, out)``: the inner channels meet, and the experts, which are chosen by number, stay."""
    rows, experts = step.args[0], step.args[1]
    if rows.dim() != 2 or experts.dim() != 3:
        for tensor in (rows, experts):
            step.freeze(step.fields(tensor), f"no rule for these ranks in {step.place}")
        return ()
    read = _along(step, rows, 1)
    inner, outer = _along(step, experts, 1), _along(step, experts, 2)
    if inner is not None and read is not None:
        step.space.unite(read, inner)
    elif inner is not None:
        step.freeze([inner], reads_unlabelled(step, step.info(rows)))
    elif read is not None:
        step.freeze([read], f"weights carry no channels in {step.place}")
    last = experts.stride(2) == 1
    _tie_runs(step, read)
    _tie_runs(step, outer if last else inner)
    for labels, role in ((inner, "consumer"), (outer, "producer")):
        if labels is not None:
            step.role(labels, role)
    axes: list[torch.Tensor | int] = [
        read if read is not None else rows.shape[1],
        outer if outer is not None else experts.shape[2],
    ]
    dense = math.prod(axis if isinstance(axis, int) else axis.numel() for axis in axes)
    macs = float(rows.numel()) * experts.shape[2]
    attributes = {"input_shape": list(rows.shape), "output_shape": list(step.out.shape), "bias": False}
    step.kernel = KernelDraft("linear", step.info(experts).name, axes, macs / max(dense, 1), attributes)
    return () if outer is None else (outer.reshape(1, -1),)


def _along(step: Step, tensor: torch.Tensor, dim: int) -> torch.Tensor | None:
    """The labels along ``dim``; those along other dimensions (rows, experts) stay when ``dim`` is the last that is asked for."""
    found = None
    for f in step.fields(tensor):
        if varying(f) == (dim,):
            found = f.reshape(-1)
        elif len(varying(f)) > 1 or varying(f) == (0,):
            step.freeze([f], f"rows and experts are chosen by number in {step.place}")
    return found


def _tie_runs(step: Step, labels: torch.Tensor | None) -> None:
    """Channels stay or go in runs that fill the kernel's alignment."""
    if labels is None:
        return
    run = _BYTES // _NARROWEST
    if labels.numel() % run:
        step.freeze([labels], f"{step.place} takes rows of a multiple of {run} channels")
        return
    runs = labels.reshape(-1, run)
    step.space.unite(runs[:, :1].expand_as(runs), runs)
