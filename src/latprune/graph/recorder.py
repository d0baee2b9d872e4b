"""The recorder: one real run under a dispatch mode, with fields carried beside the tensors."""

from __future__ import annotations

import dataclasses
import math
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from latprune.errors import CaptureError, InvalidArgumentError
from latprune.graph.labels import LabelSpace
from latprune.graph.provenance import CallWatcher, Expression, TracedFloat, TracedInt, expression, leaves
from latprune.graph.scales import ScaleTarget, ScaleUse, find_targets

__all__ = ["Info", "ModuleCall", "Node", "Recorder", "Recording", "Step", "capture_conditions", "find_rule", "preserved_state", "register_rule"]

Fields = tuple[torch.Tensor, ...]
RuleResult = "Fields | list[Fields]"
Rule = Callable[["Step"], Any]
Axis = torch.Tensor | int | tuple[torch.Tensor | int, ...]

_RULES: dict[str, Rule] = {}


def register_rule(*operations: str, replace: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule that says how an operation carries channels.

    Args:
        operations: Names such as ``"aten::relu"`` or ``"mylib::myop"`` (every overload), or with an overload: ``"aten::add.Tensor"``.
        replace: Allow replacing a rule that exists.

    Returns:
        A decorator for ``rule(step) -> fields``: the fields of the result (a tuple), or a list of such tuples for several results.

    Raises:
        InvalidArgumentError: A rule is registered already and ``replace`` is False.

    Example:
        >>> from latprune.graph import register_rule
        >>> @register_rule("mylib::scaled_relu")
        ... def scaled_relu(step):
        ...     return step.elementwise(step.args[0])
    """

    def add(rule: Rule) -> Rule:
        for name in operations:
            if "::" not in name:
                raise InvalidArgumentError(f"operations (={name!r}) must be of the form 'namespace::name' or 'namespace::name.overload'")
            if name in _RULES and not replace:
                raise InvalidArgumentError(f"operations (={name!r}) has a rule already; pass replace=True to replace it")
            _RULES[name] = rule
        return rule

    return add


def find_rule(func: Any) -> Rule | None:
    """The rule of an operator overload, or None."""
    name = func._schema.name
    overload = func._schema.overload_name
    if overload:
        rule = _RULES.get(f"{name}.{overload}")
        if rule is not None:
            return rule
    rule = _RULES.get(name)
    if rule is None and name.endswith("_") and not name.endswith("__"):
        rule = _RULES.get(name[:-1])
    return rule


@dataclass(slots=True, eq=False)
class Info:
    """What the recorder knows of one tensor value.

    Attributes:
        fields: Its fields.
        node: Index of the node that made it; -1 for parameters, buffers and constants, -2 for the model's inputs.
        output: Which result of the node it is.
        shape: Its shape.
        name: Parameter or buffer that it is, or is a view of.
        dynamic: Whether it depends on the model's inputs.
    """

    fields: Fields
    node: int
    output: int
    shape: tuple[int, ...]
    name: str | None = None
    dynamic: bool = False


@dataclass(slots=True, eq=False)
class Node:
    """One recorded operation; see :class:`latprune.graph.Call`."""

    index: int
    op: str
    module: str
    inputs: list[Info]
    outputs: list[Info]
    in_fields: list[Fields]
    kernel: KernelDraft | None = None
    literals: tuple[Any, ...] = ()


@dataclass(slots=True, eq=False)
class KernelDraft:
    """A kernel while its axes are still label vectors: each axis is an ``(n,)`` label vector, a constant size, or a tuple of them to be summed."""

    kind: str
    weight: str | None
    axes: Sequence[Axis]
    macs: float
    attributes: dict[str, Any] = field(default_factory=dict)
    tensors: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class ModuleCall:
    """One call of a module: nodes ``start .. stop`` ran inside; its tensor inputs and outputs (flattened).

    ``structure`` says what it returned: ``tensor``, a list with a number for each tensor and None for each None of a tuple, or None for
    anything else.
    """

    path: str
    start: int
    stop: int
    inputs: list[Info]
    outputs: list[Info]
    parent: int
    structure: str | list[int | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SizeLeaf:
    """A size that the forward read or stated: labels ``(outer, n, inner)``, the size being counted along ``n``; ``value`` is ``n``."""

    labels: torch.Tensor
    value: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Equation:
    """``left`` (what the forward states) must equal ``right`` (what the labels give); ``place`` names the operation."""

    left: Expression
    right: Expression
    place: str


@dataclass(slots=True, eq=False)
class Recording:
    """Everything that one run left behind."""

    space: LabelSpace
    nodes: list[Node]
    module_calls: list[ModuleCall]
    inputs: list[Info]
    outputs: list[Info]
    tensor_labels: dict[str, list[torch.Tensor | None]]
    tensor_shapes: dict[str, tuple[int, ...]]
    aliases: dict[str, str]
    roles: dict[tuple[str, int], list[tuple[str, int]]]
    grouped: dict[str, torch.Tensor]
    pads: dict[str, dict[str, Any]]
    sizes: list[SizeLeaf]
    equations: list[Equation]
    used_as_numbers: set[Expression]
    attribute_values: dict[tuple[str, str], int]
    scales: list[ScaleUse]


class Step:
    """One operation as a rule sees it: its arguments, its results, and the ways to state facts."""

    def __init__(self, recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> None:
        self.recorder = recorder
        self.space = recorder.space
        self.func = func
        self.args = args
        self.kwargs = kwargs
        self.out = out
        self.kernel: KernelDraft | None = None

    @property
    def place(self) -> str:
        """The operation's name and the module it ran in, for reasons."""
        module = self.recorder.module_path
        return f"{self.func} in '{module}'" if module else f"{self.func}"

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def info(self, tensor: torch.Tensor) -> Info:
        """What is known of ``tensor``."""
        return self.recorder.info(tensor)

    def fields(self, tensor: torch.Tensor) -> Fields:
        """The fields of ``tensor``."""
        return self.recorder.info(tensor).fields

    def freeze(self, fields: Iterable[torch.Tensor], reason: str) -> None:
        """State that the channels of ``fields`` must stay."""
        for f in fields:
            self.space.freeze(f, reason)

    def role(self, labels: torch.Tensor, role: str) -> None:
        """State what a parameter's dimension does; ``labels`` are a field of the parameter itself (else nothing is stated)."""
        self.recorder.state_role(labels, role)


@contextmanager
def capture_conditions() -> Iterator[None]:
    """The conditions of a recorded run: no gradients, no fused fast path of ``nn.MultiheadAttention``.

    A run that has to follow the same sequence of operations (the masked executor) runs under the same conditions.
    """
    backend = torch.backends.mha
    before = backend.get_fastpath_enabled()
    backend.set_fastpath_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        backend.set_fastpath_enabled(before)


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Undo what runs leave behind in the modules: cached tensors in attributes, dicts and lists, buffers put in place of others."""
    before: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        values = module.__dict__
        before.append((values, dict(values)))
        for name, value in values.items():
            if isinstance(value, dict) and (name in ("_buffers", "_parameters") or not name.startswith("_")):
                before.append((value, dict(value)))
    try:
        yield
    finally:
        for values, saved in before:
            for name in [n for n in values if n not in saved]:
                del values[name]
            for name, value in saved.items():
                if values.get(name) is not value:
                    values[name] = value


class Recorder(TorchDispatchMode):
    """Records one run of ``model``."""

    def __init__(self, model: nn.Module, watcher: CallWatcher) -> None:
        super().__init__()
        self.model = model
        self.watcher = watcher
        self.space = LabelSpace()
        self.nodes: list[Node] = []
        self.module_calls: list[ModuleCall] = []
        self._infos: dict[int, tuple[weakref.ref[torch.Tensor], Info]] = {}
        self._paused = False
        self._stack: list[int] = []
        self.module_path = ""
        self.tensor_labels: dict[str, list[torch.Tensor | None]] = {}
        self.tensor_shapes: dict[str, tuple[int, ...]] = {}
        self.roles: dict[tuple[str, int], list[tuple[str, int]]] = {}
        self.grouped: dict[str, torch.Tensor] = {}
        self.pads: dict[str, dict[str, Any]] = {}
        self.sizes: list[SizeLeaf] = []
        self.equations: list[Equation] = []
        self._attention_stated: set[tuple[str, Expression]] = set()
        self._keep_alive: list[torch.Tensor] = []
        self._size_cache: dict[tuple[int, int], int] = {}
        self.scales: list[ScaleUse] = []
        watcher.trace_sizes = self.trace_sizes
        watcher.on_scale = self.on_scale
        watcher.on_attention = self.on_attention
        self.attribute_values = {
            (path, name): value
            for path, module in model.named_modules()
            for name, value in module.__dict__.items()
            if type(value) is int and not name.startswith("_")
        }
        self._names: dict[int, str] = {}
        self._own: dict[int, torch.Tensor] = {}
        self.aliases: dict[str, str] = {}
        self._label_owner: list[tuple[int, int, str, int]] = []
        self._step_roles: list[tuple[str, int, str]] = []
        for kind in (model.named_parameters, model.named_buffers):
            for name, tensor in kind(remove_duplicate=False):
                if id(tensor) in self._names:
                    self.aliases[name] = self._names[id(tensor)]
                else:
                    self._names[id(tensor)] = name
                    self._own[id(tensor)] = tensor

    def info(self, tensor: torch.Tensor) -> Info:
        """What is known of ``tensor``; a parameter gets its labels when it is first seen."""
        found = self._infos.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        name = self._names.get(id(tensor))
        fields: Fields = ()
        if name is not None:
            fields = self._label_tensor(name, tensor)
        info = Info(fields=fields, node=-1, output=0, shape=tuple(tensor.shape), name=name)
        self._infos[id(tensor)] = (weakref.ref(tensor), info)
        return info

    def _label_tensor(self, name: str, tensor: torch.Tensor) -> Fields:
        self.tensor_shapes[name] = tuple(tensor.shape)
        labels: list[torch.Tensor | None] = []
        fields: list[torch.Tensor] = []
        if tensor.is_floating_point() or tensor.is_complex():
            for dim, size in enumerate(tensor.shape):
                if size > 1:
                    vector = self.space.fresh(size, "tensor", name, dim)
                    labels.append(vector)
                    self._label_owner.append((int(vector[0]), size, name, dim))
                    fields.append(vector.reshape([size if d == dim else 1 for d in range(tensor.dim())]))
                else:
                    labels.append(None)
        self.tensor_labels[name] = labels
        return tuple(fields)

    def state_role(self, labels: torch.Tensor, role: str) -> None:
        """Remember the role of the parameter dimension whose own labels start ``labels``."""
        first = int(labels.reshape(-1)[0])
        at = bisect_right(self._label_owner, (first, 1 << 62, "", 0)) - 1
        if at >= 0:
            start, size, name, dim = self._label_owner[at]
            if start <= first < start + size:
                self._step_roles.append((name, dim, role))

    def set(self, tensor: torch.Tensor, info: Info) -> None:
        """Remember ``info`` of ``tensor``."""
        self._infos[id(tensor)] = (weakref.ref(tensor), info)

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
            if expr[0] != "attr" or expr[1] != self.module_path:
                return None
            names.append(str(expr[2]))
        if names[0] is not None and names[0] == names[1]:
            return None
        return names[0], names[1]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """Operations on labels that happen outside of a recorded operation are not recorded."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    # -- sizes -----------------------------------------------------------------------------------------------------

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
        if found is None or found[0]() is not tensor or not found[1].fields:
            return None
        info = found[1]
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
            if any(leaf[0] == "attr" for leaf in leaves(left)):
                self.equations.append(Equation(left=left, right=("const", size), place=place))
            return
        self.equations.append(Equation(left=left, right=self.size_leaf(labels), place=place))

    def state_expression(self, left: Expression, labels: torch.Tensor, place: str) -> None:
        """State that ``left`` is the size along the middle dimension of ``labels``."""
        self.equations.append(Equation(left=left, right=self.size_leaf(labels), place=place))

    def on_scale(self, tensor: torch.Tensor, base: Expression, exponent: float) -> None:
        """A tensor is multiplied by ``base ** exponent``: find the weights that can keep the scale, or note the size as a number."""
        with self.quiet():
            targets = find_targets(self, self.info(tensor))
        if targets is None:
            self.watcher.used.add(base)
        else:
            self.scales.append(ScaleUse(targets=targets, base=base, exponent=exponent))

    def on_attention(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Attention without a scale of its own scales by the head size to the power of -1/2."""
        if name == "scaled_dot_product_attention":
            scale = kwargs.get("scale")
            query: torch.Tensor = args[0] if args else kwargs["query"]
            if isinstance(scale, TracedFloat):
                self.on_scale(query, scale.base, scale.exponent)
            elif scale is None:
                sizes = self.trace_sizes(query)
                if sizes is not None and isinstance(sizes[-1], TracedInt):
                    self.on_scale(query, sizes[-1].expr, -0.5)
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

    # -- modules ---------------------------------------------------------------------------------------------------

    @contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Hooks on every module that keep the path of the running module and the tensors at its borders."""
        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue
                pre = module.register_forward_pre_hook(self._enter(path), with_kwargs=True, prepend=True)
                post = module.register_forward_hook(self._leave, with_kwargs=True)
                stack.callback(pre.remove)
                stack.callback(post.remove)
            yield

    def _tensor_infos(self, values: Any) -> list[Info]:
        with self.quiet():
            return [self.info(t) for t in flatten_tensors(values)]

    def _enter(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            parent = self._stack[-1] if self._stack else -1
            self.module_calls.append(
                ModuleCall(path=path, start=len(self.nodes), stop=-1, inputs=self._tensor_infos((args, kwargs)), outputs=[], parent=parent)
            )
            self._stack.append(len(self.module_calls) - 1)
            self.module_path = path

        return hook

    def _leave(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        call = self.module_calls[self._stack.pop()]
        call.stop = len(self.nodes)
        call.outputs = self._tensor_infos(output)
        call.structure = _structure(output)
        self.module_path = self.module_calls[self._stack[-1]].path if self._stack else ""

    # -- operations ------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        tensors = _flat(args, kwargs)
        infos = [self.info(t) for t in tensors]
        mutable = func._schema.is_mutable
        out = func(*args, **kwargs)
        outs = [out] if isinstance(out, torch.Tensor) else flatten_tensors(out)
        index = len(self.nodes)
        dynamic = any(i.dynamic for i in infos)
        node = Node(
            index=index,
            op=str(func),
            module=self.module_path,
            inputs=infos,
            outputs=[],
            in_fields=[i.fields for i in infos],
            literals=tuple(a for a in args if not isinstance(a, torch.Tensor)),
        )
        fields: list[Fields] = [()] * len(outs)
        if any(i.fields for i in infos):
            step = Step(self, func, args, kwargs, out)
            self._step_roles = []
            rule = find_rule(func)
            if rule is None:
                reason = f"no rule for {step.place}; register one with latprune.graph.register_rule"
                for i in infos:
                    step.freeze(i.fields, reason)
            else:
                result = rule(step)
                if isinstance(result, list):
                    fields = [self._clean(r) for r in result] + [()] * (len(outs) - len(result))
                elif outs:
                    fields = [self._clean(result), *([()] * (len(outs) - 1))]
            node.kernel = step.kernel
            for name, dim, role in self._step_roles:
                self.roles.setdefault((name, dim), []).append((role, index))
        elif dynamic:
            rule = find_rule(func)
            if rule is not None and getattr(rule, "kernel_only", None) is not None:
                step = Step(self, func, args, kwargs, out)
                rule.kernel_only(step)  # type: ignore[attr-defined]
                node.kernel = step.kernel
        name = infos[0].name if len(infos) == 1 and not dynamic else None
        for k, t in enumerate(outs):
            info = Info(fields=fields[k], node=index, output=k, shape=tuple(t.shape), name=name, dynamic=dynamic)
            if mutable and any(t is a for a in tensors):
                self._mutated(t, info, func)
            self.set(t, info)
            node.outputs.append(info)
        if mutable and not outs:
            raise CaptureError(f"{func} in '{self.module_path}' writes into its arguments and returns nothing; it cannot be followed")
        self.nodes.append(node)
        return out

    def _clean(self, fields: Fields) -> Fields:
        return tuple(f for f in fields if f.numel() > 1)

    def _mutated(self, tensor: torch.Tensor, info: Info, func: Any) -> None:
        """A write into ``tensor``: what other tensors share its memory must not carry other channels than it did."""
        old = self.info(tensor)
        if not tensor._is_view():
            return
        before = sorted(tuple(f.shape) for f in old.fields)
        after = sorted(tuple(f.shape) for f in info.fields)
        if before != after:
            reason = f"written through a view by {func} in '{self.module_path}'"
            base = tensor._base
            for fields in (old.fields, info.fields, self.info(base).fields if base is not None else ()):
                for f in fields:
                    self.space.freeze(f, reason)
            info.fields = ()

    def recording(self, inputs: list[Info], outputs: list[Info]) -> Recording:
        """What the run left behind."""
        return Recording(
            space=self.space,
            nodes=self.nodes,
            module_calls=self.module_calls,
            inputs=inputs,
            outputs=outputs,
            tensor_labels=self.tensor_labels,
            tensor_shapes=self.tensor_shapes,
            aliases=self.aliases,
            roles=self.roles,
            grouped=self.grouped,
            pads=self.pads,
            sizes=self.sizes,
            equations=self.equations,
            used_as_numbers=self.watcher.used,
            attribute_values=self.attribute_values,
            scales=self.scales,
        )


def _flat(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    """The tensor arguments of an operation, flattened in order."""
    found: list[torch.Tensor] = []
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found.extend(v for v in value if isinstance(v, torch.Tensor))
    return found


def _structure(output: Any) -> str | list[int | None] | None:
    if isinstance(output, torch.Tensor):
        return "tensor"
    if type(output) is tuple and output and all(o is None or isinstance(o, torch.Tensor) for o in output):
        numbers: list[int | None] = []
        for o in output:
            numbers.append(None if o is None else sum(n is not None for n in numbers))
        return numbers
    return None


def flatten_tensors(values: Any, *, opaque: bool = True) -> list[torch.Tensor]:
    """All tensors in a nest of tuples, lists, dicts and dataclasses; with ``opaque`` those inside other objects too (caches and the like)."""

    if isinstance(values, torch.Tensor):
        return [values]
    found: list[torch.Tensor] = []
    leaves = tree_flatten(values)[0] if not dataclasses.is_dataclass(values) else [values]
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            found.append(leaf)
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            for item in dataclasses.fields(leaf):
                found += flatten_tensors(getattr(leaf, item.name, None), opaque=opaque)
        elif opaque and leaf is not None and hasattr(leaf, "__dict__") and not isinstance(leaf, (type, nn.Module)) and not callable(leaf):
            for item in vars(leaf).values():
                if isinstance(item, (torch.Tensor, list, tuple, dict)):
                    found += flatten_tensors(item)
    return found
