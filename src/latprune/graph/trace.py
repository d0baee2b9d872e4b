"""The front door of the graph room: one recorded run to channel groups, kernels, blocks and reasons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fnmatch import fnmatchcase

import torch
from torch import nn

import latprune.graph.rules_compute
import latprune.graph.rules_contract
import latprune.graph.rules_creating
import latprune.graph.rules_cutting  # noqa: F401
import latprune.graph.rules_experts  # noqa: F401
import latprune.graph.rules_joining  # noqa: F401
import latprune.graph.rules_movement  # noqa: F401
import latprune.graph.rules_ordered  # noqa: F401
import latprune.graph.rules_scatter  # noqa: F401
import latprune.graph.rules_transforms  # noqa: F401
import latprune.graph.rules_views  # noqa: F401
from latprune.argument_rules import check_one_of, check_wholes
from latprune.block_names import names_block, shown_block
from latprune.collector import collector_resting
from latprune.errors import CaptureError, InvalidArgumentError, LatpruneError
from latprune.graph.admission import check_inputs, check_kind
from latprune.graph.blocks import find_branches
from latprune.graph.build import build
from latprune.graph.captured import FORMS, CapturedNetwork, captured_form
from latprune.graph.conditions import (
    capture_conditions,
    check_repeatable,
    check_returned,
    forget_cached,
    preserved_buffers,
    preserved_state,
    unfolded,
)
from latprune.graph.example_inputs import ExampleInputs, by_argument, call_with
from latprune.graph.folding import folded, folds_of
from latprune.graph.form_hint import REMOVE, add_hints, capturable, snapshot
from latprune.graph.model_graph import ModelGraph
from latprune.graph.other_courses import other_courses
from latprune.graph.provenance import CallWatcher, planted
from latprune.graph.realise import Branch
from latprune.graph.recorder import Recorder
from latprune.graph.recording import Info, Recording
from latprune.graph.sizes import settle
from latprune.graph.tensors import flatten_tensors, tensors_in
from latprune.graph.traced_builtins import traced_builtins
from latprune.graph.training_only import TrainingReads, training_reads
from latprune.graph.uncomputed import ValueRead
from latprune.graph.wrappers import unwrapped
from latprune.modes import preserved_modes

__all__ = ["FORMS", "INPUT_WEIGHTS", "record", "trace"]

INPUT_WEIGHTS = frozenset({"weight_ih", "weight_ih_l0", "weight_ih_l0_reverse"})
"""Weights of recurrent layers that read what is given to the layer."""


def trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    *,
    keep: Sequence[str] = (),
    blocks_keep: Sequence[str] = (),
    min_widths: Mapping[str, int] | None = None,
    within: str | None = None,
    form: str = "class",
    fold: bool = False,
) -> ModelGraph:
    """Trace ``model`` in one real run and return its channel groups, kernels, removable blocks and reasons.

    The model runs once in evaluation mode, without gradients; its training flags, parameters, buffers, attributes and
    the entries of containers in them are left as they were (what a forward writes into other objects, or outside of the model, is not).

    Args:
        model: The model. Of ``torch.compile`` and ``DataParallel`` the module inside is traced, with an :class:`UnwrappedWarning`.
        example_inputs: One batch of inputs: a tensor, a tuple of positional inputs, or a dict of keyword inputs.
        keep: Paths or globs of modules that are left whole; a block in which one of them runs stays.
        blocks_keep: Names or globs of blocks that stay; a block in the model's own code is called ``(the model itself)``.
        min_widths: Smallest width by group name or glob; the largest of those that match a group.
        within: Path of a sub-module: only what lies inside it is pruned, with the inputs that it sees in the run of the whole model. What
            runs outside of it may depend on the data.
        form: What the pruned model is to be. ``"class"``: the user's own class with smaller layers, in which every size that the class's
            code states must still fit. ``"program"``: a captured program (:func:`latprune.capture`), in which all sizes follow the
            widths; it is ``graph.program`` then, and takes the model's place in everything that comes after.
        fold: Trace a copy in which weights that are computed of others (weight norm, spectral norm, masks) are plain ones; it is
            ``graph.folded`` then, and takes the model's place.

    Raises:
        CaptureError: The model does not run on the inputs, returns no tensor, or cannot be followed or captured.
        InvalidArgumentError: A path or glob matches nothing, or ``within`` is given for a program.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> graph = trace(model, torch.randn(1, 4), keep=["4"])
        >>> graph.dense_widths()
        {'0': 8}
        >>> {kept.what: kept.reason for kept in graph.kept_whole}["2"]
        "named in keep ('4')"
    """
    model = unwrapped(model)
    check_kind(model)
    check_inputs(example_inputs)
    check_one_of("form", form, FORMS)
    if within and (form == "program" or isinstance(model, CapturedNetwork)):
        raise InvalidArgumentError(
            f"within (={within!r}) needs form='class': a program is captured of a whole model; name what stays in keep"
        )
    plain = None
    if fold and (found := folded(model, example_inputs))[1]:
        model = plain = found[0]
    if form == "program" and not isinstance(model, CapturedNetwork):
        model = captured_form().capture(model, example_inputs)
    with collector_resting():
        graph = _trace(model, example_inputs, keep, blocks_keep, min_widths, within)
    shapes = {key: tuple(value.shape) for key, value in by_argument(example_inputs).items() if isinstance(value, torch.Tensor)}
    graph = replace(graph, input_shapes=shapes)
    return replace(graph, program=model) if isinstance(model, CapturedNetwork) else replace(graph, folded=plain)


def _trace(
    model: nn.Module,
    example_inputs: ExampleInputs,
    keep: Sequence[str],
    blocks_keep: Sequence[str],
    min_widths: Mapping[str, int] | None,
    within: str | None,
) -> ModelGraph:
    paths = [path for path, _ in model.named_modules()]
    for pattern in keep:
        if not any(_matches(path, pattern) for path in paths):
            raise InvalidArgumentError(f"keep names '{pattern}', which matches no module of the model")
    if within is not None and within not in paths:
        raise InvalidArgumentError(f"within (='{within}') is no module of the model")
    within = within or None
    recording = record(model, example_inputs, within)
    if within is not None and not recording.call_counts.get(within):
        raise CaptureError(f"within (='{within}') is not called in a run on the example inputs")
    frozen = _recurrent(recording) | _derived(recording, model) | _kept(recording, keep, within)
    reads = TrainingReads()
    if within is None and not isinstance(model, CapturedNetwork):
        reads = training_reads(model, example_inputs, recording)
        frozen |= {label: why for label, why in reads.frozen.items() if label not in frozen}
    before = None if within is not None or isinstance(model, CapturedNetwork) else snapshot(recording)
    branches = find_branches(recording, model if isinstance(model, CapturedNetwork) else None)
    settled = settle(recording, frozen)
    if before is not None:
        add_hints(before, frozen, settled.grouping, branches)
    if isinstance(model, CapturedNetwork):
        for group in settled.grouping.groups:
            group.reason = model.name_sizes(group.reason)
    kept_blocks: dict[str, str] = {}
    for branch in branches:
        for pattern in blocks_keep:
            if names_block(pattern, branch.name):
                kept_blocks[branch.name] = f"named in blocks_keep ('{pattern}')"
        if why := _kept_by(branch, recording, keep):
            kept_blocks[branch.name] = why
        if within is not None and not _inside(branch.name.split("#")[0], within):
            kept_blocks[branch.name] = f"lies outside within='{within}'"
        if any(info.node in branch.nodes or info.node in branch.beside for info in recording.returned):
            why = "the model returns values that are computed inside it (such as a cache of keys and values)"
            kept_blocks[branch.name] = why + (REMOVE if before is not None and capturable(before) else "")
        inside = (info.name for node in branch.nodes for info in recording.nodes[node].inputs if info.name in reads.layers)
        if (layer := next(inside, None)) is not None:
            kept_blocks[branch.name] = f"what is computed inside it is {reads.layers[layer]}"
    for pattern in blocks_keep:
        if not any(names_block(pattern, branch.name) for branch in branches):
            blocks = [shown_block(branch.name) for branch in branches]
            raise InvalidArgumentError(f"blocks_keep names '{pattern}', which matches no block; blocks: {blocks}")
    graph = build(recording, settled, branches, min_widths={}, blocks_kept=kept_blocks, within=within or "")
    read = frozenset(recording.parameters) if reads.note else reads.names
    courses = other_courses(recording, read) if within is None else ()
    return replace(_with_min_widths(graph, min_widths or {}), notes=(*_notes(graph, reads), *courses))


def _notes(graph: ModelGraph, reads: TrainingReads) -> tuple[str, ...]:
    """What training mode keeps whole, and what could not be looked at."""
    reasons = {*reads.frozen.values()}
    kept = [f"{kept.what} ({kept.reason})" for kept in graph.kept_whole if kept.reason in reasons]
    note = f"kept whole so that the network can be trained: {', '.join(kept[:6])}{', ...' if kept[6:] else ''}"
    return ((note,) if kept else ()) + ((reads.note,) if reads.note else ())


def _with_min_widths(graph: ModelGraph, min_widths: Mapping[str, int]) -> ModelGraph:
    check_wholes("min_widths", min_widths, least=1)
    groups, least = dict(graph.groups), dict[str, int]()
    for pattern, width in min_widths.items():
        hits = [n for n in groups if n == pattern or fnmatchcase(n, pattern)]
        if not hits:
            raise InvalidArgumentError(f"min_widths names '{pattern}', which matches no channel group; groups: {list(groups)}")
        for name in hits:
            if not 1 <= width <= groups[name].columns:
                raise InvalidArgumentError(
                    f"min_widths['{pattern}'] (={width}) must be from 1 to {groups[name].columns} for group '{name}'"
                )
            least[name] = max(width, least.get(name, width))
    groups |= {name: replace(groups[name], min_width=width) for name, width in least.items()}
    return replace(graph, groups=groups)


def record(model: nn.Module, example_inputs: ExampleInputs, within: str | None = None) -> Recording:
    """Run ``model`` once under the recorder, without computing what only flows on; a second time, computed, where it reads such values.

    Raises:
        CaptureError: The model does not run on the inputs.
    """
    try:
        return _record(model, example_inputs, within, computed=False)
    except (ValueRead, LatpruneError):
        return _record(model, example_inputs, within, computed=True)


def _record(model: nn.Module, example_inputs: ExampleInputs, within: str | None, *, computed: bool) -> Recording:
    watcher = CallWatcher()
    recorder = Recorder(model, watcher, within, computed=computed)
    inputs: list[Info] = []
    try:
        with ExitStack() as stack:
            stack.enter_context(preserved_modes(model))
            for _, module in recorder.modules:
                module.training = False
            for t in flatten_tensors(example_inputs if not isinstance(example_inputs, list) else tuple(example_inputs)):
                info = Info(fields=(), node=-2, output=len(inputs), shape=tuple(t.shape), dynamic=True)
                recorder.set(t, info)
                inputs.append(info)
            stack.enter_context(capture_conditions())
            stack.enter_context(unfolded(model))
            stack.enter_context(preserved_state(model))
            stack.enter_context(preserved_buffers(model))
            recorder.attribute_values = stack.enter_context(planted(recorder.modules, watcher.used))
            stack.enter_context(traced_builtins(recorder.modules, watcher.used, recorder.trace_sizes))
            stack.enter_context(recorder.watch_modules())
            stack.enter_context(watcher)
            stack.enter_context(recorder)
            try:
                output = call_with(model, example_inputs)
            except LatpruneError:
                raise
            except Exception as error:
                where = f" (in module '{recorder.failed_in}')" if recorder.failed_in else ""
                raise CaptureError(f"the model does not run on the example inputs: {type(error).__name__}: {error}{where}") from error
    finally:
        forget_cached(model)
    check_returned(output)
    # Objects that a model hands back to itself (a cache of keys and values) are its state: they may shrink; the outputs proper may not.
    outputs = [recorder.info(t) for t in flatten_tensors(output, opaque=False)]
    for info in outputs:
        for f in info.fields:
            recorder.space.freeze(f, "the network's output")
        recorder.places_read(info, "what calls the network")
        recorder.keep_sizes(info)
    if recorder.random:
        check_repeatable(model, example_inputs)
    recording = recorder.recording(inputs, outputs)
    recording.returned += [recorder.info(t) for t in tensors_in(output)]
    return recording


def _matches(path: str, pattern: str) -> bool:
    """Whether a module is, or lies inside, what ``pattern`` names."""
    parts = path.split(".")
    return any(fnmatchcase(".".join(parts[:k]), pattern) for k in range(1, len(parts) + 1)) if path else pattern == ""


def _inside(path: str, within: str) -> bool:
    return within == "" or path == within or path.startswith(f"{within}.")


def _recurrent(recording: Recording) -> dict[int, str]:
    """Labels of recurrent layers, one fused operation or a loop over steps: what they read from outside may shrink, their state stays."""
    frozen: dict[int, str] = {}
    layers = {path: type(m).__name__ for path, m in recording.modules if isinstance(m, (nn.RNNBase, nn.RNNCellBase))}
    for r in recording.space.ranges:
        owner, _, leaf = r.tensor.rpartition(".")
        if r.kind == "tensor" and owner in layers and not (r.dim == 1 and leaf in INPUT_WEIGHTS):
            why = f"part of the state of the recurrent layer '{owner}' ({layers[owner]}), whose width stays"
            frozen |= dict.fromkeys(range(r.start, r.stop), why)
    return frozen


_WHOLE = frozenset({"pruning mask", "spectral_norm", "SpectralNorm"})
"""Kinds of weights that are computed of others and cannot be cut with them: their own tools know the size they had."""


def _derived(recording: Recording, model: nn.Module) -> dict[int, str]:
    """Labels of what such weights are computed of."""
    frozen: dict[int, str] = {}
    for fold in folds_of(model):
        if fold.kind not in _WHOLE:
            continue
        place = f"{fold.module}." if fold.module else ""
        starts = (f"{place}{fold.tensor}_", f"{place}parametrizations.{fold.tensor}.")
        why = f"the weight of '{fold.module}' is computed of others ({fold.kind}); fold=True (--fold) prunes a copy in which it is plain"
        for r in recording.space.ranges:
            if r.kind == "tensor" and r.tensor.startswith(starts):
                frozen |= dict.fromkeys(range(r.start, r.stop), why)
    return frozen


def _kept_by(branch: Branch, recording: Recording, keep: Sequence[str]) -> str:
    """Why a block stays whose module ``keep`` names, or in which such a module runs; empty for others."""
    if not keep:
        return ""
    for pattern in keep:
        if _matches(branch.name.split("#")[0], pattern):
            return f"named in keep ('{pattern}')"
    ran = [recording.nodes[index] for index in sorted(branch.nodes)]
    # A layer's weights may be read without a call of the layer.
    inside = dict.fromkeys(path for node in ran for path in (node.module, *(info.name for info in node.inputs if info.name is not None)))
    found = ((path, pattern) for path in inside for pattern in keep if _matches(path, pattern))
    return next((f"'{path}' inside it is named in keep ('{pattern}')" for path, pattern in found), "")


def _kept(recording: Recording, keep: Sequence[str], within: str | None) -> dict[int, str]:
    """Labels that stay because the user says so."""
    frozen: dict[int, str] = {}
    for r in recording.space.ranges:
        if r.kind != "tensor":
            continue
        owner = r.tensor.rpartition(".")[0]
        why = next((f"named in keep ('{p}')" for p in keep if _matches(owner, p) or _matches(r.tensor, p)), "")
        if not why and within is not None and not _inside(owner, within):
            why = f"lies outside within='{within}'"
        if why:
            for label in range(r.start, r.stop):
                frozen[label] = why
    return frozen
