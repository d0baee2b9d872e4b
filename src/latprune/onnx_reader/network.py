"""A graph as a module: what is known before a run is computed by the reference implementation, everything else by PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latprune.errors import CaptureError
from latprune.onnx_reader.constants import Evaluator, folded_choice
from latprune.onnx_reader.graph import Array, Graph, Node
from latprune.onnx_reader.operators import OPERATORS, Call, Operand, as_tensor
from latprune.onnx_reader.simplify import weight_places

__all__ = ["OnnxModule", "require_known"]

_TENSOR_RESULTS = frozenset({"ConstantOfShape", "Expand", "Tile"})
"""Operators whose result may follow the batch size though its values are known: they are computed as tensors in more than one dimension."""


def require_known(graph: Graph) -> None:
    """Refuse operators that are not known, all in one message.

    Raises:
        CaptureError: There are such; names them with their numbers.
    """
    counts: dict[str, int] = {}
    for node in graph.every_node():
        if node.kind not in OPERATORS and node.kind != "If":
            counts[node.kind] = counts.get(node.kind, 0) + 1
    if counts:
        listed = ", ".join(f"{kind} ({number})" for kind, number in sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        raise CaptureError(
            f"the model has operators that are not read: {listed}. Export it without them (post-processing and quantisation come after "
            "pruning), or give the PyTorch model itself"
        )


class _Scope(nn.Module):
    """Stands where a module of the exported model stood: holds its tensors, and its operations run in its name."""

    def forward(self, run: Callable[[], Any]) -> Any:
        return run()


class OnnxModule(nn.Module):
    """A network that runs the operations of an ONNX graph.

    Args:
        graph: The graph, simplified; its operators are known.
        names: File's names of held tensors -> dotted names.
        held: File's names of held tensors -> ``parameter`` or ``buffer``.
        paths: Identity of a node -> path of the module that it runs in.
        fixed_batch: The batch size that the graph's constant sizes state, where they do; at other batch sizes they follow.
    """

    def __init__(
        self, graph: Graph, names: Mapping[str, str], held: Mapping[str, str], paths: Mapping[int, str], fixed_batch: int | None
    ) -> None:
        super().__init__()
        self.graph = graph
        self.fixed_batch = fixed_batch
        self._names = dict(names)
        self._scopes: dict[int, nn.Module] = {}
        self._evaluate = Evaluator(graph.opset)
        self._constants: dict[str, Tensor] = {}
        self._stated: dict[str, tuple[int, ...]] = {}
        self._remembers = True
        self._outside: dict[str, int] = {}
        self._follows = _following(graph)
        self._ends = _ends(graph)
        kinds = _kinds(graph, paths)
        for path in sorted({p for p in paths.values() if p} | {n.rpartition(".")[0] for n in names.values()}):
            self._scope(path, kinds)
        for node in graph.every_node():
            self._scopes[id(node)] = self.get_submodule(paths[id(node)])
        for name, dotted in names.items():
            owner, _, leaf = dotted.rpartition(".")
            tensor, holder = as_tensor(graph.tensors[name]), self.get_submodule(owner)
            if held[name] == "parameter":
                holder.register_parameter(leaf, nn.Parameter(tensor))
            else:
                holder.register_buffer(leaf, tensor)
                if leaf == "running_var":
                    holder.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64))

    def _scope(self, path: str, kinds: Mapping[str, type[_Scope]]) -> None:
        parent: nn.Module = self
        done = ""
        for part in path.split(".") if path else []:
            done = f"{done}.{part}" if done else part
            if part not in parent._modules:
                parent.add_module(part, kinds.get(done, _Scope)())
            parent = parent._modules[part]  # type: ignore[assignment]

    # -- running ---------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor) -> Any:
        """Run the graph; one tensor for one output, else a tuple."""
        values: dict[str, Operand] = dict(self.graph.tensors)
        values.update((entry.name, tensor) for entry, tensor in zip(self.graph.inputs, inputs, strict=True))
        for name, dotted in self._names.items():
            owner, _, leaf = dotted.rpartition(".")
            values[name] = getattr(self.get_submodule(owner), leaf)
        batch = int(inputs[0].shape[0]) if inputs and inputs[0].dim() else 0
        other = self.fixed_batch is not None and batch != self.fixed_batch
        if other and not self._stated:
            raise CaptureError(f"the model states its sizes for a batch of {self.fixed_batch}, and they cannot follow another one")
        self._outside = {}
        if not other:
            self._stated = {name: tuple(v.shape) for name, v in values.items()} if self.fixed_batch is not None and self._remembers else {}
        self._run(self.graph.nodes, values, other)
        found = [self._tensor(name, values) for name in self.graph.outputs]
        return found[0] if len(found) == 1 else tuple(found)

    def stay(self) -> None:
        """Run at the file's own batch size alone from now on."""
        self._stated, self._remembers = {}, False

    def _tensor(self, name: str, values: Mapping[str, Operand]) -> Tensor:
        found = values[name]
        return found if isinstance(found, Tensor) else self._constant(name, found)

    def _constant(self, name: str, array: Array) -> Tensor:
        if self.graph.tensors.get(name) is not array:
            return as_tensor(array)
        if name not in self._constants:
            self._constants[name] = as_tensor(array)
        return self._constants[name]

    def _run(self, nodes: Sequence[Node], values: dict[str, Operand], other: bool) -> None:
        for node in nodes:
            operands = [values[name] if name else None for name in node.inputs]
            if node.kind == "If":
                self._choose(node, operands, values, other)
                continue
            if all(not isinstance(operand, Tensor) for operand in operands) and not _as_tensor_result(node, operands):
                try:
                    results: Sequence[Any] = self._evaluate(node, operands)  # type: ignore[arg-type]
                except CaptureError:
                    results = self._call(node, operands, other)  # the reference implementation has mistakes of its own (GatherElements)
            else:
                results = self._call(node, operands, other)
            for name, result in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = result
                    if self._stated and not other:
                        self._stated[name] = tuple(result.shape)
            for name in self._ends.get(id(node), ()):
                values.pop(name, None)

    def _choose(self, node: Node, operands: Sequence[Operand | None], values: dict[str, Operand], other: bool) -> None:
        known = operands[0]
        if not isinstance(known, np.ndarray):
            raise CaptureError(
                f"ONNX operator If '{node.name}' decides by values of the inputs; a pruned network has one course. Export it without"
            )
        branch = folded_choice(node, known)
        self._run(branch.nodes, values, other)
        values.update((name, values[inner]) for name, inner in zip(node.outputs, branch.outputs, strict=True) if name)

    def _call(self, node: Node, operands: Sequence[Operand | None], other: bool) -> Sequence[Any]:
        stated = None
        if other and node.outputs[0] in self._stated:
            stated = ([self._stated.get(name, ()) for name in node.inputs], self._stated[node.outputs[0]])
        call = Call(
            node=node,
            operands=operands,
            opset=self.graph.opset,
            constant=self._constant,
            follows=[name in self._follows for name in node.inputs],
            stated=stated,
            outside=max((self._outside.get(name, 1) for name in node.inputs), default=1),
        )
        scope = self._scopes[id(node)]
        found = self._compute(call) if scope is self else scope(lambda: self._compute(call))
        if call.outside > 1:
            self._outside.update(dict.fromkeys(node.outputs, call.outside))
        return found if isinstance(found, tuple) else (found,)

    @staticmethod
    def _compute(call: Call) -> Any:
        try:
            return OPERATORS[call.node.kind](call)
        except CaptureError:
            raise
        except (RuntimeError, TypeError, ValueError, IndexError, AssertionError, KeyError) as error:
            raise call.error(f"fails in PyTorch ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})") from error


