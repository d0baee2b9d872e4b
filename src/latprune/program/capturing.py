"""From a model to a captured program: record, find what follows the batch size, and prove that the program computes what the model does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from latprune.collector import collector_resting
from latprune.copying import copied
from latprune.errors import CaptureError
from latprune.graph.example_inputs import as_call, random_inputs
from latprune.graph.wrappers import unwrapped
from latprune.modes import check_modes
from latprune.program.batch import DiffersError, larger_batch, place_sizes, with_batch
from latprune.program.canonical import canonical, renumbered
from latprune.program.module import ProgramModule
from latprune.program.recorder import record_program
from latprune.program.steps import Held, HeldTensor, InputTensor, Program, Step, Training
from latprune.program.structure import build_structure, describe_outputs, in_containers_of

__all__ = ["capture"]

_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def capture(model: nn.Module, example_inputs: Any) -> ProgramModule:
    """The captured program of ``model``: a module that computes the same without the model's class, and that can be pruned in every size.

    The model runs twice, in evaluation mode and without gradients, at the batch size of the inputs and at one more with other values; then
    the program's outputs are compared with those of both runs. The model is left as it was; the program has copies of its tensors.

    Args:
        model: The model; one that was captured already is returned as a copy.
        example_inputs: A tensor, a tuple of positional or a mapping of keyword inputs.

    Returns:
        The program, with the model's training flags. ``program.program.batch_reason`` says why it runs at the captured batch size only,
        where that is so.

    Raises:
        CaptureError: The model does not run, takes a course that depends on its inputs' values, writes into its buffers, or uses an
            operator that has no place in a program; the message says what and where.

    Example:
        >>> program = latprune.capture(model, x)
        >>> graph = latprune.trace(program, x)
    """
    if isinstance(model, ProgramModule):
        return copied(model)
    model = unwrapped(model)
    check_modes(model)
    with collector_resting():
        return _capture(model, example_inputs)


@dataclass(frozen=True, slots=True)
class _Given:
    """The example inputs as ``(args, kwargs)``, and their structure."""

    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    structure: Any

    def with_tensors(self, tensors: list[torch.Tensor]) -> Any:
        """The same ``(args, kwargs)`` with other tensors, in the containers that the model was handed."""
        return in_containers_of(self.arguments, build_structure(self.structure, tensors))

    def call_of(self, model: nn.Module, tensors: list[torch.Tensor]) -> Callable[[], Any]:
        """Calls the model on these tensors."""
        args, kwargs = self.with_tensors(tensors)
        return lambda: model(*args, **kwargs)


class _Recorded:
    """One recording in the form in which two can be compared."""

    def __init__(self, model: nn.Module, given: _Given, tensors: list[torch.Tensor]) -> None:
        self.inputs = [t.clone() for t in tensors]
        self.raw = record_program(model, tensors, given.call_of(model, tensors))
        steps, returned = canonical(self.raw)
        self.steps, self.returned, self.constants = renumbered(steps, returned, len(tensors), self.raw.constants)


@dataclass(slots=True)
class _Found:
    """The recording that becomes the program, its steps with the batch size marked, and the recordings to prove it with."""

    base: _Recorded
    steps: list[Step]
    batched: list[bool]
    reason: str
    proofs: list[_Recorded]


def _find(model: nn.Module, given: _Given, tensors: list[torch.Tensor]) -> _Found:
    """Record at the batch size of the inputs and at one more; where a single entry takes a course of its own, at two and three."""
    one = _Recorded(model, given, [t.clone() for t in tensors])
    alone = _Found(base=one, steps=one.steps, batched=[False] * len(tensors), reason="no input has a batch dimension", proofs=[one])
    larger = larger_batch(tensors)
    if larger is None:
        return alone
    inputs, batched = larger
    batch = next(t for t in tensors if t.dim()).shape[0]
    try:
        other = _Recorded(model, given, inputs)
        try:
            return _Found(base=one, steps=_joined(one, other, batch), batched=batched, reason="", proofs=[one, other])
        except DiffersError:
            more = larger_batch(inputs)
            if batch != 1 or more is None:
                raise
            third = _Recorded(model, given, more[0])
            return _Found(base=other, steps=_joined(other, third, 2), batched=batched, reason="", proofs=[one, other, third])
    except (CaptureError, DiffersError) as error:
        alone.reason = f"it follows the batch size in a way that cannot be written down: {error}"
        return alone


def _joined(one: _Recorded, other: _Recorded, batch: int) -> list[Step]:
    """The steps of two recordings at ``batch`` and one more, as one."""
    _same_constants(one, other)
    if one.raw.outputs != other.raw.outputs or one.returned != other.returned:
        raise DiffersError("the answer has another structure")
    return with_batch(one.steps, other.steps, batch)


def _capture(model: nn.Module, example_inputs: Any) -> ProgramModule:
    tensors: list[torch.Tensor] = []
    arguments = as_call(example_inputs)
    structure = describe_outputs(arguments, tensors)
    given = _Given(arguments, structure)
    found = _find(model, given, tensors)
    one, batched, reason = found.base, found.batched, found.reason
    steps = _counted(model, found.steps)
    steps, sizes = place_sizes(steps)
    names = _input_names(model, structure, len(tensors))
    held = {name: one.raw.held[old] for name, old in one.constants.items()}
    program = Program(
        steps=tuple(steps),
        inputs=tuple(
            InputTensor(shape=tuple(t.shape), dtype=str(t.dtype).removeprefix("torch."), name=n, batched=b)
            for t, n, b in zip(tensors, names, batched, strict=True)
        ),
        arguments=dict(zip(("args", "kwargs"), structure["tuple"], strict=True)),
        outputs={"structure": one.raw.outputs, "returned": one.returned},
        sizes=tuple(sizes),
        tensors=_tensors(model, held),
        kinds={path: type(m).__name__ for path, m in model.named_modules()},
        dtype=next((str(p.dtype) for p in model.parameters() if p.is_floating_point()), "torch.float32").removeprefix("torch."),
        batch_reason=reason,
    )
    state = {**dict(model.named_buffers(remove_duplicate=False)), **dict(model.named_parameters(remove_duplicate=False)), **held}
    made = ProgramModule(program, state)
    _prove(made, model, given, [(r.inputs, r.raw.tensors) for r in found.proofs])
    modes = dict(model.named_modules())
    for path, scope in made.named_modules():
        if path in modes:
            scope.training = modes[path].training
    return made


def _same_constants(one: _Recorded, other: _Recorded) -> None:
    """Tensors that come from outside of the recording must not follow the inputs."""
    for name, old in one.constants.items():
        a, b = one.raw.held[old], other.raw.held.get(other.constants.get(name, ""))
        if b is None or a.shape != b.shape or not torch.equal(a, b):
            raise DiffersError("a tensor that the forward makes outside of PyTorch changes with the inputs")


def _counted(model: nn.Module, steps: list[Step]) -> list[Step]:
    """Batch norms count their batches in training, and some average over all of them."""
    owners = {f"{path}.running_mean" if path else "running_mean": m for path, m in model.named_modules()}
    result = []
    for step in steps:
        if step.operator == "batch_norm" and isinstance(step.arguments[5], Training) and isinstance(step.arguments[1], Held):
            owner = owners.get(step.arguments[1].name)
            if isinstance(getattr(owner, "num_batches_tracked", None), torch.Tensor):
                counter = Held(step.arguments[1].name.removesuffix("running_mean") + "num_batches_tracked")
                momentum = step.arguments[6] if getattr(owner, "momentum", 0.0) is not None else None
                step = replace(step, arguments=(*step.arguments[:6], momentum, step.arguments[7], counter))
        result.append(step)
    return result


def _input_names(model: nn.Module, structure: Any, count: int) -> list[str]:
    """The names that ``forward`` gives to its inputs; parts of a nested one are numbered."""
    positional = [
        p.name
        for p in inspect.signature(model.forward).parameters.values()
        if p.kind in (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    ]
    args, kwargs = (list(part.values())[0] for part in structure["tuple"])
    names = [f"input_{k}" for k in range(count)]
    given = [*((positional[k] if k < len(positional) else f"input_{k}", entry) for k, entry in enumerate(args)), *kwargs.items()]
    for name, entry in given:
        if "tensor" in entry:
            names[entry["tensor"]] = name
        else:
            for k, number in enumerate(_numbers(entry)):
                names[number] = f"{name}_{k}"
    return names


def _numbers(structure: Any) -> list[int]:
    ((kind, content),) = structure.items()
    if kind == "tensor":
        return [content]
    items = content.values() if kind == "dict" else content if kind in ("tuple", "list") else ()
    return [n for item in items for n in _numbers(item)]


def _tensors(model: nn.Module, constants: Mapping[str, torch.Tensor]) -> dict[str, HeldTensor]:
    """Everything that the program holds: the model's whole state, so that its keys stay, and the constants."""
    found: dict[str, HeldTensor] = {}
    first: dict[int, str] = {}
    persistent = set(model.state_dict())
    for kind, tensors in (("parameter", model.named_parameters), ("buffer", model.named_buffers)):
        for name, tensor in tensors(remove_duplicate=False):
            alias = first.get(id(tensor))
            first.setdefault(id(tensor), name)
            word = "constant" if kind == "buffer" and name not in persistent else kind
            found[name] = HeldTensor(kind=word, requires_grad=kind == "parameter" and tensor.requires_grad, alias_of=alias)
    return found | {name: HeldTensor(kind="constant") for name in constants}


