"""What training mode does beyond the recorded run (auxiliary heads, deep supervision): what it reads of the network stays whole."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from latprune.copying import copied
from latprune.errors import LatpruneError
from latprune.graph.conditions import capture_conditions
from latprune.graph.containers import rebuilt
from latprune.graph.example_inputs import call_with
from latprune.graph.form_hint import snapshot
from latprune.graph.grouping import Grouping
from latprune.graph.labels import LabelSpace, connected
from latprune.graph.provenance import CallWatcher, leaves, planted
from latprune.graph.recorder import Recorder
from latprune.graph.recording import Info, Recording
from latprune.graph.sizes import Settled, settle
from latprune.graph.tensors import flatten_tensors
from latprune.graph.traced_builtins import traced_builtins

__all__ = ["TrainingReads", "training_reads"]

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingReads:
    """What training mode reads of the recorded network.

    Attributes:
        frozen: Label -> reason, for what must stay.
        layers: Parameter or buffer -> reason, where what is computed with it is read by itself: a branch around it must stay.
        note: What could not be looked at, with the remedy; empty where all was.
        names: Parameters and buffers that it reads.
    """

    frozen: Mapping[int, str] = field(default_factory=dict)
    layers: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    names: frozenset[str] = frozenset()


def training_reads(model: nn.Module, example_inputs: Any, recording: Recording) -> TrainingReads:
    """Compare a run in training mode, on a copy of the model and of the inputs, with the recorded run in evaluation mode.

    The run is made where the code of a module asks for the mode, or where the recorded run left parameters out. What stays is what the
    recorded run cannot tell how to cut: channels that meet tensors of training alone, are returned, are tied or stated as a size there.
    """
    if not _asks_for_the_mode(model) and all(name in recording.tensor_labels for name in recording.parameters):
        return TrainingReads()
    try:
        run = _trained(model, example_inputs)
    except LatpruneError as failed:
        return TrainingReads(note=_not_seen(failed))
    recorder, outputs = run.recorder, run.outputs
    unknown = recorder.tensor_labels.keys() - recording.tensor_labels.keys()
    idle = {name: f"read by {_reader(name)}, which runs in training only" for name in unknown}
    frozen, error = _frozen(recorder, outputs, recording, idle), run.error
    if error is None:
        try:
            frozen = _held(run, recording) | frozen
        except (LatpruneError, AssertionError) as unsettled:  # sizes of training alone: the recorded run is sound without them
            error = unsettled
    names = frozenset(recorder.tensor_labels)
    return TrainingReads(frozen=frozen, layers=_layers_read(recorder, outputs, idle), note=_not_seen(error), names=names)


def _reader(name: str) -> str:
    owner, _, leaf = name.rpartition(".")
    return f"'{owner}'" if owner else f"what computes with '{leaf}'"


def _not_seen(error: BaseException | None) -> str:
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


# -- the run -----------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """A run in training mode, recorded as far as it went, what it returned, the attributes that it may have read, and what it raised."""

    recorder: Recorder
    outputs: list[Info]
    attributes: dict[tuple[str, str], int]
    error: BaseException | None


class _Forward(Recorder):  # type: ignore[no-untyped-call]
    """Leaves out what a forward differentiates (a gradient penalty): that adds nothing to what it differentiates."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        if torch._C._current_graph_task_id() != -1:
            return func(*args, **(kwargs or {}))
        return super().__torch_dispatch__(func, types, args, kwargs)


_DROPOUTS = (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout)


