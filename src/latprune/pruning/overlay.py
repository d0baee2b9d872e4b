"""What an exported network costs node by node, and how wide its layers still are, as files for graph viewers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from latprune.errors import EngineError
from latprune.export.node_data import with_node_properties, write_node_data
from latprune.extras import importing
from latprune.graph import trace
from latprune.latency import get_engine
from latprune.latency.engines.onnx_graph import module_paths
from latprune.latency.measuring.matching import match_profile
from latprune.latency.measuring.module_timers import Profiler
from latprune.latency.measuring.protocol import warm_up
from latprune.latency.measuring.sampling import profile_runs
from latprune.progress import stretch
from latprune.storage import write_atomic

if TYPE_CHECKING:
    from latprune.export.record import ResultRecord
    from latprune.graph import ModelGraph
    from latprune.latency import Target

__all__ = ["Overlay", "kept_shares", "kernel_times", "write_overlay"]

_TIME = ((0.0, "#fff7ec"), (0.5, "#fdbb84"), (1.0, "#b30000"))
_KEPT = ((0.0, "#b30000"), (0.5, "#fdbb84"), (1.0, "#f7fcf5"))
_CONTRACTIONS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlay:
    """What was written.

    Attributes:
        time: Node data of the milliseconds per kernel (Model Explorer).
        kept: Node data of the percentage of each layer's outputs that stayed (Model Explorer).
        annotated: The ONNX file with both as properties of its nodes (Netron).
        nodes: Nodes that have a figure.
        ms: Milliseconds that the nodes with a time have together.
        unplaced_ms: Milliseconds of kernels that no node of the file stands for.
    """

    time: Path
    kept: Path
    annotated: Path
    nodes: int
    ms: float
    unplaced_ms: float


def write_overlay(model: nn.Module, example_inputs: Any, onnx_file: str | Path, *, target: Target, record: ResultRecord) -> Overlay:
    """Profile a pruned network on its engine and write its figures beside its exported file.

    ``net.onnx`` gets ``net.time.json``, ``net.kept.json`` and ``net.overlay.onnx``. A kernel's time is that of its own step and of all that
    the engine fused into it or ran for it; it stands on the node of the kernel's contraction.

    Args:
        model: The pruned network, in evaluation mode.
        example_inputs: What it is run on.
        onnx_file: The exported file.
        target: Where its time is taken.
        record: The result's record: the dense network's sizes.

    Raises:
        EngineError: The engine has no profile of the network, or no node of the file can be told by its layer.
        MissingExtraError: ``onnx`` or the engine is not installed.
    """
    with importing("onnx", "onnx"):
        import onnx
    path = Path(onnx_file)
    data = path.read_bytes()
    graph = trace(model, example_inputs)
    places = _nodes_of_layers(onnx.load_from_string(data), graph, {name for name, _ in model.named_modules()})
    times = kernel_times(model, graph, example_inputs, target)
    kept = kept_shares(model, record)
    on_node = {places[name]: ms for name, ms in times.items() if name in places}
    layers = {places[kernel.name]: kernel.module for kernel in graph.kernels.values() if kernel.name in places}
    kept_on_node = {node: 100.0 * kept[layer][0] / kept[layer][1] for node, layer in layers.items() if layer in kept}
    if not on_node or not kept_on_node:
        raise EngineError(
            f"no node of {path} can be told by the layer that it computes; export it with latprune from a model whose layers are modules"
        )
    properties: dict[str, dict[str, str]] = defaultdict(dict)
    for node, ms in on_node.items():
        properties[node]["ms"] = f"{ms:.4f}"
    for node, layer in layers.items():
        if layer in kept:
            properties[node]["outputs_kept"] = f"{kept[layer][0]} of {kept[layer][1]}"
    annotated = path.with_suffix(".overlay.onnx")
    write_atomic(annotated, with_node_properties(data, properties))
    return Overlay(
        time=write_node_data(path.with_suffix(".time.json"), on_node, gradient=_TIME),
        kept=write_node_data(path.with_suffix(".kept.json"), kept_on_node, gradient=_KEPT),
        annotated=annotated,
        nodes=len(properties),
        ms=sum(on_node.values()),
        unplaced_ms=sum(ms for name, ms in times.items() if name not in places),
    )


def kernel_times(model: nn.Module, graph: ModelGraph, example_inputs: Any, target: Target) -> dict[str, float]:
    """Kernel name -> milliseconds of it in a profile of ``model`` on ``target``.

    Raises:
        EngineError: The engine cannot convert, run or profile the model.
    """
    engine = get_engine(target.engine)
    with stretch("profiling", timed=True), Profiler(engine, target).compile(model, example_inputs) as network:
        found = match_profile(network.profile(profile_runs(warm_up(network))), list(graph.kernels.values()), (), graph.dense_widths())
    return {name: share.ms for name, share in found.shares.items()}


def kept_shares(model: nn.Module, record: ResultRecord) -> dict[str, tuple[int, int]]:
    """Layer -> outputs that it has and had, told by the shapes of the weights, for layers whose weight the dense network had as well."""
    found = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        before = record.model.tensors.get(f"{name}.weight")
        if isinstance(weight, nn.Parameter) and before is not None and weight.dim() == len(before) and weight.dim() >= 2:
            transposed = isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
            groups = module.groups if transposed else 1
            dense_groups = groups * before[0] // weight.shape[0] if transposed and groups > 1 else groups
            axis = 1 if transposed else 0
            found[name] = (int(weight.shape[axis]) * groups, int(before[axis]) * dense_groups)
    return found


def _nodes_of_layers(proto: Any, graph: ModelGraph, modules: set[str]) -> Mapping[str, str]:
    """Kernel -> node of the file: the k-th contraction of a module is its k-th kernel; other kernels have the module's first node."""
    nodes: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name, module in module_paths(proto, modules).items():
        nodes[module].append((name, next(node.op_type for node in proto.graph.node if node.name == name)))
    taken: set[str] = set()
    found = {}
    for kernel in graph.kernels.values():
        if kernel.module is None:
            continue
        wanted = _CONTRACTIONS if kernel.kind in ("conv", "depthwise", "linear") else None
        for name, kind in nodes.get(kernel.module, ()):
            if name not in taken and (wanted is None or kind in wanted):
                taken.add(name)
                found[kernel.name] = name
                break
    return found