def _as_tensor_result(node: Node, operands: Sequence[Operand | None]) -> bool:
    """Whether the result of known values is made as a tensor all the same."""
    if node.kind not in _TENSOR_RESULTS:
        return False
    sizes = operands[0] if node.kind == "ConstantOfShape" else operands[1]
    return isinstance(sizes, np.ndarray) and sizes.size > 1


def _following(graph: Graph) -> set[str]:
    """Names of the values that depend on the inputs."""
    found = {entry.name for entry in graph.inputs}
    for node in graph.every_node():
        if found & set(node.reads()):
            found |= {name for name in node.outputs if name}
            found |= {name for branch in node.branches() for name in branch.outputs if name in found}
    return found


def _ends(graph: Graph) -> dict[int, list[str]]:
    """For each node, the values that it is the last one to read."""
    last = {name: id(node) for node in graph.nodes for name in node.reads()}
    found: dict[int, list[str]] = {}
    for name, node in last.items():
        if name not in graph.outputs and name not in graph.tensors:
            found.setdefault(node, []).append(name)
    return found


def _kinds(graph: Graph, paths: Mapping[int, str]) -> dict[str, type[_Scope]]:
    """A class for each module, called after the operator whose weights it holds, so that reports name it."""
    made: dict[str, type[_Scope]] = {}
    found: dict[str, type[_Scope]] = {}
    for node in graph.every_node():
        if weight_places(node.kind) and node.kind != "MatMul":
            found[paths[id(node)]] = made.setdefault(node.kind, type(node.kind, (_Scope,), {}))
    return found
