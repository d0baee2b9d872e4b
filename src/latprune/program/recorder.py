"""Recording one run as steps: functions that exporters know are kept whole, everything else is recorded operator by operator."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.errors import CaptureError
from latprune.graph.conditions import capture_conditions, forget_cached, preserved_buffers, preserved_state
from latprune.graph.tensors import flatten_tensors
from latprune.modes import preserved_modes
from latprune.program.steps import Device, Dtype, Held, Step, Training, Value, mapped
from latprune.program.structure import describe_outputs
from latprune.program.whole import WHOLE

__all__ = ["RawProgram", "record_program"]


@dataclass(slots=True, eq=False)
class RawProgram:
    """What one run left behind.

    Attributes:
        steps: In execution order, as recorded.
        outputs: Structure of the answer, with the numbers of values in ``returned``.
        returned: What each tensor of the answer is.
        held: Parameters, buffers and constants that were read, by name.
        constants: Names of tensors that are no part of the model's state.
        shapes: Shape of each value.
        strides: Strides of each value.
        roots: Value whose memory each value shares (itself where it has its own).
        writes: Step -> the values that it writes into.
        tensors: The tensors of the answer.
    """

    steps: list[Step] = field(default_factory=list)
    outputs: Any = None
    returned: list[Value | Held] = field(default_factory=list)
    held: dict[str, torch.Tensor] = field(default_factory=dict)
    constants: list[str] = field(default_factory=list)
    shapes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    strides: dict[int, tuple[int, ...]] = field(default_factory=dict)
    roots: dict[int, int] = field(default_factory=dict)
    writes: dict[int, tuple[Value | Held, ...]] = field(default_factory=dict)
    tensors: list[torch.Tensor] = field(default_factory=list)


def record_program(model: nn.Module, inputs: list[torch.Tensor], call: Callable[[], Any]) -> RawProgram:
    """Run ``call`` once in evaluation mode without gradients and record what ``model`` does to ``inputs``.

    Raises:
        CaptureError: The model does not run, or does something that cannot stand in a program.
    """
    forget_cached(model)
    recorder = _Recorder(model)
    raw = recorder.raw
    try:
        with ExitStack() as stack:
            stack.enter_context(preserved_modes(model))
            for module in model.modules():
                module.training = False
            for tensor in inputs:
                recorder.add(tensor, dynamic=True)
            stack.enter_context(capture_conditions())
            stack.enter_context(preserved_state(model))
            stack.enter_context(preserved_buffers(model))
            stack.enter_context(_plain_functions())
            stack.enter_context(recorder.watch_modules())
            stack.enter_context(_Functions(recorder))
            stack.enter_context(recorder)
            try:
                output = call()
            except CaptureError:
                raise
            except Exception as error:
                raise CaptureError(
                    f"the model does not run on the example inputs: {type(error).__name__}: {error} (in module '{recorder.module}')"
                ) from error
        tensors: list[torch.Tensor] = []
        raw.outputs = describe_outputs(output, tensors)
        raw.returned = [recorder.reference(t) for t in tensors]
        raw.tensors = [t.clone() for t in tensors]
    finally:
        forget_cached(model)
    return raw


_PACKED = "_in_projection_packed"


def _apart(original: Callable[..., Any]) -> Callable[..., Any]:
    """The fused projection of queries, keys and values, split instead of indexed."""

    def project(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> Any:
        if k is not v:
            return original(q, k, v, w, b)
        linear, size = torch.nn.functional.linear, q.shape[-1]
        if q is k:
            return [t.contiguous() for t in linear(q, w, b).chunk(3, -1)]
        own, bias = (w[:size], w[size:]), (None, None) if b is None else (b[:size], b[size:])
        return [linear(q, own[0], bias[0]), *(t.contiguous() for t in linear(k, own[1], bias[1]).chunk(2, -1))]

    return project


@contextmanager
def _plain_functions() -> Iterator[None]:
    """Functions of ``torch.nn.functional`` written in Python run their bodies, so that the functions that they call are seen; multi-head
    attention splits its fused projection into parts, which may then differ in size, where it would index equal parts.
    """
    import torch.nn.functional as functional

    names = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    before = {name: getattr(functional, name) for name in (*names, _PACKED)}
    for name in names:
        setattr(functional, name, lambda *_: False)
    setattr(functional, _PACKED, _apart(before[_PACKED]))
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(functional, name, value)


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.raw = RawProgram()
        self.module = ""
        self.paused = False
        self._stack: list[str] = []
        self._known: dict[int, tuple[weakref.ref[torch.Tensor], int]] = {}
        self._dynamic: set[int] = set()
        self._constants: dict[int, tuple[weakref.ref[torch.Tensor], str]] = {}
        self._names = {id(t): n for kind in (model.named_buffers, model.named_parameters) for n, t in kind()}
        main = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = main

    # -- modules ---------------------------------------------------------------------------------------------------

    @contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Keep the path of the running module."""
        with ExitStack() as stack:
            for path, module in self.model.named_modules():
                if isinstance(module, torch.jit.ScriptModule):
                    continue

                def enter(_m: nn.Module, _a: Any, path: str = path) -> None:
                    self._stack.append(path)
                    self.module = path

                def leave(_m: nn.Module, _a: Any, _o: Any) -> None:
                    self._stack.pop()
                    self.module = self._stack[-1] if self._stack else ""

                stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(leave).remove)
            yield

    # -- values ----------------------------------------------------------------------------------------------------

    def add(self, tensor: torch.Tensor, *, dynamic: bool, root: int | None = None) -> int:
        """A new value that is ``tensor``."""
        number = len(self.raw.shapes)
        self.raw.shapes[number] = tuple(tensor.shape)
        self.raw.strides[number] = tuple(tensor.stride())
        self.raw.roots[number] = number if root is None else root
        if dynamic:
            self._dynamic.add(number)
        self._known[id(tensor)] = (weakref.ref(tensor), number)
        return number

    def reference(self, tensor: torch.Tensor) -> Value | Held:
        """What a tensor is: a value of this run, a tensor of the model, or a constant from elsewhere."""
        found = self._known.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return Value(found[1])
        name = self._names.get(id(tensor))
        if name is None:
            known = self._constants.get(id(tensor))
            if known is not None and known[0]() is tensor:
                return Held(known[1])
            name = f"program_constants.{len(self.raw.constants)}"
            self.raw.constants.append(name)
            self._constants[id(tensor)] = (weakref.ref(tensor), name)
            paused, self.paused = self.paused, True
            self.raw.held[name] = tensor.detach().clone()
            self.paused = paused
        else:
            self.raw.held[name] = tensor
        return Held(name)

    def encode(self, value: Any) -> Any:
        """An argument as it stands in a step."""
        if isinstance(value, torch.Tensor):
            return self.reference(value)
        if isinstance(value, (list, tuple)):
            return [self.encode(v) for v in value]
        if isinstance(value, Training):
            return value
        if isinstance(value, torch.dtype):
            return Dtype("own" if value == self.dtype else str(value).removeprefix("torch."))
        if isinstance(value, torch.device):
            return Device()
        if isinstance(value, (torch.memory_format, torch.layout)):
            return str(value)
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int):
            return int(value)
        if isinstance(value, float):
            return float(value)
        raise CaptureError(f"an argument of type {type(value).__name__} in '{self.module}' cannot stand in a program")

    def is_dynamic(self, argument: Any) -> bool:
        """Whether an argument depends on the inputs."""
        found = False

        def look(item: Any) -> Any:
            nonlocal found
            found = found or (isinstance(item, Value) and item.number in self._dynamic)
            return item

        mapped(argument, look)
        return found

    def emit(self, operator: str, arguments: list[Any], keywords: Mapping[str, Any], out: Any, *, func: Any = None) -> None:
        """Add a step that made ``out``."""
        several = not isinstance(out, torch.Tensor)
        tensors = [out] if isinstance(out, torch.Tensor) else list(out)
        dynamic = self.is_dynamic([*arguments, *keywords.values()])
        number = len(self.raw.steps)
        written = _written(func, arguments, keywords) if func is not None else ()
        root = _viewed(func, arguments, keywords, self.raw.roots) if func is not None else None
        if func is None and operator.endswith("dropout") and isinstance(arguments[0], Value):
            root = self.raw.roots[arguments[0].number]  # in evaluation mode it hands its argument on
        results = [self.add(t, dynamic=dynamic, root=root) if isinstance(t, torch.Tensor) else None for t in tensors]
        if written:
            self.raw.writes[number] = written
        self.raw.steps.append(
            Step(
                number=number,
                operator=operator,
                arguments=tuple(arguments),
                keywords=dict(keywords),
                results=tuple(results),
                several=several,
                module=self.module,
            )
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self.paused:
            return func(*args, **kwargs)
        arguments = [self.encode(a) for a in args]
        keywords = {name: self.encode(v) for name, v in kwargs.items() if name not in ("layout", "pin_memory", "non_blocking")}
        self._refuse(func, args, arguments, keywords)
        out = func(*args, **kwargs)
        if isinstance(out, torch.Tensor) or (isinstance(out, (list, tuple)) and flatten_tensors(out)):
            self.emit(str(func), arguments, keywords, out, func=func)
        return out

    def _refuse(self, func: Any, given: tuple[Any, ...], arguments: list[Any], keywords: Mapping[str, Any]) -> None:
        """What depends on the values of this one run has no place in a program."""
        if not self.is_dynamic([*arguments, *keywords.values()]):
            return
        if torch.Tag.data_dependent_output in func.tags:
            raise CaptureError(
                f"the forward of '{self.module}' reads a value that depends on the inputs ({func}); a program would keep the value of this "
                "one run. Use form='class'"
            )
        if torch.Tag.dynamic_output_shape in func.tags and not _integer_indices(func, given):
            raise CaptureError(
                f"the size of a tensor depends on the values of the inputs ({func} in '{self.module}'); a program has the sizes of this "
                "one run. Use form='class'"
            )


def _integer_indices(func: Any, given: tuple[Any, ...]) -> bool:
    """Whether an indexing operator, whose sizes depend on the data in general, has fixed ones here: its indices are integers."""
    return func._schema.name == "aten::index" and all(t is None or not t.dtype == torch.bool for t in given[1])


def _written(func: Any, arguments: list[Any], keywords: Mapping[str, Any]) -> tuple[Value | Held, ...]:
    """The values that an operator writes into."""
    if not func._schema.is_mutable:
        return ()
    found: list[Value | Held] = []
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = arguments[position] if position < len(arguments) else keywords.get(argument.name)
            found += [v for v in (value if isinstance(value, list) else [value]) if isinstance(v, (Value, Held))]
    return tuple(found)


def _viewed(func: Any, arguments: list[Any], keywords: Mapping[str, Any], roots: Mapping[int, int]) -> int | None:
    """The value whose memory the results share."""
    aliased = {
        name for r in func._schema.returns if r.alias_info is not None for name in (*r.alias_info.before_set, *r.alias_info.after_set)
    }
    if not aliased:
        return None
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and aliased & {*argument.alias_info.before_set, *argument.alias_info.after_set}:
            value = arguments[position] if position < len(arguments) else keywords.get(argument.name)
            if isinstance(value, Value):
                return roots[value.number]
    return None


class _Functions(TorchFunctionMode):
    """Functions that are kept whole in a program."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        recorder = self.recorder
        whole = WHOLE.get(getattr(func, "__name__", ""))
        call = whole(func, args, kwargs) if whole is not None and not recorder.paused else None
        if call is None:
            return func(*args, **kwargs)
        operator, given = call
        encoded = [recorder.encode(a) for a in given]
        recorder.paused = True
        try:
            out = func(*args, **kwargs)
        finally:
            recorder.paused = False
        recorder.emit(operator, encoded, {}, out)
        return out
