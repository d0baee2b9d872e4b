"""The part of the recorder that notes sizes: those that the forward reads, those that it states, and the scales that follow them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.graph.captured import CapturedNetwork
from latprune.graph.provenance import CallWatcher, Expression, TracedFloat, TracedInt, expression, leaves
from latprune.graph.recording import Equation, Node, SizeLeaf
from latprune.graph.scales import Candidate, ScaleUse, absorbed, find_candidate, readers_of
from latprune.graph.surgery_plan import ScaleTarget
from latprune.graph.tensor_facts import TensorFacts

__all__ = ["SizeFacts"]


class SizeFacts(TensorFacts):
    """Sizes and scales of a run; a base of :class:`latprune.graph.recorder.Recorder`."""

    model: nn.Module
    watcher: CallWatcher
    program: CapturedNetwork | None
    module_path: str
    nodes: list[Node]
    grouped: dict[str, torch.Tensor]

    def _start_sizes(self) -> None:
        """Begin with nothing noted, and let the watcher call back."""
        self.scales: list[ScaleUse] = []
        self._pending: list[tuple[list[Candidate], Expression, float]] = []
        self.sizes: list[SizeLeaf] = []
        self.equations: list[Equation] = []
        self._paused = False
        self._attention_stated: set[tuple[str, Expression]] = set()
        self._keep_alive: list[torch.Tensor] = []
        self._size_cache: dict[tuple[int, int], int] = {}
        self.watcher.trace_sizes = self.trace_sizes
        self.watcher.used.place = lambda: None if self._paused or self.watcher.stack or self.watcher.is_aside else self.module_path
        self.watcher.on_scale = self.on_scale
        self.watcher.on_attention = self.on_attention
        self.watcher.on_normalise = self.on_normalise
        self.attribute_values: dict[tuple[str, str], int] = {}

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Operations on labels that happen outside of a recorded operation are not recorded."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    @property
    def pads_holder(self) -> str:
        """Path of the module whose attributes hold amounts of padding: the running one, or the program where one is captured."""
        return self.module_path if self.program is None else ""

    def pad_sources(self, at: int, before: int, after: int) -> tuple[str | None, str | None] | None:
        """Attributes of the running module that hold the two amounts of a padding, or None where the code fixes one of them.

        Args:
            at: Place of the amount before, in the flat list of amounts.
            before: Amount before.
            after: Amount after.
        """
        call = self.watcher.arguments("pad", "constant_pad_nd")
        if call is None:
            return None
        args, kwargs = call
        amounts = args[1] if len(args) > 1 else kwargs.get("pad")
        if not isinstance(amounts, (list, tuple)) or len(amounts) < at + 2:
            return None
        names: list[str | None] = []
        for value, amount in ((amounts[at], before), (amounts[at + 1], after)):
            if amount == 0:
                names.append(None)
                continue
            expr = expression(value)
            if expr[0] != "attr" or expr[1] != self.pads_holder:
                return None
            names.append(str(expr[2]))
        if names[0] is not None and names[0] == names[1]:
            return None
        return names[0], names[1]

    def size_leaf(self, labels: torch.Tensor) -> Expression:
        """An expression for the size counted along the middle dimension of ``labels`` ``(outer, n, inner)``."""
        self.sizes.append(SizeLeaf(labels=labels, value=labels.shape[1]))
        return ("size", len(self.sizes) - 1)

    def dimension_leaf(self, field: torch.Tensor, dim: int) -> Expression:
        """The size of one dimension of a tensor with ``field``; cached."""
        key = (id(field), dim)
        if key not in self._size_cache:
            before = math.prod(field.shape[:dim])
            leaf = self.size_leaf(field.reshape(before, field.shape[dim], -1))
            self._size_cache[key] = leaf[1]
            self._keep_alive.append(field)
        return ("size", self._size_cache[key])

    def trace_sizes(self, tensor: torch.Tensor) -> tuple[int, ...] | None:
        """The shape of a tensor with traced integers for its labelled dimensions; None where it has none."""
        found = self._infos.get(id(tensor))
        if found is None and id(tensor) in self._names:
            with self.quiet():
                info = self.info(tensor)
        elif found is None or found[0]() is not tensor:
            return None
        else:
            info = found[1]
        if not info.fields:
            return None
        shape: list[int] = list(info.shape)
        with self.quiet():
            for f in info.fields:
                for dim in range(f.dim()):
                    if f.shape[dim] > 1 and not isinstance(shape[dim], TracedInt):
                        shape[dim] = TracedInt(shape[dim], self.dimension_leaf(f, dim), self.watcher.used)
        return tuple(shape)

    def state_size(self, stated: Any, labels: torch.Tensor | None, size: int, place: str) -> None:
        """State that an integer given by the forward is the size along the middle dimension of ``labels``.

        Args:
            stated: The integer, traced or plain.
            labels: ``(outer, n, inner)``, or None for a dimension without labels.
            size: The size in the recorded run.
            place: Name of the operation.
        """
        left = expression(stated)
        if labels is None:
            if any(True for _ in leaves(left)):
                self.equations.append(Equation(left=left, right=("const", size), place=place))
            return
        self.equations.append(Equation(left=left, right=self.size_leaf(labels), place=place))

    def state_expression(self, left: Expression, labels: torch.Tensor, place: str) -> None:
        """State that ``left`` is the size along the middle dimension of ``labels``."""
        self.equations.append(Equation(left=left, right=self.size_leaf(labels), place=place))

    def on_scale(self, tensors: list[torch.Tensor], base: Expression, exponent: float) -> None:
        """A tensor (or one of several, of which any will do) is multiplied by ``base ** exponent``: weights may keep the scale."""
        with self.quiet():
            found = [find_candidate(self, self.info(t)) for t in tensors]
        self._pending.append(([c for c in found if c is not None], base, exponent))

    def absorb_scales(self) -> None:
        """Choose the weights that keep each scale, now that all is known that reads them; where there are none, the size is a number."""
        readers = readers_of(self.nodes) if self._pending else {}
        for candidates, base, exponent in self._pending:
            candidate = absorbed(readers, candidates)
            if candidate is None:
                self.watcher.used.add(base)
            else:
                self.scales.append(ScaleUse(targets=candidate.targets, base=base, exponent=exponent))
        self._pending = []

    def on_normalise(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The shape that the forward gives to normalise over is that of the trailing dimensions."""
        tensor: torch.Tensor = args[0] if args else kwargs["input"]
        stated = args[1] if len(args) > 1 else kwargs["normalized_shape"]
        with self.quiet():
            for f in self.info(tensor).fields:
                for k, size in enumerate(stated):
                    dim = f.dim() - len(stated) + k
                    if f.shape[dim] > 1:
                        labels = f.reshape(math.prod(f.shape[:dim]), f.shape[dim], -1)
                        self.state_size(size, labels, f.shape[dim], f"{name} in '{self.module_path}'")

    def on_attention(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Attention without a scale of its own scales by the head size to the power of -1/2."""
        if name == "scaled_dot_product_attention":
            scale = kwargs.get("scale")
            query: torch.Tensor = args[0] if args else kwargs["query"]
            key: torch.Tensor = args[1] if len(args) > 1 else kwargs["key"]
            if isinstance(scale, TracedFloat):
                self.on_scale([query, key], scale.base, scale.exponent)
            elif scale is None:
                sizes = self.trace_sizes(query)
                if sizes is not None and isinstance(sizes[-1], TracedInt):
                    self.on_scale([query, key], sizes[-1].expr, -0.5)
            return
        query = args[0] if args else kwargs["query"]
        heads = int(args[4] if len(args) > 4 else kwargs["num_heads"])
        sizes = self.trace_sizes(query)
        if sizes is None or not isinstance(sizes[-1], TracedInt):
            return
        base: Expression = ("floordiv", sizes[-1].expr, ("const", heads))
        weight = args[5] if len(args) > 5 else kwargs.get("in_proj_weight")
        if weight is None:
            weight = kwargs.get("q_proj_weight")
        bias = args[6] if len(args) > 6 else kwargs.get("in_proj_bias")
        first = np.arange(query.shape[-1], dtype=np.int64)
        with self.quiet():
            names = [self.info(t).name for t in (weight, bias) if t is not None]
        if None in names or weight is None:
            self.watcher.used.add(base)
            return
        targets = tuple(ScaleTarget(tensor=str(n), dim=0, positions=first) for n in names)
        self.scales.append(ScaleUse(targets=targets, base=base, exponent=-0.5))

    def attention_width(self) -> tuple[Expression, int, int] | None:
        """Inside ``multi_head_attention_forward``: the size of its queries' last dimension, the number of heads, and that size's value.

        The function derives every size of its views from these two.
        """
        call = self.watcher.arguments("multi_head_attention_forward")
        if call is None:
            return None
        args, kwargs = call
        query: torch.Tensor = args[0] if args else kwargs["query"]
        heads = int(args[4] if len(args) > 4 else kwargs["num_heads"])
        size = query.shape[-1]
        info = self.info(query)
        along = [f for f in info.fields if f.shape[-1] > 1]
        if not along:
            return ("const", size), heads, size
        expr = self.dimension_leaf(along[0], along[0].dim() - 1)
        if (self.module_path, expr) not in self._attention_stated:
            self._attention_stated.add((self.module_path, expr))
            place = f"multi_head_attention_forward in '{self.module_path}'"
            self.equations.append(
                Equation(left=expression(args[3] if len(args) > 3 else kwargs["embed_dim_to_check"]), right=expr, place=place)
            )
            if isinstance(self.model.get_submodule(self.module_path), nn.MultiheadAttention):
                head: Expression = ("floordiv", expr, ("const", heads))
                self.equations.append(Equation(left=("attr", self.module_path, "head_dim"), right=head, place=place))
        return expr, heads, size
