"""Operators that pick by index, and reductions."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.onnx_reader.operators.registry import Call, as_tensor, operator
from latprune.onnx_reader.operators.shapes import restated

__all__: list[str] = []


@operator("Gather")
def gather(call: Call) -> Tensor:
    """Entries along an axis: one, a run of them, a table looked up, or any."""
    x = call.tensor(0)
    axis = call.get("axis", 0) % x.dim()
    indices = call.operands[1]
    if isinstance(indices, np.ndarray):
        at = np.where(indices < 0, indices + x.shape[axis], indices)
        whole = call.stated[0][0] if call.stated is not None else tuple(x.shape)
        if x.dim() == 1 and at.size == whole[0] and (at.reshape(-1) == np.arange(at.size)).all():
            return restated(call, x, list(at.shape))  # strides that a memory format changed: nothing is picked
        if at.ndim == 0:
            return x.select(axis, int(at))
        if at.ndim == 1 and at.size and (np.diff(at) == 1).all():
            return x[(slice(None),) * axis + (slice(int(at[0]), int(at[-1]) + 1),)]
        if at.ndim == 1:
            return x.index_select(axis, as_tensor(at.astype(np.int64)).to(x.device))
        return x[(slice(None),) * axis + (as_tensor(at.astype(np.int64)).to(x.device),)]
    index = call.tensor(1).long()
    if axis == 0 and x.dim() == 2 and not call.follows[0]:
        return F.embedding(index, x)
    return x[(slice(None),) * axis + (index,)]


@operator("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """One entry along an axis for each place."""
    x = call.tensor(0)
    return torch.gather(x, call.get("axis", 0) % x.dim(), call.tensor(1).long())


@operator("GatherND")
def gather_nd(call: Call) -> Tensor:
    """Entries by several coordinates."""
    if call.get("batch_dims", 0):
        raise call.error("has batch dimensions")
    return call.tensor(0)[tuple(call.tensor(1).long().unbind(-1))]


@operator("ScatterND")
def scatter_nd(call: Call) -> Tensor:
    """Entries by several coordinates, replaced."""
    if call.get("reduction", "none") != "none":
        raise call.error("adds to what it replaces")
    return torch.index_put(call.tensor(0), tuple(call.tensor(1).long().unbind(-1)), call.tensor(2))


@operator("ScatterElements")
def scatter_elements(call: Call) -> Tensor:
    """One entry along an axis for each place, replaced."""
    if call.get("reduction", "none") != "none":
        raise call.error("adds to what it replaces")
    x = call.tensor(0)
    return torch.scatter(x, call.get("axis", 0) % x.dim(), call.tensor(1).long(), call.tensor(2))


@operator("OneHot")
def one_hot(call: Call) -> Tensor:
    """Ones at given places."""
    depth = int(call.array(1, "a depth").reshape(-1)[0])
    off, on = (v.item() for v in call.array(2, "values").reshape(-1))
    index = call.tensor(0).long()
    axis = call.get("axis", -1) % (index.dim() + 1)
    places = torch.arange(depth, device=index.device).reshape([-1] + [1] * (index.dim() - axis))
    hit = index.unsqueeze(axis).remainder(depth) == places
    return torch.where(hit, torch.full((), on), torch.full((), off)).to(call.tensor(2).dtype)


@operator("CumSum")
def cumsum(call: Call) -> Tensor:
    """Running sums."""
    if call.get("exclusive", 0) or call.get("reverse", 0):
        raise call.error("is exclusive, or runs backwards")
    return torch.cumsum(call.tensor(0), int(call.array(1, "an axis").reshape(-1)[0]))


@operator("ArgMax", "ArgMin")
def arg_extremum(call: Call) -> Tensor:
    """The place of the largest or smallest value."""
    if call.get("select_last_index", 0):
        raise call.error("takes the last of several")
    function = torch.argmax if call.node.kind == "ArgMax" else torch.argmin
    return function(call.tensor(0), call.get("axis", 0), bool(call.get("keepdims", 1)))


@operator("TopK")
def top_k(call: Call) -> tuple[Tensor, Tensor]:
    """The largest (or smallest) values and their places."""
    count = int(call.array(1, "a count").reshape(-1)[0])
    values, places = torch.topk(call.tensor(0), count, call.get("axis", -1), bool(call.get("largest", 1)), bool(call.get("sorted", 1)))
    return values, places


@operator(
    "ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp", "ReduceSumSquare",
    "ReduceLogSum",
)  # fmt: skip
def reduction(call: Call) -> Tensor:
    """Over axes; over all where there are none."""
    x = call.tensor(0)
    axes = call.axes(1, x.dim())
    keep = bool(call.get("keepdims", 1))
    if not axes:
        if call.get("noop_with_empty_axes", 0):
            return x
        axes = list(range(x.dim()))
    kind = call.node.kind.removeprefix("Reduce")
    if kind == "Prod":
        for axis in sorted(axes, reverse=True):
            x = torch.prod(x, axis, keep)
        return x
    if kind in ("L1", "L2"):
        norm: Tensor = torch.linalg.vector_norm(x, int(kind[1]), axes, keep)
        return norm
    x = x.square() if kind == "SumSquare" else x
    functions = {"Mean": torch.mean, "Max": torch.amax, "Min": torch.amin, "LogSumExp": torch.logsumexp}
    found: Tensor = functions.get(kind, torch.sum)(x, axes, keep)  # type: ignore[operator]
    return found.log() if kind == "LogSum" else found


@operator("Range", "NonZero", "EyeLike")
def known_only(call: Call) -> Tensor:
    """Tensors whose size or values must be known before a run; where they are, this is not called."""
    raise call.error("depends on the values of the inputs")
