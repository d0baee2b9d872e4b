"""Weights that are computed of others (weight norm, spectral norm, masks) made plain parameters of the values that they have, and weight
norms put back onto plain weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, remove_spectral_norm, remove_weight_norm, weight_norm
from torch.nn.utils.prune import BasePruningMethod

from latprune.copying import copied
from latprune.errors import CaptureError
from latprune.graph.example_inputs import ExampleInputs, call_with
from latprune.graph.tensors import flatten_tensors
from latprune.modes import preserved_modes

__all__ = ["WEIGHT_NORMS", "Fold", "fold_in_place", "folded", "folds_of", "norms_in_place", "returning_norms"]

WEIGHT_NORMS = ("weight_norm", "WeightNorm")
"""Kinds of a fold that are weight norms: ``torch.nn.utils.weight_norm``, and that of ``torch.nn.utils.parametrizations``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fold:
    """A tensor of a module that is computed of others.

    Attributes:
        module: Path of the module.
        tensor: Name of the tensor in it.
        kind: By what: ``weight_norm``, ``spectral_norm``, ``pruning mask``, or the classes of its parametrisations.
        dim: Of a weight norm: the dimension whose places have a norm each; -1: one norm for all.
    """

    module: str
    tensor: str
    kind: str
    dim: int | None = None


def folds_of(model: nn.Module) -> tuple[Fold, ...]:
    """The tensors of a model that are computed of others by a parametrisation, a weight or spectral norm, or a mask of
    ``torch.nn.utils.prune``.
    """
    return tuple(fold for path, module in model.named_modules() for fold in _of_module(path, module))


def _of_module(path: str, module: nn.Module) -> Iterator[Fold]:
    if parametrize.is_parametrized(module):
        parametrizations: Any = module.parametrizations
        for name, entries in parametrizations.items():
            kind = ", ".join(sorted({type(entry).__name__.lstrip("_") for entry in entries}))
            yield Fold(module=path, tensor=name, kind=kind, dim=int(entries[0].dim) if kind == "WeightNorm" else None)
    for hook in module._forward_pre_hooks.values():
        home: str = type(hook).__module__
        entry: Any = hook
        if home in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
            kind = home.rpartition(".")[2]
            yield Fold(module=path, tensor=entry.name, kind=kind, dim=int(entry.dim) if kind == "weight_norm" else None)
        elif isinstance(entry, BasePruningMethod):
            yield Fold(module=path, tensor=str(entry._tensor_name), kind="pruning mask")


def folded(model: nn.Module, example_inputs: ExampleInputs | None = None) -> tuple[nn.Module, tuple[Fold, ...]]:
    """A copy of ``model`` in which weights that are computed of others are plain parameters of the same values.

    Args:
        model: Any model; it stays as it is.
        example_inputs: Where given, the outputs of both are compared on them.

    Returns:
        The copy, and what was folded.

    Raises:
        CaptureError: The model cannot be copied, or its outputs change.

    Example:
        >>> net = nn.Sequential(torch.nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        >>> plain, folds = folded(net)
        >>> sorted(plain.state_dict()), folds[0].kind
        (['0.bias', '0.weight'], 'WeightNorm')
    """
    folds = folds_of(model)
    plain = copied(model)
    fold_in_place(plain, folds)
    if example_inputs is not None and folds:
        _compare(model, plain, example_inputs)
    return plain, folds


def fold_in_place(model: nn.Module, folds: Iterable[Fold]) -> None:
    """Fold the named tensors of ``model``; one that is plain already stays.

    Raises:
        AttributeError: There is no such module.
    """
    for fold in folds:
        module = model.get_submodule(fold.module)
        kind = {found.tensor: found.kind for found in _of_module(fold.module, module)}.get(fold.tensor)
        if kind is not None:
            with preserved_modes(module), torch.no_grad():
                module.eval()  # a spectral norm moves on where it is read in training
                _fold(module, fold.tensor, kind)


