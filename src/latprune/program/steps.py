"""The parts of a captured program: steps, what their arguments refer to, and the whole as plain data.

Values (results of steps, and the inputs) have numbers. An argument is a plain literal, a list of arguments, or one of the references below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from latprune.graph.containers import like

__all__ = [
    "BatchMultiple",
    "Device",
    "Dtype",
    "FileNames",
    "Held",
    "HeldTensor",
    "InputTensor",
    "Program",
    "Size",
    "Step",
    "Training",
    "Value",
    "mapped",
    "references",
]


@dataclass(frozen=True, slots=True)
class Value:
    """The value with this number."""

    number: int


@dataclass(frozen=True, slots=True)
class Held:
    """The parameter, buffer or constant with this name."""

    name: str


@dataclass(frozen=True, slots=True)
class Size:
    """An integer of the program's ``size_literals``, times the batch size where ``per_batch``."""

    index: int
    per_batch: bool = False


@dataclass(frozen=True, slots=True)
class BatchMultiple:
    """``count`` times the batch size."""

    count: int


@dataclass(frozen=True, slots=True)
class Dtype:
    """A type by its name in torch; ``own`` is the type that the program's floating-point parameters have."""

    name: str


@dataclass(frozen=True, slots=True)
class Device:
    """The device that the program is on."""


@dataclass(frozen=True, slots=True)
class Training:
    """Whether the module that the step belongs to is in training mode."""


Argument = Any
"""``None``, bool, int, float, str, a reference, or a list or tuple of arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One operation.

    Attributes:
        number: Its own; it stays when other steps go.
        operator: Name in :mod:`latprune.program.operators`: a public function (``conv2d``) or an operator overload (``aten.add.Tensor``).
        arguments: Positional arguments.
        keywords: Keyword arguments.
        results: Numbers of the values that it makes, in order; None for one that nothing reads.
        several: The operator returns a tuple or list.
        module: Path of the module that it ran in.
    """

    number: int
    operator: str
    arguments: tuple[Argument, ...]
    keywords: Mapping[str, Argument] = field(default_factory=dict)
    results: tuple[int | None, ...] = ()
    several: bool = False
    module: str = ""

    def reads(self) -> Iterator[Value | Held]:
        """Values and tensors that it reads."""
        for argument in (*self.arguments, *self.keywords.values()):
            for reference in references(argument):
                if isinstance(reference, (Value, Held)):
                    yield reference

    def mapped(self, change: Callable[[Any], Any]) -> Step:
        """The step with every literal and reference of its arguments changed."""
        return replace(
            self,
            arguments=tuple(mapped(a, change) for a in self.arguments),
            keywords={name: mapped(a, change) for name, a in self.keywords.items()},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTensor:
    """An input: its shape in the captured run, its type, its name, and whether its first dimension is the batch."""

    shape: tuple[int, ...]
    dtype: str
    name: str
    batched: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldTensor:
    """What kind of tensor the program holds: ``parameter``, ``buffer``, or ``constant`` (one that was no part of the model's state)."""

    kind: str
    requires_grad: bool = False
    alias_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileNames:
    """Names of inputs and outputs in a file."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Program:
    """A captured program without its tensors.

    Attributes:
        steps: In execution order.
        inputs: Input tensors; input ``k`` is value ``k``.
        arguments: How the inputs lie in ``(args, kwargs)``; see :mod:`latprune.program.structure`.
        outputs: What is returned, with references to values.
        sizes: The integers of ``size_literals`` in the captured network.
        tensors: Name -> kind of each tensor that is held.
        kinds: Module path -> class that it had.
        dtype: Type of the floating-point parameters when it was captured.
        batch_reason: Why it runs at the captured batch size only; empty where it runs at any.
        file_names: Where it was read from a file: the names that inputs and returned tensors have there, and get in a file that is written.
    """

    steps: tuple[Step, ...]
    inputs: tuple[InputTensor, ...]
    arguments: Any
    outputs: Any
    sizes: tuple[int, ...]
    tensors: Mapping[str, HeldTensor]
    kinds: Mapping[str, str]
    dtype: str
    batch_reason: str = ""
    file_names: FileNames | None = None

    def __deepcopy__(self, memo: Any) -> Program:
        """Nothing in it changes, so copies share it."""
        return self


def references(argument: Argument) -> Iterator[Any]:
    """The references in an argument."""
    if isinstance(argument, (list, tuple)):
        for item in argument:
            yield from references(item)
    elif isinstance(argument, dict):
        for item in argument.values():
            yield from references(item)
    elif isinstance(argument, (Value, Held, Size, BatchMultiple, Dtype, Device, Training)):
        yield argument


def mapped(argument: Argument, change: Callable[[Any], Any]) -> Argument:
    """An argument with ``change`` applied to every literal and reference in it."""
    if isinstance(argument, (list, tuple)):
        return like(argument, (mapped(item, change) for item in argument))
    return change(argument)
