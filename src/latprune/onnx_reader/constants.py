"""Operations on what is known before a run: computed by the reference implementation that the ``onnx`` package brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from latprune.errors import CaptureError
from latprune.onnx_reader.graph import Array, Branch, Graph, Node
from latprune.onnx_reader.operators import OPERATORS

__all__ = ["TENSORS_ALONE", "Evaluator", "fold", "folded_choice"]

TENSORS_ALONE = frozenset({"Linear"})
"""Operators of the reader's own, which the reference implementation does not have."""
_RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial"})
_MOST = 1 << 22
"""Elements that a folded result may have; larger ones stay operations."""


class Evaluator:
    """Runs single nodes on arrays; each is prepared once."""

    def __init__(self, opset: int) -> None:
        self._opset = opset
        self._prepared: dict[int, tuple[Node, Callable[..., Any]]] = {}

    def __call__(self, node: Node, operands: Sequence[Array | None]) -> list[Array]:
        """The results of a node.

        Raises:
            CaptureError: The reference implementation cannot run it.
        """
        known = self._prepared.get(id(node))
        if known is None:
            known = (node, self._prepare(node))
            self._prepared[id(node)] = known
        given = {f"i{k}": operand for k, operand in enumerate(operands) if operand is not None}
        try:
            return [np.asarray(found) for found in known[1](None, given)]
        except Exception as error:  # numpy's and the reference implementation's own
            name = f" '{node.name}'" if node.name else ""
            raise CaptureError(f"ONNX operator {node.kind}{name} cannot be computed ({type(error).__name__}: {error})") from error

    def _prepare(self, node: Node) -> Callable[..., Any]:
        from onnx import TensorProto, helper, numpy_helper
        from onnx.reference import ReferenceEvaluator

        attributes = {name: numpy_helper.from_array(v) if isinstance(v, np.ndarray) else v for name, v in node.attributes.items()}
        inputs = [f"i{k}" if name else "" for k, name in enumerate(node.inputs)]
        outputs = [f"o{k}" if name else "" for k, name in enumerate(node.outputs)]
        proto = helper.make_node(node.kind, inputs, outputs, **attributes)
        # The types of inputs and outputs are stated because the format asks for them; the reference implementation looks at neither.
        stated = [
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names if n] for names in (dict.fromkeys(inputs), outputs)
        ]
        graph = helper.make_graph([proto], "node", stated[0], stated[1])
        run: Callable[..., Any] = ReferenceEvaluator(helper.make_model(graph, opset_imports=[helper.make_opsetid("", self._opset)])).run
        return run


def folded_choice(node: Node, known: Array) -> Branch:
    """The branch of an ``If`` that a condition chooses."""
    found = node.attributes["then_branch" if bool(known.reshape(-1)[0]) else "else_branch"]
    assert isinstance(found, Branch)
    return found


def fold(graph: Graph, held: set[str]) -> None:
    """Compute what depends on constants alone, and put chosen branches in place of their conditions.

    Args:
        graph: Changed in place.
        held: Names of tensors that the network holds as parameters: what is computed from those stays an operation.
    """
    evaluate = Evaluator(graph.opset)
    todo, kept = list(reversed(graph.nodes)), []
    while todo:
        node = todo.pop()
        known = [graph.tensors.get(name) if name not in held else None for name in node.inputs]
        constant = all(array is not None for array, name in zip(known, node.inputs, strict=True) if name)
        if node.kind == "If" and constant and known[0] is not None:
            branch = folded_choice(node, known[0])
            renamed = dict(zip(branch.outputs, node.outputs, strict=True))
            todo += [Node("Identity", [name], [as_], {}, node.name, node.scope) for name, as_ in reversed(renamed.items()) if as_]
            todo += reversed(branch.nodes)
        elif constant and node.inputs and node.kind in OPERATORS and node.kind not in _RANDOM and not any(node.branches()):
            try:
                results = evaluate(node, known)
            except CaptureError:
                kept.append(node)  # where it is run, it is tried again, with PyTorch if need be
                continue
            if sum(found.size for found in results) > _MOST:
                kept.append(node)
                continue
            graph.tensors.update((name, found) for name, found in zip(node.outputs, results, strict=False) if name)
        else:
            kept.append(node)
    graph.nodes = kept
