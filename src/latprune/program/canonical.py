"""From recorded steps to the steps of a program: operators become the public functions behind them, writes become results of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from latprune.errors import CaptureError
from latprune.program.broadcasts import broadcast_freely
from latprune.program.fused import split_projections
from latprune.program.liveness import live_steps, writes_of
from latprune.program.operators import allowed
from latprune.program.recorder import RawProgram
from latprune.program.steps import Held, Step, Training, Value

__all__ = ["canonical", "convertible", "renumbered"]

_IDENTITIES = frozenset({"aten.alias.default", "aten.lift_fresh.default", "aten.lift_fresh_copy.default"})
_CHECKS = frozenset({"aten._assert_async.default", "aten._assert_async.msg"})


def canonical(raw: RawProgram) -> tuple[list[Step], list[Value | Held]]:
    """The steps of a program and what it returns.

    Raises:
        CaptureError: An operation has no place in a program; says which and where.
    """
    steps = _functional(raw)
    steps, same = _public(steps, raw)
    returned = [_followed(r, same) for r in raw.returned]
    steps = live_steps(steps, returned)
    steps = _merge_copies(steps, returned, raw)
    steps = broadcast_freely(steps, returned, raw)
    steps = live_steps(split_projections(steps, returned, raw), returned)
    for step in steps:
        if not allowed(step.operator):
            raise CaptureError(
                f"operator '{step.operator}' in '{step.module}' is not one that a captured program may hold. Use form='class'"
            )
    return steps, returned


def convertible(operator: str) -> bool:
    """Whether a recorded operator can become a step."""
    return operator in _CONVERSIONS or operator in _IDENTITIES or operator in _CHECKS or allowed(operator)


# -- writes ------------------------------------------------------------------------------------------------------------------------------


def _functional(raw: RawProgram) -> list[Step]:
    """Operators that write into an argument, as ones that do not, wherever nothing else reads that memory afterwards."""
    last_read: dict[int, int] = {}
    for step in raw.steps:
        for reference in step.reads():
            if isinstance(reference, Value):
                last_read[reference.number] = step.number
    for reference in raw.returned:
        if isinstance(reference, Value):
            last_read[reference.number] = len(raw.steps)
    by_root: dict[int, list[int]] = {}
    for number, root in raw.roots.items():
        by_root.setdefault(root, []).append(number)
    made_at = {number: step.number for step in raw.steps for number in step.results if number is not None}
    result = []
    for step in raw.steps:
        written = raw.writes.get(step.number, ())
        for target in written:
            if isinstance(target, Held):
                raise CaptureError(
                    f"the forward of '{step.module}' writes into '{target.name}' ({step.operator}); a program leaves its own as they are"
                )
        if written and _only_reader(step, written, by_root, raw, last_read, made_at):
            step = _without_write(step)
        result.append(step)
    return result


def _only_reader(
    step: Step,
    written: tuple[Value | Held, ...],
    by_root: Mapping[int, list[int]],
    raw: RawProgram,
    last_read: Mapping[int, int],
    made_at: Mapping[int, int],
) -> bool:
    """Whether what was written is read afterwards through the step's own result alone."""
    for target in written:
        assert isinstance(target, Value)
        others = by_root[raw.roots[target.number]]
        if any(made_at.get(n, -1) < step.number < last_read.get(n, -1) for n in others):
            return False
    return len(written) == 1


def _without_write(step: Step) -> Step:
    namespace, name, overload = step.operator.split(".")
    if namespace == "aten" and name == "copy_":
        # The source in the shape and type of what it is copied over.
        return replace(step, operator="aten.copy.default")
    packet = getattr(torch.ops.aten, name.rstrip("_"), None)
    if namespace != "aten" or not name.endswith("_") or packet is None or overload not in packet.overloads():
        return step
    return replace(step, operator=f"aten.{name.rstrip('_')}.{overload}")


# -- public functions --------------------------------------------------------------------------------------------------------------------


def _followed(reference: Any, same: Mapping[int, Any]) -> Any:
    while isinstance(reference, Value) and reference.number in same:
        reference = same[reference.number]
    return reference


def _public(steps: list[Step], raw: RawProgram) -> tuple[list[Step], dict[int, Any]]:
    """Steps by their public functions, and the values that are the same as others."""
    same: dict[int, Any] = {}
    result = []
    for found in steps:
        step = found.mapped(lambda r: _followed(r, same))
        if step.operator in _CHECKS:
            continue
        if step.operator in _IDENTITIES or _restrides(step, raw):
            (value,) = step.results
            if value is not None:
                same[value] = step.arguments[0]
            continue
        convert = _CONVERSIONS.get(step.operator)
        step = convert(step, _Arguments(step), raw) if convert is not None else step
        if step.operator in _FIRST_ONLY:
            step = replace(step, results=step.results[:1], several=False)
        result.append(step)
    _require_first_results(result, raw)
    return result, same


