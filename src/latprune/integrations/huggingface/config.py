"""Configurations of dense and pruned models: the one that a pruned model was built from, and one that builds it, where there is one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from latprune.errors import CheckpointError
from latprune.export import ResultRecord, tensor_shapes
from latprune.export.signature import Inputs, call
from latprune.surgery import ArchitectureEdits
from latprune.surgery.edits import EditStep

__all__ = ["checked", "dense_of", "pruned_config"]

_MOST_BUILT = 64
"""Configurations that are tried, at most."""


def dense_of(model: nn.Module, record: ResultRecord) -> Any:
    """The configuration that builds the dense model: the pruned model's own, with what surgery set in it set back.

    Args:
        model: The pruned model, with its configuration as ``config``.
        record: Its record, with the edits.

    Raises:
        CheckpointError: The model that it builds has other tensors than the one that was pruned.
    """
    config = copy.deepcopy(model.config)
    for step in reversed(_steps(record)):
        for edit in reversed(step.attributes):
            if not edit.module and edit.name.startswith("config."):
                vars(config)[edit.name.removeprefix("config.")] = _like(edit.before)
    return checked(type(model), config, record)


def checked(model_class: type[nn.Module], config: Any, record: ResultRecord) -> Any:
    """``config``, if the model that ``model_class`` builds of it has the tensors of the dense model.

    Raises:
        CheckpointError: It has others, or nothing can be built.
    """
    try:
        shapes = _shapes(model_class, config)
    except Exception as error:  # whatever the model's class raises
        raise CheckpointError(
            f"{model_class.__name__} cannot be built of its configuration alone ({type(error).__name__}: {error}): give the one that "
            "builds the dense model as dense_config=, or save with result.save() and reload with latprune.restore(constructor, folder)"
        ) from error
    if record.model.tensors and shapes != dict(record.model.tensors):
        names = [name for name in {**shapes, **record.model.tensors} if shapes.get(name) != record.model.tensors.get(name)]
        raise CheckpointError(
            f"the configuration does not build the dense {model_class.__name__} that was pruned ({len(names)} tensors differ, first "
            f"'{names[0]}'): give the one that does as dense_config="
        )
    return config


def pruned_config(model: nn.Module, record: ResultRecord, example_inputs: Inputs | None) -> Any | None:
    """A configuration that builds the pruned model itself, or None where the class has no such one.

    A configuration states one size for all layers, so there is one where all of them were cut alike. It is taken only where the model that
    it builds has the pruned one's tensors and, on ``example_inputs``, its outputs.
    """
    wanted = tensor_shapes(model)
    for config in itertools.islice(_candidates(model, record, wanted), _MOST_BUILT):
        try:
            if _shapes(type(model), config) == wanted and _computes_the_same(model, config, example_inputs):
                return config
        except Exception:  # a configuration that its class refuses (a width that the heads do not divide) builds nothing
            continue
    return None


def _candidates(model: nn.Module, record: ResultRecord, pruned: Mapping[str, tuple[int, ...]]) -> Iterator[Any]:
    """The model's configuration as it is, then with integer entries exchanged for what the sizes equal to them became."""
    plain = vars(model.config)
    options: dict[str, list[int]] = {}
    for step in _steps(record):
        for edit in step.attributes:
            if type(plain.get(edit.name)) is int and plain[edit.name] == edit.before and isinstance(edit.after, int):
                options.setdefault(edit.name, []).append(edit.after)
    stale = [name.removeprefix("config.") for step in _steps(record)[-1:] for name in step.stale if name.startswith("config.")]
    for name in stale:
        value = plain.get(name)
        if type(value) is int:
            became = [
                pruned[tensor][dim]
                for tensor, shape in record.model.tensors.items()
                for dim, size in enumerate(shape)
                if size == value and tensor in pruned and len(pruned[tensor]) == len(shape)
            ]
            options.setdefault(name, []).extend(sorted(set(became), key=became.count, reverse=True))
    choices = [[(name, value) for value in dict.fromkeys([*values, plain[name]])] for name, values in options.items()]
    yield model.config
    for chosen in itertools.product(*choices):
        config = copy.deepcopy(model.config)
        vars(config).update(chosen)
        yield config


def _steps(record: ResultRecord) -> list[EditStep]:
    return [step for edits in record.edits for step in ArchitectureEdits.from_dict(edits).steps]


def _like(value: int | tuple[int, ...]) -> int | list[int]:
    return value if isinstance(value, int) else list(value)


def _shapes(model_class: type[nn.Module], config: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of what the class builds of a configuration; without memory for it where the class can be built so."""
    config = copy.deepcopy(config)
    try:
        with torch.device("meta"):
            return tensor_shapes(model_class(config))
    except (RuntimeError, NotImplementedError):  # its constructor reads values of tensors
        return tensor_shapes(model_class(config))


def _computes_the_same(model: nn.Module, config: Any, example_inputs: Inputs | None) -> bool:
    """Whether what the configuration builds, with the pruned model's weights, gives its outputs."""
    if example_inputs is None:
        return False
    built = type(model)(copy.deepcopy(config))
    reference = next(model.parameters())
    built.to(reference.device, reference.dtype)
    built.load_state_dict(model.state_dict())
    training = model.training
    try:
        found, expected = call(built.eval(), example_inputs), call(model.eval(), example_inputs)
    finally:
        model.train(training)
    return len(found) == len(expected) and all(_close(a, b) for a, b in zip(found, expected, strict=True))


def _close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    if found.shape != expected.shape:
        return False
    if not expected.numel():
        return True
    tolerance = 16 * torch.finfo(expected.dtype).eps if expected.is_floating_point() else 0.0
    return bool((found.double() - expected.double()).abs().max() <= tolerance * expected.double().abs().max())
