"""What training mode does beyond the recorded run (auxiliary heads, deep supervision): what it reads of the network stays whole."""

from __future__ import annotations

import inspect
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.copying import copied
from latprune.errors import LatpruneError
from latprune.graph.conditions import capture_conditions
from latprune.graph.example_inputs import call_with
from latprune.graph.labels import LabelSpace, connected
from latprune.graph.provenance import CallWatcher
from latprune.graph.recorder import Recorder
from latprune.graph.recording import Info, Recording
from latprune.graph.tensors import flatten_tensors, operands

__all__ = ["TrainingReads", "training_reads"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReads:
    """What training mode reads of the recorded network.

    Attributes:
        frozen: Label -> reason, for what must stay.
        layers: Parameter or buffer -> reason, where what is computed with it is read by itself: a branch around it must stay.
        note: What could not be looked at, with the remedy; empty where all was.
    """

    frozen: Mapping[int, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def training_reads(model: nn.Module, example_inputs: Any, recording: Recording) -> TrainingReads:
    """Compare a run in training mode, on a copy, with the recorded run in evaluation mode.

    The run is made where the code of a module asks for the mode, or where the recorded run left parameters out. It is recorded in full only
    where it uses tensors, or returns results, that the recorded run does not: the channels that meet those tensors, or are returned, stay,
    because the recorded run cannot tell how those tensors would have to be cut.
    """
    if not _asks_for_the_mode(model) and all(name in recording.tensor_labels for name in recording.parameters):
        return TrainingReads()
    try:
        trial = copied(model)
        more, error = _does_more(trial, example_inputs, recording)
        if not more:
            return TrainingReads(note=_not_seen(error))
        trial = copied(model)
    except LatpruneError as failed:
        return TrainingReads(note=_not_seen(failed))
    recorder, outputs, error = _recorded(trial, example_inputs)
    unknown = recorder.tensor_labels.keys() - recording.tensor_labels.keys()
    idle = {name: f"read by {_reader(name)}, which runs in training only" for name in unknown}
    return TrainingReads(
        frozen=_frozen(recorder, outputs, recording, idle), layers=_layers_read(recorder, outputs, idle), note=_not_seen(error)
    )


def _reader(name: str) -> str:
    owner, _, leaf = name.rpartition(".")
    return f"'{owner}'" if owner else f"what computes with '{leaf}'"


def _not_seen(error: Exception | None) -> str:
    if error is None:
        return ""
    line = next(iter(str(error).splitlines()), "")
    return (
        "what runs in training only could not be looked at to its end, and may not fit the pruned network: in training mode the model "
        f"raised {type(error).__name__}: {line}. Give example inputs with which it runs in training mode (with targets, or a batch of "
        "several), or name in keep the layers that such branches read"
    )


# -- whether there is anything to look at ------------------------------------------------------------------------------------------------


def _asks_for_the_mode(model: nn.Module) -> bool:
    return any(_mentions_training(kind) for kind in {type(module) for module in model.modules()})


def _mentions_training(kind: type) -> bool:
    """Whether a method of a class outside of PyTorch names the attribute ``training``."""
    own = (base for base in kind.__mro__ if base is not object and not base.__module__.startswith("torch."))
    functions = (inspect.unwrap(value) for base in own for value in vars(base).values() if inspect.isfunction(value))
    return any("training" in code.co_names for function in functions for code in _codes(function.__code__))


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


class _Uses(TorchDispatchMode):
    """Counts how often each parameter, and buffer of numbers that are no counters, is an operand."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        self._names = {
            id(t): name
            for named in (model.named_buffers, model.named_parameters)
            for name, t in named()
            if t.is_floating_point() or t.is_complex()
        }

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.counts.update(self._names[id(t)] for t in operands(args, kwargs or {}) if id(t) in self._names)
        return func(*args, **(kwargs or {}))


def _does_more(trial: nn.Module, example_inputs: Any, recording: Recording) -> tuple[bool, Exception | None]:
    """Whether a run in training mode uses tensors more often, or returns other results, than the recorded one; and what it raised."""
    uses = _Uses(trial)
    output, error = _run(trial, example_inputs, lambda: [uses])
    before = Counter(i.name for node in recording.nodes for i in node.inputs if i.node == -1)
    more = any(count > before[name] for name, count in uses.counts.items() if name in recording.parameters or not before[name])
    shapes = [tuple(tensor.shape) for tensor in flatten_tensors(output, opaque=False)]
    return more or (error is None and shapes != [tuple(info.shape) for info in recording.outputs]), error


def _run(trial: nn.Module, example_inputs: Any, modes: Callable[[], Iterable[Any]]) -> tuple[Any, Exception | None]:
    """A run of ``trial``, which is changed by it, in training mode; what it returned, or raised."""
    for module in trial.modules():
        module.training = True
    numbers = random.getstate(), np.random.get_state()
    with ExitStack() as stack:
        stack.callback(lambda: (random.setstate(numbers[0]), np.random.set_state(numbers[1])))
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(capture_conditions())
        for mode in modes():
            stack.enter_context(mode)
        try:
            return call_with(trial, example_inputs), None
        except Exception as error:  # of any kind: it may want targets, or a batch of several for its norms
            return None, error


# -- what it reads -----------------------------------------------------------------------------------------------------------------------


def _recorded(trial: nn.Module, example_inputs: Any) -> tuple[Recorder, list[Info], Exception | None]:
    """The run in training mode, recorded as far as it goes, and what it returns."""
    watcher = CallWatcher()
    recorder = Recorder(trial, watcher)
    for k, tensor in enumerate(flatten_tensors(example_inputs if not isinstance(example_inputs, list) else tuple(example_inputs))):
        recorder.set(tensor, Info(fields=(), node=-2, output=k, shape=tuple(tensor.shape), dynamic=True))
    output, error = _run(trial, example_inputs, lambda: [recorder.watch_modules(), watcher, recorder])
    return recorder, [recorder.info(t) for t in flatten_tensors(output, opaque=False)], error


def _frozen(recorder: Recorder, outputs: list[Info], recording: Recording, idle: Mapping[str, str]) -> dict[int, str]:
    """Labels of the recorded run that stay, with reasons."""
    space, evaluated = recorder.space, recording.space
    roots = connected(space.size, space.pairs)
    before = connected(evaluated.size, evaluated.pairs)
    same = _same_labels(space, evaluated)
    stays: dict[int, str] = {}
    for r in space.ranges:
        if r.kind == "tensor" and r.tensor in idle:
            stays |= dict.fromkeys(roots[r.start : r.stop].tolist(), idle[r.tensor])
    for name in idle.keys() & recorder.grouped.keys():
        stays |= dict.fromkeys(roots[recorder.grouped[name].reshape(-1).numpy()].tolist(), idle[name])
    for info in outputs:
        for f in info.fields:
            for root in np.unique(roots[f.numpy()]).tolist():
                stays.setdefault(root, "returned in training mode")
    for root in _tied(roots, same, before):
        stays.setdefault(root, "tied to other channels in training only")
    _spread(space, roots, stays)
    already = {int(root) for labels, _ in evaluated.frozen for root in np.unique(before[labels])}
    found: dict[int, str] = {}
    for label in np.flatnonzero(same >= 0).tolist():
        why = stays.get(int(roots[label]))
        if why is not None and int(before[same[label]]) not in already:
            found[int(same[label])] = why
    return found


def _same_labels(space: LabelSpace, evaluated: LabelSpace) -> IntArray:
    """For each label of the run in training mode that of the same place of the same tensor in the recorded run, or -1."""
    starts = {(r.tensor, r.dim): r for r in evaluated.ranges if r.kind == "tensor"}
    same = np.full(space.size, -1, dtype=np.int64)
    for r in space.ranges:
        other = starts.get((r.tensor, r.dim)) if r.kind == "tensor" else None
        if other is not None:
            same[r.start : r.stop] = np.arange(other.start, other.stop)
    return same


def _tied(roots: IntArray, same: IntArray, before: IntArray) -> list[int]:
    """Classes of the run in training mode that hold several of the recorded run's."""
    known = np.flatnonzero(same >= 0)
    pairs = np.unique(np.stack([roots[known], before[same[known]]], axis=1), axis=0)
    classes, counts = np.unique(pairs[:, 0], return_counts=True)
    tied: list[int] = classes[counts > 1].tolist()
    return tied


def _spread(space: LabelSpace, roots: IntArray, stays: dict[int, str]) -> None:
    """What a class that stays stands for stays as well."""
    edges = [(roots[coarse], roots[fine]) for coarse, fine in space.bundles]
    while True:
        found = {
            f: stays[c]
            for coarse, fine in edges
            for c, f in zip(coarse.tolist(), fine.tolist(), strict=True)
            if c in stays and f not in stays
        }
        if not found:
            return
        stays |= found


def _layers_read(recorder: Recorder, outputs: list[Info], idle: Mapping[str, str]) -> dict[str, str]:
    """Tensors of the layers whose results are read, followed back through operations of one operand (what a sum gives is no layer's)."""
    starts = [(info, "returned in training mode") for info in outputs]
    for node in recorder.nodes:
        why = next((idle[name] for i in node.inputs if (name := i.name or "") in idle), None)
        if why is not None:
            starts += [(info, why) for info in node.inputs if info.dynamic]
    found: dict[str, str] = {}
    for info, why in starts:
        while info.node >= 0:
            node = recorder.nodes[info.node]
            names = [i.name for i in node.inputs if i.name is not None]
            dynamic = [i for i in node.inputs if i.dynamic]
            found.update((name, why) for name in names if name not in idle and name not in found)
            if names or len(dynamic) != 1:
                break
            info = dynamic[0]
    return found