def _restrides(step: Step, raw: RawProgram) -> bool:
    """Whether ``as_strided`` only restates strides of dimensions of size 1 (pooling in channels-last memory does)."""
    if step.operator not in ("aten.as_strided.default", "aten.as_strided_.default"):
        return False
    source, shape, strides = step.arguments[:3]
    number = source.number if isinstance(source, Value) else -1
    if number < 0 or tuple(shape) != raw.shapes[number] or (len(step.arguments) > 3 and step.arguments[3]):
        return False
    return all(a == b for n, a, b in zip(shape, strides, raw.strides[number], strict=True) if n > 1)


class _Arguments:
    """A step's arguments by the names of its operator's schema."""

    def __init__(self, step: Step) -> None:
        namespace, name, overload = step.operator.split(".")
        schema = getattr(getattr(getattr(torch.ops, namespace), name), overload)._schema
        self._given: dict[str, Any] = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        self._given |= dict(zip((a.name for a in schema.arguments), step.arguments, strict=False)) | dict(step.keywords)

    def __getitem__(self, name: str) -> Any:
        return self._given.get(name)

    def all(self, names: str) -> tuple[Any, ...]:
        """Several arguments."""
        return tuple(self[name] for name in names.split())


Conversion = Callable[[Step, _Arguments, RawProgram], Step]
_CONVERSIONS: dict[str, Conversion] = {}
_FIRST_ONLY = frozenset({"batch_norm", "layer_norm", "group_norm", "rms_norm", "max_pool2d", "max_pool3d"})


def _converts(*operators: str) -> Callable[[Conversion], Conversion]:
    def add(conversion: Conversion) -> Conversion:
        _CONVERSIONS.update(dict.fromkeys(operators, conversion))
        return conversion

    return add


def _step(step: Step, operator: str, *arguments: Any) -> Step:
    return replace(step, operator=operator, arguments=arguments, keywords={})


def _result(step: Step) -> int:
    """The only result of a step."""
    (value,) = step.results
    assert value is not None
    return value


def _require_first_results(steps: list[Step], raw: RawProgram) -> None:
    """A statistic that a norm returns beside its result is lost in the public function: nothing may read it."""
    lost = {n for step in raw.steps for n in step.results} - {n for step in steps for n in step.results}
    for step in steps:
        for reference in step.reads():
            if isinstance(reference, Value) and reference.number in lost:
                raise CaptureError(f"'{step.module}' reads a statistic that a public function of PyTorch does not return ({step.operator})")


