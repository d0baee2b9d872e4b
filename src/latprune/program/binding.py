"""Steps bound to the tensors of a module, ready to run in the names of the modules that stood there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from latprune.program.operators import resolve
from latprune.program.steps import BatchMultiple, Device, Dtype, Held, Size, Step, Training, Value

if TYPE_CHECKING:
    from latprune.program.module import ProgramModule

__all__ = ["Frame", "Part", "ProgramScope", "bind"]


class Frame:
    """The values of one run."""

    __slots__ = ("batch", "cumulative", "device", "dtype", "sizes", "training", "values")

    def __init__(self, module: ProgramModule, values: list[Any], batch: Any) -> None:
        self.values = values
        self.batch = batch
        self.sizes = module.size_literals
        self.training = module.training
        self.cumulative = module.cumulative_statistics
        main = module.main_tensor()
        self.dtype = main.dtype if main is not None else torch.float32
        self.device = main.device if main is not None else torch.device("cpu")


Resolver = Callable[[Frame], Any]
Instruction = Callable[[Frame], None]


class Part:
    """What runs in one call of a module, in order: its own steps, and calls of its children."""

    __slots__ = ("items",)

    def __init__(self) -> None:
        self.items: list[Instruction | tuple[str, Part]] = []

    def run(self, module: nn.Module, frame: Frame) -> None:
        """Run it in the name of ``module``."""
        frame.training = module.training
        for item in self.items:
            if isinstance(item, tuple):
                child, part = item
                module._modules[child](frame, part)  # type: ignore[misc]
                frame.training = module.training
            else:
                item(frame)


class ProgramScope(nn.Module):
    """Stands where a module of the captured model stood: holds its tensors, and its steps run in its name (hooks, profiles and exporters
    see them there).

    Attributes:
        kind: Class of the module that stood here.
    """

    def __init__(self, kind: str = "") -> None:
        super().__init__()
        self.kind = kind

    def forward(self, frame: Frame, part: Part) -> None:
        """Run steps of this module and its children."""
        part.run(self, frame)

    def extra_repr(self) -> str:
        """The class that stood here, and its own tensors."""
        own = [f"{n}={tuple(t.shape)}" for n, t in (*self._parameters.items(), *self._buffers.items()) if t is not None]
        return ", ".join([self.kind, *own])


def bind(module: ProgramModule) -> Part:
    """The steps, bound to the tensors of ``module``, nested like the modules that they ran in."""
    program = module.program
    last: dict[int, int] = {}
    for k, step in enumerate(program.steps):
        for reference in step.reads():
            if isinstance(reference, Value):
                last[reference.number] = k
    kept = {r.number for r in program.outputs["returned"] if isinstance(r, Value)} | set(range(len(program.inputs)))
    ends: dict[int, list[int]] = {}
    for number, k in last.items():
        if number not in kept:
            ends.setdefault(k, []).append(number)
    whole = Part()
    open_: list[tuple[str, Part]] = []
    for k, step in enumerate(program.steps):
        path = step.module.split(".") if step.module else []
        same = 0
        while same < min(len(open_), len(path)) and open_[same][0] == path[same]:
            same += 1
        del open_[same:]
        for name in path[same:]:
            part = Part()
            (open_[-1][1] if open_ else whole).items.append((name, part))
            open_.append((name, part))
        (open_[-1][1] if open_ else whole).items.append(_instruction(module, step, tuple(ends.get(k, ()))))
    return whole


def _instruction(module: ProgramModule, step: Step, ends: tuple[int, ...]) -> Instruction:
    """A step that reads and writes the values of a run; values in ``ends`` are read here for the last time."""
    function = resolve(step.operator)
    arguments = [_resolver(module, a) for a in step.arguments]
    keywords = {name: _resolver(module, a) for name, a in step.keywords.items()}
    if step.operator == "batch_norm":
        momentum = arguments[6]
        arguments[6] = lambda frame: None if frame.cumulative else momentum(frame)
    results = step.results
    number = step.number

    def run(frame: Frame) -> None:
        values = frame.values
        out = function(*[a(frame) for a in arguments], **{name: a(frame) for name, a in keywords.items()})
        if step.several:
            for place, value in zip(results, out, strict=True):
                if place is not None:
                    values[place] = value
        elif results[0] is not None:
            values[results[0]] = out
        for end in ends:
            values[end] = None

    def noted(frame: Frame) -> None:
        module.note_running(number)
        run(frame)

    return noted


def _resolver(module: ProgramModule, argument: Any) -> Resolver:
    """How an argument becomes a value in a run."""
    if isinstance(argument, Value):
        number = argument.number
        return lambda frame: frame.values[number]
    if isinstance(argument, Held):
        path, _, leaf = argument.name.rpartition(".")
        holder = module.get_submodule(path)
        return lambda frame: getattr(holder, leaf)
    if isinstance(argument, Size):
        index = argument.index
        if argument.per_batch:
            return lambda frame: frame.sizes[index] * frame.batch
        return lambda frame: frame.sizes[index]
    if isinstance(argument, BatchMultiple):
        count = argument.count
        return lambda frame: count * frame.batch
    if isinstance(argument, Training):
        return lambda frame: frame.training
    if isinstance(argument, Device):
        return lambda frame: frame.device
    if isinstance(argument, Dtype):
        if argument.name == "own":
            return lambda frame: frame.dtype
        dtype = getattr(torch, argument.name)
        return lambda frame: dtype
    if isinstance(argument, (list, tuple)):
        items = [_resolver(module, a) for a in argument]
        return lambda frame: [item(frame) for item in items]
    if isinstance(argument, str) and argument.startswith("torch."):
        value = getattr(torch, argument.removeprefix("torch."))
        return lambda frame: value
    return lambda frame: argument
