"""Pooling, resizing and sampling of images."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from latprune.onnx_reader.operators.contractions import spatial_padding
from latprune.onnx_reader.operators.registry import Call, operator

__all__: list[str] = []


def _sided(before: list[int], after: list[int]) -> list[int]:
    """Padding of the last dimensions as PyTorch orders it."""
    return [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]


@operator("MaxPool")
def max_pool(call: Call) -> Tensor:
    """Maximum over windows."""
    x = call.tensor(0)
    kernel = [int(k) for k in call.get("kernel_shape")]
    rank = len(kernel)
    if any(call.node.outputs[1:]) or call.get("storage_order", 0):
        raise call.error("hands back indices")
    stride, dilation = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    before, after = spatial_padding(call, x, kernel, stride, dilation)
    if before != after or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        x = F.pad(x, _sided(before, after), value=float("-inf"))
        before = [0] * rank
    function: Any = (F.max_pool1d, F.max_pool2d, F.max_pool3d)[rank - 1]
    found: Tensor = function(x, kernel, list(stride), before, list(dilation), bool(call.get("ceil_mode", 0)))
    return found


@operator("AveragePool")
def average_pool(call: Call) -> Tensor:
    """Mean over windows."""
    x = call.tensor(0)
    kernel = [int(k) for k in call.get("kernel_shape")]
    rank = len(kernel)
    stride, dilation = call.get("strides") or [1] * rank, call.get("dilations") or [1] * rank
    if any(d != 1 for d in dilation):
        raise call.error("is dilated")
    before, after = spatial_padding(call, x, kernel, stride, dilation)
    counted = bool(call.get("count_include_pad", 0))
    if before != after:
        if not counted:
            raise call.error("pads its sides differently and does not count what it pads")
        x = F.pad(x, _sided(before, after))
        before = [0] * rank
    function: Any = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[rank - 1]
    found: Tensor = function(x, kernel, list(stride), before, bool(call.get("ceil_mode", 0)), counted)
    return found


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(call: Call) -> Tensor:
    """Over the whole image."""
    x = call.tensor(0)
    dims = list(range(2, x.dim()))
    return x.mean(dims, keepdim=True) if call.node.kind == "GlobalAveragePool" else x.amax(dims, keepdim=True)


@operator("Resize", "Upsample")
def resize(call: Call) -> Tensor:
    """Nearest, linear and cubic interpolation of images, with PyTorch's ways to place the samples."""
    x = call.tensor(0)
    rank = x.dim() - 2
    scales, sizes = _target(call, x)
    mode, places = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    if call.node.kind == "Upsample":
        places = "asymmetric"
    options: dict[str, Any] = {"size": sizes} if sizes is not None else {"scale_factor": scales}
    given = sizes if sizes is not None else [int(n * s) for n, s in zip(x.shape[2:], scales or [], strict=True)]
    if given == list(x.shape[2:]) and (scales is None or all(s == 1.0 for s in scales)):
        return x
    if mode == "nearest":
        name = _nearest(call, list(x.shape[2:]), given, places)
        found: Tensor = F.interpolate(x, mode=name, **options)
        return found
    names = {"linear": ("linear", "bilinear", "trilinear"), "cubic": ("", "bicubic", "")}.get(mode, ("", "", ""))
    name = names[rank - 1] if 1 <= rank <= 3 else ""
    corners = places == "align_corners"
    if not name or places not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise call.error(f"has mode '{mode}' with '{places}' in {rank} dimensions")
    if mode == "cubic" and (abs(call.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6 or call.get("exclude_outside", 0)):
        raise call.error("has cubic coefficients that PyTorch does not have")
    options["antialias"] = bool(call.get("antialias", 0))
    found = F.interpolate(x, mode=name, align_corners=corners, **options)
    return found


def _target(call: Call, x: Tensor) -> tuple[list[float] | None, list[int] | None]:
    """Scales or sizes of the spatial dimensions."""
    place = 1 if call.node.kind == "Upsample" else 2
    axes = [int(d) % x.dim() for d in call.get("axes") or range(x.dim())]
    if call.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise call.error("keeps the aspect ratio")
    if call.given(3) and call.node.kind == "Resize":
        whole = dict(zip(axes, call.integers(3, "sizes"), strict=True))
        if any(whole.get(d, x.shape[d]) != x.shape[d] for d in (1,)):
            raise call.error("resizes channels")
        return None, [whole.get(d, x.shape[d]) for d in range(2, x.dim())]
    scales = dict(zip(axes, [float(s) for s in call.array(place, "scales").reshape(-1)], strict=True))
    if scales.get(0, 1.0) != 1.0 or scales.get(1, 1.0) != 1.0:
        raise call.error("resizes channels")
    return [scales.get(d, 1.0) for d in range(2, x.dim())], None


def _nearest(call: Call, old: list[int], new: list[int], places: str) -> str:
    """PyTorch's name for a way to find the nearest sample."""
    way = "floor" if call.node.kind == "Upsample" else call.get("nearest_mode", "round_prefer_floor")
    if places == "asymmetric" and way == "floor":
        return "nearest"
    if places in ("half_pixel", "pytorch_half_pixel") and way in ("round_prefer_floor", "round_prefer_ceil"):
        return "nearest-exact"
    raise call.error(f"has nearest mode '{way}' with '{places}'")


@operator("GridSample")
def grid_sample(call: Call) -> Tensor:
    """Samples at given places."""
    mode = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic", "bicubic": "bicubic"}[
        call.get("mode", "linear")
    ]
    return F.grid_sample(call.tensor(0), call.tensor(1), mode, call.get("padding_mode", "zeros"), bool(call.get("align_corners", 0)))


@operator("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """Channels to places; ``CRD`` is PyTorch's pixel shuffle."""
    x, block = call.tensor(0), int(call.get("blocksize"))
    if call.get("mode", "DCR") == "CRD":
        return torch.pixel_shuffle(x, block)
    b, c, h, w = x.shape
    x = x.reshape(b, block, block, c // block**2, h, w).permute(0, 3, 4, 1, 5, 2)
    return x.reshape(b, c // block**2, h * block, w * block)


@operator("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """Places to channels."""
    x, block = call.tensor(0), int(call.get("blocksize"))
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // block, block, w // block, block).permute(0, 3, 5, 1, 2, 4)
    return x.reshape(b, c * block**2, h // block, w // block)