def returning_norms(model: nn.Module, folds: Iterable[Fold]) -> tuple[Fold, ...]:
    """The weight norms among ``folds`` that can go back onto the plain weights of ``model``, whatever was cut of them.

    Left out are other kinds, layers that are gone, weights that have a norm, and weights with a filter of zeros alone, which has no
    direction.
    """
    modules = dict(model.named_modules())
    found = []
    for fold in folds:
        weight = modules[fold.module]._parameters.get(fold.tensor) if fold.module in modules else None
        if fold.kind in WEIGHT_NORMS and fold.dim is not None and weight is not None:
            if bool(torch.norm_except_dim(weight.detach(), 2, fold.dim).all()):
                found.append(fold)
    return tuple(found)


def norms_in_place(model: nn.Module, folds: Iterable[Fold]) -> None:
    """Put weight norms onto plain weights of ``model``, which they compute: their directions are the weights that are there, and their
    lengths those weights' norms. Folds of other kinds are passed over.

    Example:
        >>> net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)))
        >>> plain, folds = folded(net)
        >>> norms_in_place(plain, returning_norms(plain, folds))
        >>> sorted(plain.state_dict())
        ['0.bias', '0.parametrizations.weight.original0', '0.parametrizations.weight.original1']
    """
    for fold in folds:
        if fold.kind not in WEIGHT_NORMS or fold.dim is None:
            continue
        module = model.get_submodule(fold.module)
        trained = module.get_parameter(fold.tensor).requires_grad
        put = weight_norm if fold.kind == "weight_norm" else parametrizations.weight_norm
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the older one is what the model was built with
            put(module, fold.tensor, dim=fold.dim)
        for name, parameter in module.named_parameters():
            if fold.tensor in name.split(".") or name in (f"{fold.tensor}_g", f"{fold.tensor}_v"):
                parameter.requires_grad_(trained)


def _fold(module: nn.Module, tensor: str, kind: str) -> None:
    if parametrize.is_parametrized(module, tensor):
        entries: Any = module.parametrizations
        originals = list(entries[tensor].parameters())
        _own_class(module)
        parametrize.remove_parametrizations(module, tensor, leave_parametrized=True)
    else:
        originals = [
            p for name, p in module._parameters.items() if name in (f"{tensor}_g", f"{tensor}_v", f"{tensor}_orig") and p is not None
        ]
        if kind == "weight_norm":
            remove_weight_norm(module, tensor)
        elif kind == "spectral_norm":
            remove_spectral_norm(module, tensor)
            _forget_state_hooks(module, tensor)
        else:
            torch.nn.utils.prune.remove(module, tensor)  # type: ignore[no-untyped-call]
    value: torch.Tensor = getattr(module, tensor)
    if not isinstance(value, nn.Parameter):  # what PyTorch makes of several originals without gradients
        module._buffers.pop(tensor)
        module.register_parameter(tensor, nn.Parameter(value))
    module.get_parameter(tensor).requires_grad_(any(original.requires_grad for original in originals))


def _own_class(module: nn.Module) -> None:
    """A parametrised module has a class of its own, which a copy of the module shares, and from which the parametrisation is removed."""
    kind = type(module)
    names = {name: value for name, value in vars(kind).items() if name not in ("__dict__", "__weakref__")}
    module.__class__ = type(kind.__name__, kind.__bases__, names)


def _forget_state_hooks(module: nn.Module, tensor: str) -> None:
    """PyTorch leaves the hook behind that makes a spectral norm's own tensors of a state dict, which then cannot be loaded."""
    for hooks in (module._load_state_dict_pre_hooks, module._state_dict_hooks):
        for number, hook in list(hooks.items()):
            entry: Any = getattr(hook, "hook", hook)
            if type(entry).__module__ == "torch.nn.utils.spectral_norm" and entry.fn.name == tensor:
                del hooks[number]


def _compare(model: nn.Module, plain: nn.Module, example_inputs: ExampleInputs) -> None:
    found = []
    for network in (model, plain):
        with preserved_modes(network), torch.no_grad(), torch.random.fork_rng():
            found.append(flatten_tensors(call_with(network.eval(), example_inputs), opaque=False))
    for index, (before, after) in enumerate(zip(*found, strict=True)):
        scale = float(before.abs().max()) if before.numel() else 0.0
        if before.numel() and not float((before - after).abs().max()) <= 1e-3 * max(scale, 1e-3):
            raise CaptureError(
                f"folding the weights that are computed of others changes output {index} of the model: they are not what they are by their "
                "parameters alone; name these modules in keep instead"
            )
