"""Rules for contractions: what they consume, what they produce."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from latprune.graph.combine import meet, reduce, unite_own
from latprune.graph.fields import varying
from latprune.graph.recording import Fields, Info, KernelDraft
from latprune.graph.rules import Step, register_rule
from latprune.graph.rules_compute import met_extents, state_size_met
from latprune.graph.rules_creating import settle_sizes

__all__ = ["ATTENTION"]

ATTENTION = frozenset(
    f"aten::{name}"
    for name in (
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable"
    ).split()
)


def _one(fields: Fields, dim: int) -> torch.Tensor | None:
    for f in fields:
        if dim in varying(f):
            return f
    return None


def _axis(fields: Fields, dim: int, size: int) -> torch.Tensor | int:
    f = _one(fields, dim)
    return size if f is None else f.reshape(-1)


def _spread(step: Step, fields: Fields, keep: int) -> Fields:
    """Fields along ``keep`` alone: labels that also vary along other dimensions are united over those."""
    result = []
    for f in fields:
        dims = varying(f)
        if keep in dims and len(dims) > 1:
            first = f
            for d in dims:
                if d != keep:
                    first = first.narrow(d, 0, 1)
            step.space.unite(f, first.expand_as(f))
            result.append(first)
        else:
            result.append(f)
    return tuple(result)


def reads_unlabelled(step: Step, source: Info) -> str:
    """Why the input channels of a layer stay."""
    if source.node == -2:
        return "reads the network's input"
    return f"reads values that carry no channels in {step.place}"


def _freeze_reader(step: Step, f: torch.Tensor | None, source: torch.Tensor) -> None:
    if f is not None:
        step.space.freeze(f, reads_unlabelled(step, step.info(source)))


@register_rule("aten::convolution", "aten::_convolution", "aten::conv2d", "aten::conv1d", "aten::conv3d", "aten::mkldnn_convolution")
def convolution(step: Step) -> Fields:
    """Convolutions of any rank, transposed, grouped and depthwise."""
    x, weight, bias = step.args[0], step.args[1], step.args[2]
    stride, padding, dilation, transposed = step.args[3], step.args[4], step.args[5], step.args[6]
    groups = step.args[8]
    out: torch.Tensor = step.out
    channels_in, channels_out = x.shape[1], out.shape[1]
    x_fields = _spread(step, step.fields(x), 1)
    pointwise = tuple(x.shape[2:]) == tuple(out.shape[2:]) and all(n == 1 for n in weight.shape[2:])
    passing: list[torch.Tensor] = []
    for f in x_fields:
        if 1 in varying(f):
            continue
        if pointwise or varying(f) == (0,):
            passing.append(f)  # a position of its own, in the image or in the batch
        else:
            step.freeze([f], f"channels vary along the image in {step.place}")
    along = [f for f in x_fields if 1 in varying(f)]
    fin = unite_own(step.space, along, step.place) if along else None
    w_fields = _apart(step, weight, groups)
    w0, w1 = _one(w_fields, 0), _one(w_fields, 1)
    bias_field = _one(step.fields(bias), 0) if bias is not None else None
    rank = out.dim()
    shape_out = [1, channels_out] + [1] * (rank - 2)
    name = _parameter(step, weight, w0)
    kernel_size = list(weight.shape[2:])
    macs = float(out.numel()) * (channels_in // groups) * math.prod(kernel_size)
    if transposed:
        macs = float(x.numel()) * (channels_out // groups) * math.prod(kernel_size)
    kind = "conv"
    produced: torch.Tensor | None
    in_axis: torch.Tensor | int
    if groups == 1:
        consumer, producer = (w0, w1) if transposed else (w1, w0)
        if consumer is not None and fin is not None:
            step.space.unite(fin.reshape(-1), consumer.reshape(-1))
            step.role(consumer, "consumer")
        elif consumer is not None:
            _freeze_reader(step, consumer, x)
        elif fin is not None:
            step.freeze([fin], f"weights carry no channels in {step.place}")
        produced = producer.reshape(shape_out) if producer is not None else None
        if producer is not None:
            step.role(producer, "producer")
        in_axis = fin.reshape(-1) if fin is not None else channels_in
        axes: list[torch.Tensor | int] = [in_axis, produced.reshape(-1) if produced is not None else channels_out]
    elif groups == channels_in and w0 is not None and (not transposed or name is not None):
        kind = "depthwise"
        per = channels_out // groups
        # A transposed one has a row for each channel, with all that is made of it; another has a row for each of those.
        made = w0.reshape(groups, 1).expand(groups, per) if transposed else w0.reshape(groups, per)
        if transposed and w1 is not None:
            step.space.freeze(w1, f"how many channels are made of each in {step.place}")
        _state_groups(step, made)
        if fin is None:
            step.space.freeze(w0, reads_unlabelled(step, step.info(x)))
        else:
            step.space.unite(fin.reshape(groups, 1).expand(groups, per), made)
        step.role(w0, "depthwise")
        produced = made.reshape(shape_out)
        axes = [produced.reshape(-1)]
    else:
        produced, axes = _grouped(step, x, name, fin, w0, w1, groups, transposed, shape_out)
    if bias_field is not None and produced is not None:
        step.space.unite(produced.reshape(-1), bias_field.reshape(-1))
        step.role(bias_field, "bias")
    dense = math.prod(a if isinstance(a, int) else a.numel() for a in axes)
    step.kernel = KernelDraft(
        kind,
        name,
        axes,
        macs / dense,
        {
            "kernel_size": kernel_size,
            "stride": list(stride),
            "padding": list(padding),
            "dilation": list(dilation),
            "groups": groups,
            "transposed": bool(transposed),
            "bias": bias is not None,
            "input_shape": list(x.shape),
            "output_shape": list(out.shape),
        },
    )
    return tuple(passing) if produced is None else (produced, *passing)


def _apart(step: Step, weight: torch.Tensor, groups: int) -> Fields:
    """The fields of a weight along its filters and along their inputs; of a grouped one, the latter may differ from group to group.

    Filters that a layer makes (a hypernetwork, dynamic convolution) have a channel of that layer at each of their places. These stay.
    """
    found = []
    for field in step.fields(weight):
        dims = varying(field)
        if len(dims) == 1 or (groups > 1 and dims == (0, 1) and _one(step.fields(weight), 0) is not field):
            found.append(field)
        else:
            step.space.freeze(field, f"made into filters, each place a channel, in {step.place}")
    return tuple(found)


def _parameter(step: Step, weight: torch.Tensor, first: torch.Tensor | None) -> str | None:
    """The parameter that a weight is, or that it is computed from place by place (a standardised weight)."""
    info = step.info(weight)
    if info.name is not None or info.dynamic or first is None:
        return info.name
    owner = step.recorder.owner(first)
    if owner is None or owner[1] != 0 or step.recorder.tensor_shapes[owner[0]] != tuple(weight.shape):
        return None
    own = step.recorder.tensor_labels[owner[0]][0]
    return owner[0] if own is not None and torch.equal(own, first.reshape(-1)) else None


def _state_groups(step: Step, rows: torch.Tensor) -> None:
    """The number of groups that the forward gives is that of the ``rows`` ``(groups, channels of one)``."""
    call = step.recorder.watcher.arguments(*(f"conv{kind}{rank}d" for kind in ("", "_transpose") for rank in (1, 2, 3)))
    if call is not None:
        stated = call[0][6] if len(call[0]) > 6 else call[1].get("groups", 1)
        step.recorder.state_size(stated, rows[None], rows.shape[0], step.place)


def _grouped(
    step: Step,
    x: torch.Tensor,
    name: str | None,
    fin: torch.Tensor | None,
    w0: torch.Tensor | None,
    w1: torch.Tensor | None,
    groups: int,
    transposed: bool,
    shape_out: list[int],
) -> tuple[torch.Tensor | None, list[torch.Tensor | int]]:
    """Grouped convolution: each group reads its own input channels; groups go whole or keep equal counts inside."""
    per_in, per_out = x.shape[1] // groups, shape_out[1] // groups
    apart = w1 is not None and w1.shape[0] > 1  # labels of its own for each group: a weight that the module computes with
    if apart and w1 is not None:
        every = w1.reshape(groups, per_out, per_in)
        if not bool((every == every[:, :1]).all()):
            name = None
    if transposed and fin is not None and w0 is not None and w1 is not None and name is not None:
        return _grouped_transposed(step, fin, w0, w1, groups, shape_out)
    if fin is None or w0 is None or transposed or name is None:
        reason = f"a grouped convolution over derived or unlabelled values in {step.place}"
        for f in (fin, w0, w1):
            if f is not None:
                step.space.freeze(f, reason)
        produced = None if w0 is None or transposed else w0.reshape(shape_out)
        return produced, [x.shape[1] // groups, shape_out[1]]
    rows_in, rows_out = fin.reshape(groups, per_in), w0.reshape(groups, per_out)
    _state_groups(step, rows_in)
    coarse = step.space.fresh(groups, "bundle", step.place)
    step.space.bundle(coarse.reshape(groups, 1), rows_in)
    step.space.bundle(coarse.reshape(groups, 1), rows_out)
    if per_in > 1:
        step.space.grid(rows_in, step.place)
    if per_out > 1:
        step.space.grid(rows_out, step.place)
    if apart and w1 is not None:
        step.space.unite(rows_in, w1.reshape(groups, per_out, per_in)[:, 0])
    step.recorder.grouped[name] = rows_in
    step.role(w0, "producer")
    if w1 is not None:
        step.role(w1, "consumer")
    axes: list[torch.Tensor | int] = [rows_in[0] if per_in > 1 else 1, w0.reshape(-1)]
    return w0.reshape(shape_out), axes


def _grouped_transposed(
    step: Step, fin: torch.Tensor, w0: torch.Tensor, w1: torch.Tensor, groups: int, shape_out: list[int]
) -> tuple[torch.Tensor | None, list[torch.Tensor | int]]:
    """Transposed grouped convolution, weight ``(in, out of one group, ...)``: all groups make the same channels of theirs, and stay."""
    rows = w0.reshape(groups, -1)
    step.space.unite(fin.reshape(-1), w0.reshape(-1))
    step.space.grid(rows, step.place)
    step.role(w0, "consumer")
    step.role(w1, "producer")
    produced = w1.reshape(1, -1).expand(groups, -1).reshape(shape_out)
    axes: list[torch.Tensor | int] = [rows[0] if rows.shape[1] > 1 else 1, produced.reshape(-1)]
    return produced, axes


@register_rule("aten::addmm", "aten::mm", "aten::linear", "aten::matmul", "aten::mv", "aten::addmv")
def matrix_product(step: Step) -> Fields:
    """``[bias +] A @ B`` in two dimensions."""
    bias, a, b = (step.args[0], step.args[1], step.args[2]) if "add" in step.func._schema.name else (None, step.args[0], step.args[1])
    if a.dim() != 2 or b.dim() not in (1, 2):
        for t in (a, b):
            step.freeze(step.fields(t), f"no rule for these ranks in {step.place}")
        return ()
    return _contract(step, a, b if b.dim() == 2 else b.reshape(-1, 1), bias, batched=False)


@register_rule("aten::bmm", "aten::baddbmm")
def batched_product(step: Step) -> Fields:
    """``[c +] A @ B`` for each place of the batch (heads merged into it stay visible in the labels)."""
    if "badd" in step.func._schema.name:
        return _contract(step, step.args[1], step.args[2], step.args[0], batched=True)
    return _contract(step, step.args[0], step.args[1], None, batched=True)


def _contract(step: Step, a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor | None, *, batched: bool) -> Fields:
    k = a.dim() - 1
    rank = a.dim() + 1
    info_a, info_b = step.info(a), step.info(b)
    fields_a, fields_b = info_a.fields, info_b.fields
    if not batched:
        fields_a, fields_b = _spread(step, fields_a, 1), _spread(step, fields_b, 0)
    wide_a = tuple(f.unsqueeze(-1) for f in fields_a)
    wide_b = tuple(f.unsqueeze(-3) for f in fields_b)
    for fields, other, info, dim in ((wide_a, wide_b, info_b, k), (wide_b, wide_a, info_a, k)):
        f = _one(fields, dim)
        if f is not None and _one(other, dim) is None and a.shape[-1] > 1:
            reason = reads_unlabelled(step, info)
            step.space.freeze(f, reason)
    met = meet(step.space, [(wide_a, (*a.shape, 1)), (wide_b, (*b.shape[:-2], 1, *b.shape[-2:]))], rank, step.place)
    result = reduce(step.space, met, (k,), rank, False, step.place)
    weight = (
        info_b if info_b.name is not None and not info_b.dynamic else info_a if info_a.name is not None and not info_a.dynamic else None
    )
    if weight is not None:
        first = weight is info_a
        inner = _one(weight.fields, 1 if first else k - 1)
        outer = _one(weight.fields, 0 if first else k)
        if inner is not None:
            step.role(inner, "consumer")
        if outer is not None:
            step.role(outer, "producer")
    if bias is not None:
        result = meet(step.space, [(result, tuple(step.out.shape)), (step.fields(bias), tuple(bias.shape))], step.out.dim(), step.place)
        for f in step.fields(bias):
            if not step.info(bias).dynamic:
                step.role(f, "bias")
    step.kernel = _product_kernel(step, a, b, wide_a, wide_b, weight, k, bias is not None)
    return result


def _product_kernel(
    step: Step, a: torch.Tensor, b: torch.Tensor, wide_a: Fields, wide_b: Fields, weight: Info | None, k: int, bias: bool
) -> KernelDraft:
    macs = float(a.numel()) * b.shape[-1]
    extents = {k - 1: a.shape[-2], k: a.shape[-1], k + 1: b.shape[-1]}
    flipped = weight is step.info(a)
    # What a layer with weights is run for, then what it reads, then what it makes.
    order = (k + 1, k, k - 1) if flipped else (k - 1, k, k + 1)
    axes = _product_axes((*wide_a, *wide_b), order, extents, layer=weight is not None)
    kind = "linear" if weight is not None else "matmul"
    dense = math.prod(n if isinstance(n, int) else n.numel() for n in axes)
    attributes: dict[str, Any] = {"input_shape": list(a.shape), "output_shape": list(step.out.shape), "bias": bias}
    return KernelDraft(kind, weight.name if weight is not None else None, axes, macs / max(dense, 1), attributes)


def _product_axes(fields: Fields, order: tuple[int, int, int], extents: Mapping[int, int], *, layer: bool) -> list[torch.Tensor | int]:
    """What the multiply-adds of a product go with: each of its dimensions that carries channels.

    Args:
        fields: Those of both operands in ``(batch..., rows, inner, columns)``.
        order: The last three dimensions, in the order of the kernel's axes.
        extents: Their sizes.
        layer: Whether it has weights: what it reads and makes are axes then, whether or not they carry channels.

    Returns:
        At least one axis. Channels along the batch (heads) count once: with those of the first field that varies along it too.
    """
    axes: list[torch.Tensor | int] = []
    first = min(order)
    batched = next((f for f in fields if varying(f) and max(varying(f)) < first), None)
    merged = batched is not None
    if batched is not None:
        axes.append(batched.reshape(-1))
    for place, dim in enumerate(order):
        field = _one(fields, dim)
        if field is not None and varying(field) != (dim,):
            field, merged = None if merged else field, True
        if field is not None:
            axes.append(field.reshape(-1))
        elif layer and place:
            axes.append(extents[dim])
    return axes or [extents[order[-1]]]


@register_rule(*ATTENTION)
def attention(step: Step) -> Any:
    """Scaled dot-product attention, ``(batch, heads, tokens, head_dim)`` each."""
    q, key, value = step.args[:3]
    settle_sizes(step, (q, key, value))
    rank = q.dim()
    place = step.place
    fields = []
    for t in (q, key, value):
        kept = []
        for f in step.fields(t):
            if f.shape[rank - 2] > 1:
                step.freeze([f], f"labels vary along the tokens in {place}")
            else:
                kept.append(f)
        fields.append(tuple(kept))
    shapes = [tuple(1 if d == rank - 2 else n for d, n in enumerate(t.shape)) for t in (q, key, value)]
    repeat = q.shape[1] // key.shape[1] if rank == 4 and key.shape[1] else 1
    if repeat > 1:
        # Grouped queries: each key and value head serves `repeat` query heads that stand together.
        for k in (1, 2):
            fields[k] = tuple(f.repeat_interleave(repeat, 1) if f.shape[1] > 1 else f for f in fields[k])
            shapes[k] = (shapes[k][0], shapes[k][1] * repeat, *shapes[k][2:])
    met = meet(step.space, [(fields[0], shapes[0]), (fields[1], shapes[1])], rank, place)
    scores = reduce(step.space, met, (rank - 1,), rank, True, place)
    result = meet(step.space, [(scores, (*shapes[0][:-1], 1)), (fields[2], shapes[2])], rank, place)
    mask = step.kwargs.get("attn_mask", step.args[3] if len(step.args) > 3 else None)
    if isinstance(mask, torch.Tensor):
        # A mask with one layer per head that carries no heads of its own holds their number, but for zeros of a size that the code states.
        met = meet(step.space, [(scores, (*shapes[0][:-1], 1)), (step.fields(mask), met_extents(step, mask))], rank, place)
        for sized in step.info(mask).sized:
            state_size_met(step, mask, sized, met)
    inner = _axis(fields[0], rank - 1, q.shape[-1])
    outer = _axis(fields[2], rank - 1, value.shape[-1])
    parts = [n if isinstance(n, int) else n.numel() for n in (inner, outer)]
    tokens = float(q.numel() // q.shape[-1]) * key.shape[-2]
    # One axis, the sum of what the scores contract and what the values carry: that makes the multiply-adds exact.
    step.kernel = KernelDraft(
        "attention",
        None,
        [(inner, outer)],
        tokens * (q.shape[-1] + value.shape[-1]) / sum(parts),
        {"input_shape": list(q.shape), "key_shape": list(key.shape), "output_shape": list(q.shape[:-1]) + [value.shape[-1]]},
    )
    return [result]


@register_rule("aten::embedding")
def embedding(step: Step) -> Fields:
    """A table looked up by row: the columns are produced, the rows are the vocabulary and stay."""
    weight, index = step.args[0], step.args[1]
    rows, columns = _one(step.fields(weight), 0), _one(step.fields(weight), 1)
    if rows is not None:
        step.freeze([rows], "the rows of an embedding are its vocabulary")
    if columns is None or len(varying(columns)) > 1:  # a table that is computed, with a channel at each of its places
        return ()
    step.role(columns, "producer")
    step.kernel = KernelDraft("embedding", step.info(weight).name, [columns.reshape(-1)], 0.0, {"output_shape": list(step.out.shape)})
    return (columns.reshape([1] * index.dim() + [-1]),)


@register_rule("aten::mkldnn_rnn_layer")
def fused_recurrent(step: Step) -> list[Fields]:
    """A whole recurrent layer: it reads its input by the input weights; its state carries no channels that could go."""
    source, weight = step.args[0], step.args[1]
    place = step.place
    given, reader = _one(step.fields(source), source.dim() - 1), _one(step.fields(weight), 1)
    if reader is not None and given is not None:
        step.space.unite(given.reshape(-1), reader.reshape(-1))
    elif reader is not None:
        _freeze_reader(step, reader, source)
    for tensor in step.args:
        if isinstance(tensor, torch.Tensor):
            if tensor.dim() == 2 and step.info(tensor).name is not None:
                for f in step.fields(tensor):
                    step.role(f, "producer" if f.shape[0] > 1 else "consumer")
            step.freeze((f for f in step.fields(tensor) if f is not given and f is not reader), f"read by {place}")
    if given is not None and varying(given) != (source.dim() - 1,):
        step.freeze([given], f"channels vary along other dimensions in {place}")
    return [()] * len(step.out)
