"""Running a network on stored batches piece by piece: up to an operation, and later on from there, each operation computed once.

The model itself runs each time, from its start, but an operation before the point that was reached is not computed again: it returns its
stored result where something later reads it, and an empty tensor of the same shape where nothing does. So any model can be stopped
between two operations, whatever its code looks like, and one forward pass in total serves all layers.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.errors import CaptureError
from latprune.graph.conditions import capture_conditions, during_calls, forget_cached, preserved_state
from latprune.graph.tensors import operands, tensors_in
from latprune.train.batches import forward

__all__ = ["Key", "Lifetimes", "Operation", "Stepper", "Sequence_", "held_values", "record_operations"]

Key = tuple[int, int]
"""A result: number of the operation and place among its results. The inputs of the recorded part are of operation -1."""
FOREVER = 1 << 60


@dataclass(slots=True)
class Operation:
    """One operation of a recorded run.

    Attributes:
        func: The operator overload.
        module: Path of the innermost module that was running.
        sources: For each tensor argument (flattened) the result that it is; None for parameters, buffers and constants.
        operands: The tensor arguments that are parameters, buffers or views of them, by their place among the tensor arguments.
        shapes: Shapes of the tensor arguments.
        constants: The arguments that are no tensors, by position (tensors are None there).
        results: For each tensor result its key (an operation that writes in place returns its argument's).
        writes: Keys that it writes into.
    """

    func: Any
    module: str
    sources: tuple[Key | None, ...]
    operands: dict[int, Tensor]
    shapes: tuple[tuple[int, ...], ...]
    constants: tuple[Any, ...]
    results: tuple[Key | None, ...] = ()
    result_shapes: tuple[tuple[int, ...], ...] = ()
    writes: tuple[Key, ...] = ()

    @property
    def name(self) -> str:
        """``aten.convolution``: the operator without its overload."""
        return str(self.func).rpartition(".")[0]


@dataclass(slots=True)
class Sequence_:
    """A recorded run: its operations, and for each result the last operation that reads it (``FOREVER`` for the model's outputs)."""

    operations: list[Operation] = field(default_factory=list)
    last_read: dict[Key, int] = field(default_factory=dict)
    readers: dict[Key, list[int]] = field(default_factory=dict)
    written: dict[Key, list[int]] = field(default_factory=dict)
    outputs: tuple[Key, ...] = ()
    returned: dict[str, int] = field(default_factory=dict)
    """Module path -> operation that made the (first) tensor that it returned, for modules that ran once."""
    caching: bool = False
    """Whether a run leaves something behind in the model's modules (a cached mask), so that it must be undone between two runs."""


def _leaves(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes down the operations of one run and where their arguments come from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = Sequence_()
        self.path = [""]
        self._keys: dict[int, tuple[weakref.ref[Tensor], Key]] = {}
        self._stored = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}

    def key_of(self, tensor: Tensor) -> Key | None:
        known = self._keys.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run one operation and write it down."""
        options = dict(kwargs or {})
        tensors = operands(args, options)
        index = len(self.found.operations)
        sources = tuple(self.key_of(t) for t in tensors)
        constants = tuple(None if isinstance(a, Tensor) else a for a in args)
        stored = {
            k: t
            for k, (t, s) in enumerate(zip(tensors, sources, strict=True))
            if t.numel() and t.untyped_storage().data_ptr() in self._stored
        }
        operation = Operation(
            func=func,
            module=self.path[-1],
            sources=sources,
            operands=stored,
            shapes=tuple(tuple(t.shape) for t in tensors),
            constants=constants,
        )
        self.found.operations.append(operation)
        for key in sources:
            if key is not None:
                self.found.last_read[key] = index
                self.found.readers.setdefault(key, []).append(index)
        output = func(*args, **options)
        results: list[Key | None] = []
        writes: list[Key] = []
        for place, leaf in enumerate(_leaves(output)):
            if not isinstance(leaf, Tensor):
                results.append(None)
                continue
            key = self.key_of(leaf)
            if key is not None:
                writes.append(key)
            else:
                key = (index, place)
                self._keys[id(leaf)] = (weakref.ref(leaf), key)
            results.append(key)
        if func._schema.is_mutable:
            for argument, value in zip(func._schema.arguments, args, strict=False):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    writes.extend(k for k in (self.key_of(t) for t in operands((value,), {})) if k is not None)
        operation.results = tuple(results)
        operation.result_shapes = tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else () for leaf in _leaves(output))
        operation.writes = tuple(dict.fromkeys(writes))
        for key in operation.writes:
            self.found.written.setdefault(key, []).append(index)
        return output


@contextmanager
def _conditions(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is as it was, without what the run cached in it."""
    modes = [(module, module.training) for module in model.modules()]
    forget_cached(model)
    for module, _ in modes:
        module.training = False
    try:
        with capture_conditions(), preserved_state(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
        forget_cached(model)


def _attributes(model: nn.Module) -> list[tuple[int, ...]]:
    """What the modules hold, by identity."""
    holders = [d for m in model.modules() for d in (m.__dict__, m._buffers, m._parameters)]
    return [tuple(id(v) for name, v in d.items() if name != "training") for d in holders]


def record_operations(model: nn.Module, inputs: Any, within: str = "") -> Sequence_:
    """Run the model once and write down its operations (those inside of ``within`` where that is given)."""
    with _conditions(model):
        recorder = _Recorder(model)
        handles = []
        before = _attributes(model)

        def enter(path: str) -> Callable[..., None]:
            return lambda *_: recorder.path.append(path)

        ran: dict[str, int] = {}

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            path = recorder.path.pop()
            ran[path] = ran.get(path, 0) + 1
            tensors = tensors_in(output)
            key = recorder.key_of(tensors[0]) if tensors else None
            if key is not None and key[0] >= 0:
                recorder.found.returned[path] = max([key[0], *recorder.found.written.get(key, ())])

        for path, module in model.named_modules():
            if isinstance(module, torch.jit.ScriptModule):
                continue
            handles += [module.register_forward_pre_hook(enter(path)), module.register_forward_hook(leave, always_call=True)]
        try:
            with during_calls(model, within, recorder):
                output = forward(model, inputs)
        finally:
            for handle in handles:
                handle.remove()
        found = recorder.found
        found.returned = {path: at for path, at in found.returned.items() if ran[path] == 1}
        found.caching = _attributes(model) != before
        outputs = [recorder.key_of(t) for t in tensors_in(output)]
        found.outputs = tuple(k for k in outputs if k is not None)
        if within:
            # What the rest of the model reads is not known: everything that nothing inside reads may be read outside.
            made = {k for op in found.operations for k in op.results if k is not None}
            found.outputs = tuple(k for k in made if k not in found.last_read or k in found.outputs)
        for key in found.outputs:
            found.last_read[key] = FOREVER
    return found


class Lifetimes:
    """How many values a run holds at each place: results that something later reads, without views of others.

    Args:
        sequence: The recorded run.
    """

    def __init__(self, sequence: Sequence_) -> None:
        self._operations, self._written = sequence.operations, sequence.written
        self._last = dict(sequence.last_read)
        self._base: dict[Key, Key] = {}
        """A view -> what it shows."""
        views: set[Key] = set()
        for index, operation in reversed(list(enumerate(sequence.operations))):
            for place, (key, returned) in enumerate(zip(operation.results, operation.func._schema.returns, strict=False)):
                if key == (index, place) and returned.alias_info is not None:
                    views.add(key)
                    for source in operation.sources[:1]:
                        if source is not None:  # what a view shows is held as long as the view is read
                            self._base[key] = source
                            self._last[source] = max(self._last.get(source, -1), self._last.get(key, -1))
        changes = [0] * (len(sequence.operations) + 2)
        for index, operation in enumerate(sequence.operations):
            for place, (key, shape) in enumerate(zip(operation.results, operation.result_shapes, strict=True)):
                until = min(self._last.get((index, place), -1), len(sequence.operations))
                if key == (index, place) and key not in views and until > index:
                    changes[index + 1] += math.prod(shape)
                    changes[until + 1] -= math.prod(shape)
        self._held = list(accumulate(changes))

    @property
    def most(self) -> int:
        """Most values held between two operations."""
        return max(self._held)

    def held_at(self, stop: int, kept: Iterable[int]) -> int:
        """Values held where the run stands before operation ``stop``, with the first results of the operations ``kept`` beside.

        Those that something reads after ``stop`` count once, unless what is kept is a copy, because a later operation writes into it.
        """
        extra: dict[Key, int] = {}
        for index in kept:
            key = self._operations[index].results[0]
            if key is None or any(j > index for j in self._written.get(key, ())):
                extra[index, 0] = self.size(index)
                continue
            while key in self._base:
                key = self._base[key]
            if self._last.get(key, -1) < stop:
                extra[key] = self.size(index)
        return self._held[stop] + sum(extra.values())

    def size(self, index: int) -> int:
        """Values of an operation's first result."""
        return math.prod(self._operations[index].result_shapes[0])


def held_values(sequence: Sequence_) -> int:
    """Most values that a run held between two of its operations: results that something later reads, without views of others."""
    return Lifetimes(sequence).most


class _ReachedError(Exception):
    """Raised by the run itself where it is to stop."""


@dataclass(slots=True)
class _Meta:
    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


@dataclass(slots=True)
class _Batch:
    """Where the run of one batch stands."""

    inputs: Any
    reached: int = 0
    live: dict[Key, Tensor] = field(default_factory=dict)
    results: list[list[Any]] = field(default_factory=list)
    single: list[bool] = field(default_factory=list)
    pinned: dict[int, Tensor] = field(default_factory=dict)
    arguments: list[Tensor] = field(default_factory=list)
    output: Any = None


class _Run(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One run of one batch from where it stands to ``stop``."""

    def __init__(self, sequence: Sequence_, batch: _Batch, stop: int, pins: Mapping[int, bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sequence, self.batch, self.stop, self.pins = sequence, batch, stop, pins
        self.place = 0
        self.made: dict[Key, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Compute, hand back what is stored, or stop."""
        index, self.place = self.place, self.place + 1
        options = dict(kwargs or {})
        if index >= len(self.sequence.operations) or self.sequence.operations[index].func is not func:
            recorded = self.sequence.operations[index].func if index < len(self.sequence.operations) else "the end"
            raise CaptureError(
                f"operation {index} of the network is {func} on this batch and was {recorded} on the first one: it takes a course that "
                "depends on the data; give batches of one shape, or leave recovery off"
            )
        if index >= self.stop:
            self.batch.arguments = operands(args, options)
            raise _ReachedError
        operation = self.sequence.operations[index]
        if index < self.batch.reached:
            return self._stored(index, operation, args)
        output = func(*args, **options)
        leaves = _leaves(output)
        self.batch.single.append(not isinstance(output, (list, tuple)))
        self.batch.results.append([_Meta(v.shape, v.stride(), v.dtype, v.device) if isinstance(v, Tensor) else v for v in leaves])
        for leaf, key in zip(leaves, operation.results, strict=True):
            if key is not None and self.sequence.last_read.get(key, -1) >= self.stop:
                self.made[key] = leaf
        if index in self.pins:
            self.batch.pinned[index] = leaves[0].clone() if self.pins[index] else leaves[0]
        return output

    def _stored(self, index: int, operation: Operation, args: tuple[Any, ...]) -> Any:
        if operation.func._schema.is_mutable and operation.writes and args and isinstance(args[0], Tensor):
            return args[0]  # an operation that writes in place returns what it was given
        found = []
        for place, (leaf, key) in enumerate(zip(self.batch.results[index], operation.results, strict=True)):
            if not isinstance(leaf, _Meta):
                found.append(leaf)
            elif key in self.batch.live and key == (index, place):
                found.append(torch.ops.aten.alias.default(self.batch.live[key]))
            else:
                found.append(torch.empty_strided(leaf.shape, leaf.stride, dtype=leaf.dtype, device=leaf.device))
        return found[0] if self.batch.single[index] else tuple(found)


class Stepper:
    """A model on stored batches, run piece by piece.

    Args:
        model: The network; its weights may change between two calls of :meth:`advance`, what was reached is not computed anew.
        batches: Inputs of the model, batch by batch.
        within: Path of the sub-module whose operations count; empty for the whole model.
    """

    def __init__(self, model: nn.Module, batches: Sequence[Any], within: str = "", sequence: Sequence_ | None = None) -> None:
        self.model = model
        self.within = within
        self.sequence = sequence if sequence is not None else record_operations(model, batches[0], within)
        self._batches = [_Batch(inputs=inputs) for inputs in batches]
        self._pins: dict[int, bool] = {}
        self._ready = False

    def __len__(self) -> int:
        return len(self._batches)

    def pin(self, index: int) -> None:
        """Keep the first result of an operation, as it is right after it, until :meth:`release`."""
        keys = self.sequence.operations[index].results
        later = [j for k in keys[:1] if k is not None for j in self.sequence.written.get(k, ()) if j > index]
        self._pins[index] = bool(later)

    def release(self, index: int) -> None:
        """Forget a pinned result."""
        self._pins.pop(index, None)
        for batch in self._batches:
            batch.pinned.pop(index, None)

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The conditions of a run for several batches, so that they are not set up for each."""
        with _conditions(self.model):
            self._ready = True
            try:
                yield
            finally:
                self._ready = False

    def peek(self, number: int, stop: int) -> list[Tensor]:
        """Tensor arguments of an operation further on; the batch stays where it stands."""
        batch = self._batches[number]
        saved = (batch.reached, dict(batch.live), list(batch.results), list(batch.single), dict(batch.pinned), batch.arguments)
        try:
            self.advance(number, stop)
            return batch.arguments
        finally:
            batch.reached, batch.live, batch.results, batch.single, batch.pinned, batch.arguments = saved

    def advance(self, number: int, stop: int) -> None:
        """Bring one batch up to (not including) operation ``stop``; nothing is done where it stands there already."""
        batch = self._batches[number]
        if stop < batch.reached:
            return
        run = _Run(self.sequence, batch, stop, self._pins)
        with _conditions(self.model) if not self._ready or self.sequence.caching else nullcontext():
            try:
                with during_calls(self.model, self.within, run):
                    batch.output = forward(self.model, batch.inputs)
            except _ReachedError:
                pass
        live = {key: value for key, value in batch.live.items() if self.sequence.last_read.get(key, -1) >= stop}
        live.update(run.made)
        batch.live = live
        batch.reached = min(stop, len(self.sequence.operations))

    def arguments(self, number: int) -> list[Tensor]:
        """Tensor arguments of the operation that the batch stands before."""
        return self._batches[number].arguments

    def pinned(self, number: int, index: int) -> Tensor:
        """A pinned result."""
        return self._batches[number].pinned[index]

    def live(self, number: int, key: Key) -> Tensor | None:
        """A result that was computed and that something later reads."""
        return self._batches[number].live.get(key)

    def output(self, number: int) -> Any:
        """The model's output, after the batch was brought to the end."""
        return self._batches[number].output