def _prove(program: ProgramModule, model: nn.Module, given: _Given, cases: list[tuple[list[torch.Tensor], list[torch.Tensor]]]) -> None:
    """Compare the program with what the model computed in ``cases`` (inputs and outputs), and on other values where there is one case: a
    course that the values decide shows there.
    """
    if len(cases) == 1:
        drawn = random_inputs(cases[0][0], 7)
        cases = [*cases, (drawn, record_program(model, drawn, given.call_of(model, drawn)).tensors)]
    program.eval()
    for inputs, expected in cases:
        args, kwargs = given.with_tensors([t.clone() for t in inputs])
        found: list[torch.Tensor] = []
        with torch.no_grad():
            describe_outputs(program(*args, **kwargs), found)
        for k, (a, b) in enumerate(zip(expected, found, strict=True)):
            _require_equal(k, a, b)


def _require_equal(index: int, expected: torch.Tensor, found: torch.Tensor) -> None:
    problem = ""
    if expected.shape != found.shape:
        problem = f"has shape {tuple(found.shape)} in the program, {tuple(expected.shape)} in the model"
    elif not expected.is_floating_point():
        problem = "" if torch.equal(expected, found) else "differs"
    elif expected.numel():
        scale = max(float(expected.double().abs().max()), torch.finfo(expected.dtype).tiny)
        error = float((expected.double() - found.double()).abs().max()) / scale
        if not error <= _TOLERANCES.get(expected.dtype, 5e-2):
            problem = f"differs by {error:.2e} of its largest value"
    if problem:
        raise CaptureError(
            f"the captured program does not compute what the model computes: output {index} {problem}. Its course may depend on the values "
            "of its inputs, or on chance. Use form='class'"
        )
