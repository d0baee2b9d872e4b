"""The conditions of a recorded run, and leaving the model as it was."""

from __future__ import annotations

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from operator import is_
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.errors import CaptureError, LatpruneError

__all__ = [
    "capture_conditions",
    "check_repeatable",
    "check_returned",
    "check_runs",
    "cut_unfolded",
    "during_calls",
    "failing_module",
    "folds_weights",
    "forget_cached",
    "preserved_buffers",
    "preserved_state",
    "unfolded",
]

Read = TypeVar("Read")


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
def during_calls(model: nn.Module, within: str, mode: TorchDispatchMode) -> Iterator[None]:
    """The mode at work during a run of ``model``, or during the calls of its sub-module ``within`` where that is not empty."""
    if not within:
        with mode:
            yield
        return
    module = model.get_submodule(within)

    def enter(*_: Any) -> None:
        mode.__enter__()  # type: ignore[no-untyped-call]

    def leave(*_: Any) -> None:
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]

    hooks = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def preserved_state(model: nn.Module) -> Iterator[None]:
    """Undo what runs leave behind in the modules: cached tensors in attributes, entries of dicts, lists, deques and sets in them (of any
    depth), buffers put in place of others, and hooks (a model that installs its own remembers that in an attribute: both must go, or they
    are there twice). What lies inside of other objects, or outside of the model, is not put back, nor are containers of more than 10,000
    entries (a vocabulary) and what they hold.
    """
    before: list[tuple[dict[str, Any], list[Any]]] = []
    contents: list[tuple[Any, list[Any]]] = []
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        values = module.__dict__
        before.append((values, _entries(values, dict)))
        _note_contents([value for name, value in values.items() if name != "_modules"], contents, seen)
    try:
        yield
    finally:
        for container, saved in (*contents, *before):
            kind = _kind(container)
            now = _entries(container, kind)
            if len(now) != len(saved) or not all(map(is_, now, saved)):
                _put_entries(container, kind, saved)


_KINDS = (OrderedDict, dict, list, tuple, deque, set)
"""Containers; the methods of these classes are called, because those of a subclass may refuse, or do more."""
_MOST_ENTRIES = 10_000


def _kind(container: Any) -> Any:
    return next(kind for kind in _KINDS if isinstance(container, kind))


def _note_contents(values: list[Any], contents: list[tuple[Any, list[Any]]], seen: set[int]) -> None:
    """Note what the containers among ``values``, and those in them, hold now."""
    left = values
    while left:
        value = left.pop()
        if not isinstance(value, _KINDS) or id(value) in seen:
            continue
        seen.add(id(value))
        kind = _kind(value)
        if kind.__len__(value) > _MOST_ENTRIES:
            continue
        entries = _entries(value, kind)
        if kind is not tuple:
            contents.append((value, entries))
        left += entries


def _entries(container: Any, kind: Any) -> list[Any]:
    """What a container holds, in order; of a dict the keys, then the values."""
    entries = list(kind.__iter__(container))
    return entries + [dict.__getitem__(container, key) for key in entries] if issubclass(kind, dict) else entries