@_converts("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten._reshape_alias.default")
def _reshape(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    value = _result(step)
    return _step(step, "reshape", step.arguments[0], list(raw.shapes[value]))  # a size that was left open, too


@_converts("aten.expand.default")
def _expand(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    return _step(step, "expand", *a.all("self size"))


@_converts("aten.slice.Tensor")
def _slice(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    value = _result(step)
    dim = (a["dim"] or 0) % len(raw.shapes[value])
    source = step.arguments[0]
    start, stop = a["start"], a["end"]
    start = None if start in (None, 0) else start
    stop = None if stop is None or stop >= (1 << 62) else stop
    size = raw.shapes[source.number][dim] if isinstance(source, Value) else raw.held[source.name].shape[dim]
    stop = None if stop is not None and stop >= size else stop
    if dim:  # counted from the end: counted from the start, it follows the widths (along a batch it would follow the batch)
        start, stop = (bound + size if bound is not None and -size <= bound < 0 else bound for bound in (start, stop))
    return _step(step, "slice", source, dim, start, stop, a["step"] or 1)


@_converts("aten.select.int")
def _select(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    source, dim, index = a.all("self dim index")
    shape = raw.shapes[source.number] if isinstance(source, Value) else tuple(raw.held[source.name].shape)
    dim = dim % len(shape)
    return _step(step, "select", source, dim, index + shape[dim] if index < 0 and dim else index)


@_converts("aten.split.Tensor", "aten.split_with_sizes.default", "aten.unsafe_split.Tensor", "aten.unsafe_split_with_sizes.default")
def _split(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    dim = a["dim"] or 0
    return _step(step, "split_with_sizes", step.arguments[0], [raw.shapes[n][dim] for n in step.results if n is not None], dim)


@_converts("aten.constant_pad_nd.default")
def _pad(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    return _step(step, "pad", a["self"], a["pad"], "constant", a["value"])


@_converts("aten.convolution.default")
def _convolution(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    weight = a["weight"]
    shape = raw.shapes[weight.number] if isinstance(weight, Value) else tuple(raw.held[weight.name].shape)
    rank = len(shape) - 2
    stride, padding, dilation, output_padding = (list(v) * (rank // len(v)) for v in a.all("stride padding dilation output_padding"))
    operands = a.all("input weight bias")
    if a["transposed"]:
        return _step(step, f"conv_transpose{rank}d", *operands, stride, padding, output_padding, a["groups"], dilation)
    return _step(step, f"conv{rank}d", *operands, stride, padding, dilation, a["groups"])


@_converts(
    "aten.native_batch_norm.default",
    "aten._native_batch_norm_legit.default",
    "aten._native_batch_norm_legit.no_stats",
    "aten._native_batch_norm_legit_no_training.default",
    "aten.cudnn_batch_norm.default",
    "aten.miopen_batch_norm.default",
)
def _batch_norm(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    mean, variance = a["running_mean"], a["running_var"]
    always = bool(a["training"])
    momentum = a["exponential_average_factor"] if a["momentum"] is None else a["momentum"]
    eps = a["epsilon"] if a["eps"] is None else a["eps"]
    training: Any = True if always else Training()
    return _step(step, "batch_norm", a["input"], mean, variance, a["weight"], a["bias"], training, momentum, eps, None)


@_converts("aten.native_layer_norm.default")
def _layer_norm(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    return _step(step, "layer_norm", *a.all("input normalized_shape weight bias eps"))


@_converts("aten._fused_rms_norm.default")
def _rms_norm(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    return _step(step, "rms_norm", *a.all("input normalized_shape weight eps"))


@_converts("aten.native_group_norm.default")
def _group_norm(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    return _step(step, "group_norm", *a.all("input group weight bias eps"))


@_converts("aten._softmax.default", "aten._log_softmax.default")
def _softmax(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    if a["half_to_float"]:
        return step
    return _step(step, step.operator.split(".")[1].removeprefix("_"), *a.all("self dim"))


@_converts("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def _max_pool(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    rank = step.operator.split("max_pool")[1][0]
    stride = a["stride"] or a["kernel_size"]
    return _step(step, f"max_pool{rank}d", a["self"], a["kernel_size"], stride, *a.all("padding dilation ceil_mode"))


@_converts("aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool3d.default")
def _adaptive_pool(step: Step, a: _Arguments, raw: RawProgram) -> Step:
    return _step(step, step.operator.split(".")[1].removeprefix("_"), *a.all("self output_size"))


def _merge_copies(steps: list[Step], returned: list[Value | Held], raw: RawProgram) -> list[Step]:
    """A copy that only a reshape reads is part of that reshape (which copies by itself where it must)."""
    readers: dict[int, int] = {}
    for step in steps:
        for reference in step.reads():
            if isinstance(reference, Value):
                readers[reference.number] = readers.get(reference.number, 0) + 1
    for reference in returned:
        if isinstance(reference, Value):
            readers[reference.number] = readers.get(reference.number, 0) + 1
    written = {raw.roots.get(w, w) for step in steps for w in writes_of(step)}
    copies: dict[int, Step] = {}
    for step in steps:
        if step.operator == "aten.clone.default" and step.results[0] is not None and readers.get(step.results[0]) == 1:
            copies[step.results[0]] = step
    gone: set[int] = set()
    result = []
    for step in steps:
        source = step.arguments[0] if step.arguments else None
        if step.operator == "reshape" and isinstance(source, Value) and source.number in copies:
            origin = copies[source.number].arguments[0]
            memories = {raw.roots.get(v.number, v.number) for v in (origin, source) if isinstance(v, Value)}
            if isinstance(origin, Value) and not memories & written:
                gone.add(copies[source.number].number)
                step = replace(step, arguments=(origin, *step.arguments[1:]))
        result.append(step)
    return [step for step in result if step.number not in gone]


def renumbered(
    steps: list[Step], returned: list[Value | Held], inputs: int, constants: list[str]
) -> tuple[list[Step], list[Value | Held], dict[str, str]]:
    """Steps, values and constants numbered from the start, in order: two recordings of one program then look alike.

    Returns:
        The steps, what is returned, and the recorded name of each constant by its new one.
    """
    numbers: dict[int, int] = {k: k for k in range(inputs)}
    names: dict[str, str] = {}

    def change(item: Any) -> Any:
        if isinstance(item, Value):
            return Value(numbers[item.number])
        if isinstance(item, Held) and item.name in constants:
            return Held(names.setdefault(item.name, f"constants.{len(names)}"))
        return item

    result = []
    for k, step in enumerate(steps):
        changed = step.mapped(change)
        results = tuple(None if n is None else numbers.setdefault(n, len(numbers)) for n in step.results)
        result.append(replace(changed, number=k, results=results))
    returned = [change(r) for r in returned]
    return result, returned, {new: old for old, new in names.items()}