class _NoDropout(TorchFunctionMode):
    """Dropout drops nothing: it fits any width, which cannot be seen of the noise that it makes."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func in _DROPOUTS:
            return args[0] if args else given["input"]
        return func(*args, **given)


def _trained(model: nn.Module, example_inputs: Any) -> _Run:
    """The run in training mode; where that raises, one with what it may lack: a second entry in the batch (for norms), or gradients."""
    run = _recorded(copied(model), example_inputs)
    if run.error is not None and (larger := _doubled(example_inputs)) is not None:
        other = _recorded(copied(model), larger)
        run = run if other.error is not None else other
    if run.error is not None and "require grad" in str(run.error):
        other = _recorded(copied(model), example_inputs, gradients=True)
        run = run if other.error is not None else other
    return run


def _doubled(example_inputs: Any) -> Any:
    """Inputs of a batch of one with that entry twice; None where the batch is no one."""
    first = next((tensor for tensor in flatten_tensors(_inputs(example_inputs)) if tensor.dim() > 0), None)
    if first is None or first.shape[0] != 1:
        return None

    def twice(value: Any) -> Any:
        return torch.cat([value, value]) if isinstance(value, torch.Tensor) and value.dim() > 0 and value.shape[0] == 1 else value

    return rebuilt(example_inputs, twice)


def _inputs(example_inputs: Any) -> Any:
    return tuple(example_inputs) if isinstance(example_inputs, list) else example_inputs


def _cloned(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, torch.Tensor) else value


def _recorded(trial: nn.Module, example_inputs: Any, *, gradients: bool = False) -> _Run:
    """A recorded run of ``trial``, which is changed by it, in training mode, on copies of the inputs, which it may write into."""
    watcher = CallWatcher()
    recorder = _Forward(trial, watcher)
    inputs = rebuilt(example_inputs, _cloned)
    for k, tensor in enumerate(flatten_tensors(_inputs(inputs))):
        recorder.set(tensor, Info(fields=(), node=-2, output=k, shape=tuple(tensor.shape), dynamic=True))
    for module in trial.modules():
        module.training = True
    numbers = random.getstate(), np.random.get_state()
    output, raised = None, None
    with ExitStack() as stack:
        stack.callback(lambda: (random.setstate(numbers[0]), np.random.set_state(numbers[1])))
        stack.enter_context(torch.random.fork_rng())
        stack.enter_context(capture_conditions())
        stack.enter_context(torch.set_grad_enabled(gradients))
        attributes = stack.enter_context(planted(recorder.modules, watcher.used))
        stack.enter_context(traced_builtins(recorder.modules, watcher.used, recorder.trace_sizes))
        for mode in (recorder.watch_modules(), watcher, _NoDropout(), recorder):
            stack.enter_context(mode)
        try:
            output = call_with(trial, inputs)
        except (Exception, SystemExit) as error:  # of any kind: it may want targets, or end the process
            raised = error
    outputs = [recorder.info(t) for t in flatten_tensors(output, opaque=False)]
    return _Run(recorder=recorder, outputs=outputs, attributes=attributes, error=raised)


# -- what it reads -----------------------------------------------------------------------------------------------------------------------


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


def _held(run: _Run, recording: Recording) -> dict[int, str]:
    """Labels of the recorded run that stay because of what the run in training mode computes of them: sizes that it states, operations
    that cannot be followed, and attributes that it alone reads.
    """
    trained = run.recorder.recording([], run.outputs)
    trained.attribute_values = run.attributes
    same = _same_labels(trained.space, recording.space)
    settled = settle(trained, {})
    if not _whole(settled.grouping, same, _moved(settled, recording)):
        return {}
    evaluated = snapshot(recording)
    already = _whole(settle(evaluated, {}).grouping, np.arange(recording.space.size), {})
    stays = _whole(settled.grouping, same, _moved(settled, evaluated))  # by the equations that settling added
    return {label: f"{why}, in training mode" for label, why in stays.items() if label not in already}


def _moved(settled: Settled, recording: Recording) -> dict[int, str]:
    """Groups whose widths are attributes that no size of ``recording`` tells how to edit, with reasons."""
    read = {leaf[1:] for e in recording.equations for leaf in (*leaves(e.left), *leaves(e.right)) if leaf[0] == "attr"}
    alone = ((key, p) for key, p in settled.attributes.items() if key not in read)
    return {g: f"a size is computed of '{'.'.join(key).strip('.')}'" for key, p in alone for term in p for g in term}


def _whole(grouping: Grouping, same: IntArray, moved: Mapping[int, str]) -> dict[int, str]:
    """The labels ``same`` of those that stay whole in ``grouping``, or whose groups are among ``moved``, with reasons."""
    found: dict[int, str] = {}
    for label in np.flatnonzero(same >= 0).tolist():
        root = int(grouping.roots[label])
        groups = [g for slot in grouping.every if (g := int(slot[root])) >= 0]
        why = grouping.frozen_reason.get(root) or next((w for g in groups if (w := grouping.groups[g].reason or moved.get(g, ""))), "")
        if why:
            found[int(same[label])] = why
    return found


def _same_labels(space: LabelSpace, evaluated: LabelSpace) -> IntArray:
    """For each label of the run in training mode that of the same place of the same tensor in the recorded run, or -1."""
    # A parameter that a module is handed is labelled again; the last labels are the ones that the run goes on with.
    mine, others = ({(r.tensor, r.dim): r for r in found.ranges if r.kind == "tensor"} for found in (space, evaluated))
    same = np.full(space.size, -1, dtype=np.int64)
    for place in mine.keys() & others.keys():
        same[mine[place].start : mine[place].stop] = np.arange(others[place].start, others[place].stop)
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