def _put_entries(container: Any, kind: Any, saved: list[Any]) -> None:
    """Make a container hold what :func:`_entries` gave."""
    kind.clear(container)
    if issubclass(kind, dict):
        for key, value in zip(saved[: len(saved) // 2], saved[len(saved) // 2 :], strict=True):
            kind.__setitem__(container, key, value)
    else:
        (kind.update if kind is set else kind.extend)(container, saved)


def failing_module(model: nn.Module, error: BaseException, *, own: bool = False) -> str:
    """Path of the innermost module that an error passed through; empty where it is none but the model.

    Args:
        model: The model that ran.
        error: What it raised.
        own: PyTorch's own modules are left out.
    """
    paths = {id(m): path for path, m in model.named_modules() if path and not (own and type(m).__module__.startswith("torch."))}
    found = ""
    trace = error.__traceback__
    while trace is not None:
        found = paths.get(id(trace.tb_frame.f_locals.get("self")), found)
        trace = trace.tb_next
    return found


def check_runs(model: nn.Module, example_inputs: Any) -> None:
    """Run ``model`` once in evaluation mode; nothing stays of the run, random generators included.

    Raises:
        CaptureError: The model does not run on the inputs, or returns no tensor.
    """
    _read_runs(model, example_inputs, check_returned, runs=1)


def check_returned(output: Any) -> None:
    """Refuse what a model returned where it holds no tensor, and no container that is empty only here (a detector that found nothing).

    Raises:
        CaptureError: It holds none; the message names its class.
    """
    from latprune.graph.tensors import flatten_tensors, tensors_in

    if not tensors_in(output) and not flatten_tensors(output) and not _holds_empty(output):
        raise CaptureError(
            f"the model returns no tensor on the example inputs (but a {type(output).__name__}): its forward must return what it computes, "
            "as a tensor or as tuples, lists, mappings or objects of tensors"
        )


def _holds_empty(output: Any) -> bool:
    """Whether an output is an empty list, tuple or mapping, or holds one."""
    if not isinstance(output, (list, tuple, Mapping)):
        return False
    return not output or any(map(_holds_empty, output.values() if isinstance(output, Mapping) else output))


def check_repeatable(model: nn.Module, example_inputs: Any) -> None:
    """Run ``model`` twice in evaluation mode on the same inputs; nothing stays of the runs, random generators included.

    Raises:
        CaptureError: The model does not run, or its outputs differ from run to run: nothing that is traced, measured or compared of such a
            model would mean anything.
    """
    from latprune.graph.tensors import flatten_tensors

    given = [(tensor, tensor.detach().clone()) for tensor in flatten_tensors(example_inputs, opaque=False)]

    def copies(output: Any) -> list[torch.Tensor]:
        return [tensor.detach().clone() for tensor in flatten_tensors(output, opaque=False)]

    first, second = _read_runs(model, example_inputs, copies, runs=2)
    different = [index for index, (a, b) in enumerate(zip(first, second, strict=False)) if not _close(a, b)]
    if different and any(not torch.equal(tensor, value) for tensor, value in given):
        with torch.no_grad():
            for tensor, value in given:
                tensor.copy_(value)
        raise CaptureError(
            "the model writes into its inputs, so that no run is like the one before; let forward work on a copy (x = x.clone(), or "
            "operations whose names do not end in _)"
        )
    if different or len(first) != len(second):
        where = f" (output {different[0]} of {len(first)})" if different else ""
        raise CaptureError(
            f"the model gives another output at each run on the same inputs in evaluation mode{where}: dropout that ignores eval() "
            "(functional.dropout without training=self.training), random numbers in forward, or a state that each run moves on; make it "
            "repeatable before pruning"
        )


def _read_runs(model: nn.Module, example_inputs: Any, read: Callable[[Any], Read], *, runs: int) -> list[Read]:
    """What ``read`` makes of the output of each run in evaluation mode; the model and random generators are left as they were."""
    from latprune.graph.example_inputs import call_with

    modes = [(module, module.training) for module in model.modules()]
    numbers = random.getstate(), np.random.get_state()
    found = []
    try:
        for module, _ in modes:
            module.training = False
        with unfolded(model), preserved_state(model), preserved_buffers(model), capture_conditions(), torch.random.fork_rng():
            for _ in range(runs):
                try:
                    output = call_with(model, example_inputs)
                except LatpruneError:
                    raise
                except Exception as error:
                    failed = failing_module(model, error)
                    where = f" (in module '{failed}')" if failed else ""
                    raise CaptureError(f"the model does not run on the example inputs: {type(error).__name__}: {error}{where}") from error
                found.append(read(output))
    finally:
        random.setstate(numbers[0])
        np.random.set_state(numbers[1])
        for module, training in modes:
            module.training = training
        forget_cached(model)
    return found


def _close(first: torch.Tensor, second: torch.Tensor) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if not (first.is_floating_point() or first.is_complex()):
        return torch.equal(first, second)
    wide = torch.complex128 if first.is_complex() else torch.float64
    return torch.allclose(first.to(wide), second.to(wide), rtol=1e-3, atol=1e-5, equal_nan=True)


def forget_cached(model: nn.Module) -> None:
    """Make modules drop what they cached in evaluation mode (such modules do so when they are set to train); the modes stay.

    A model that folds weights instead when its mode changes (LoRA merges its factors in evaluation mode) stays as it is, bit for bit.
    """
    if not _change_with_their_mode(model):
        return
    with ExitStack() as stack:
        undo = stack.enter_context(ExitStack())
        undo.enter_context(preserved_state(model))
        changed = undo.enter_context(_preserved_values(model))
        _set_to_train(model)
        if not changed():
            undo.pop_all()


@contextmanager
def unfolded(model: nn.Module) -> Iterator[None]:
    """What modules cache or fold in evaluation mode is taken back for the while, the modes stay: the course that is recorded, followed and
    cut is that of the parameters themselves. Afterwards the model is as it was, bit for bit.
    """
    if not _change_with_their_mode(model):
        yield
        return
    with preserved_state(model), _preserved_values(model):
        _set_to_train(model)
        yield


def folds_weights(model: nn.Module) -> bool:
    """Whether parameters or buffers take other values when the model changes its mode (LoRA that merges its factors)."""
    if not _change_with_their_mode(model):
        return False
    with preserved_state(model), _preserved_values(model) as changed:
        _set_to_train(model)
        return changed()


@contextmanager
def cut_unfolded(model: nn.Module) -> Iterator[None]:
    """What modules cache or fold in evaluation mode is dropped before the model is changed, and folded again behind; the modes stay."""
    if not _change_with_their_mode(model):
        yield
        return
    modes = [(module, module.training) for module in model.modules()]
    _set_to_train(model)
    yield
    if not model.training:
        model.eval()
        for module, training in modes:
            module.training = training


def _change_with_their_mode(model: nn.Module) -> bool:
    return any(type(module).train is not nn.Module.train for module in model.modules())


def _set_to_train(model: nn.Module) -> None:
    """``model.train()`` and the flags put back: what modules do at the change stays done."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    for module, training in modes:
        module.training = training


@contextmanager
def _preserved_values(model: nn.Module) -> Iterator[Callable[[], bool]]:
    """Parameters and buffers get their values back. Gives a function that says whether any differs from what it was."""
    held = _held((*model.parameters(), *model.buffers()))
    try:
        yield lambda: any(_changed(tensor, value) for tensor, _, value in held)
    finally:
        _put_back(held)


@contextmanager
def preserved_buffers(model: nn.Module) -> Iterator[None]:
    """Buffers get the values and shapes back that they had: a run of some models moves them on, in evaluation mode too."""
    held = _held(tuple(model.buffers()))
    try:
        yield
    finally:
        _put_back(held)


Held = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""A tensor, the same memory in the same shape, and the values."""


def _held(tensors: Iterable[torch.Tensor]) -> list[Held]:
    return [(tensor, tensor.detach(), tensor.detach().clone()) for tensor in tensors if not is_lazy(tensor)]


def _changed(tensor: torch.Tensor, value: torch.Tensor) -> bool:
    return tensor.shape != value.shape or tensor.dtype != value.dtype or not _same_bits(tensor.detach(), value)


def _put_back(held: list[Held]) -> None:
    with torch.no_grad():
        for tensor, memory, value in held:
            if not _changed(tensor, value):
                continue
            if tensor.shape != value.shape or tensor.dtype != value.dtype:
                tensor.data = memory
            tensor.data.copy_(value)


def _same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.equal(first, second) or bool(((first == second) | ((first != first) & (second != second))).all())
