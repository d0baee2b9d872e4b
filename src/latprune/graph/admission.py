"""What is no plain module, told before anything is traced: wrappers, weights that do not exist yet, weights derived from others."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from latprune.errors import CaptureError, InvalidArgumentError
from latprune.graph.folding import folds_of
from latprune.graph.tensors import flatten_tensors
from latprune.modes import check_modes
from latprune.states import is_carried, stored_state

__all__ = ["check_derived_weights", "check_inputs", "check_kind", "check_state", "derived_weights"]

_PARALLEL = {"DataParallel", "DistributedDataParallel", "FullyShardedDataParallel"}
_PARTS = "latprune.graph.unwrapped(model, parts=True) does so for all parts"
_MOST = 0.25
"""Share of a model's parameters that may stay whole because its weights are derived, before that is refused for what it is."""


def check_kind(model: nn.Module) -> None:
    """Refuse what wraps a model, and modules without weights.

    Raises:
        CaptureError: The model, or a part of it, is compiled, parallel, scripted as a whole or not initialised; the message says what to
            pass instead.
    """
    if not isinstance(model, nn.Module):
        raise CaptureError(f"model is a {type(model).__name__}; it must be a torch.nn.Module (of a wrapper, pass the module that it holds)")
    check_modes(model)
    for path, module in model.named_modules():
        kind = type(module).__name__
        where = f"module '{path}'" if path else "the model"
        if hasattr(module, "_orig_mod") and kind == "OptimizedModule":
            inner = f"model.{path}._orig_mod" if path else "model._orig_mod"
            put = f"put {inner} in its place ({_PARTS})" if path else f"pass {inner}, the module that was compiled"
            raise CaptureError(f"{where} is compiled (torch.compile): {put}, prune, and compile the pruned one again")
        if kind in _PARALLEL and hasattr(module, "module"):
            raise CaptureError(f"{where} is a {kind}: {_parallel_remedy(module, path)}")
        if isinstance(module, torch.jit.ScriptModule) and not path:
            raise CaptureError("the model is a TorchScript module, whose code cannot be followed: pass the nn.Module that it was made of")
        if isinstance(module, torch.fx.GraphModule) and "train" in vars(module):
            raise CaptureError(f"{where} is the module of an exported program, which has one mode alone: pass the module that was exported")
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            full = f"{path}.{name}" if path else name
            if is_lazy(tensor):
                raise CaptureError(
                    f"'{full}' of {where} ({kind}) has no size yet: run the model once on the example inputs before it is pruned (in the "
                    "function that builds it too, so that saved results fit it)"
                )
            _check_tensor(tensor, f"'{full}' of {where} ({kind})")


def _parallel_remedy(module: nn.Module, path: str) -> str:
    """What to do about a wrapper for several devices or processes."""
    inner = f"model.{path}.module" if path else "model.module"
    if type(module).__name__ == "FullyShardedDataParallel":
        return (
            "its parameters are shards without the layers' shapes. Prune the plain model in one process, let all restore the saved result, "
            "and shard that"
        )
    if path:
        return f"put {inner} in its place ({_PARTS}), prune, and wrap the pruned one again"
    if isinstance(module, nn.parallel.DistributedDataParallel):
        return (
            f"its {torch.distributed.get_world_size(module.process_group)} processes would each prune by measurements of their own. Prune "
            f"{inner} in one of them, let all restore its saved result, and wrap that"
        )
    return f"pass {inner}, the module in it, prune, and wrap the pruned one again"


def _check_tensor(tensor: torch.Tensor, what: str) -> None:
    """Refuse tensors that have no values of their own to cut."""
    if tensor.is_meta:
        raise CaptureError(f"{what} is on the meta device and has no values: build the model on a real one, or load its weights first")
    if tensor.is_inference():
        raise CaptureError(
            f"{what} was made under torch.inference_mode(), and such tensors cannot be changed: build the model outside of it"
        )
    if not _is_plain(tensor):
        raise CaptureError(
            f"{what} is a {type(tensor).__name__}, a tensor type of its own, which cannot be cut place by place: put a plain "
            "torch.nn.Parameter of its values there, prune, and convert the pruned model again"
        )
    if tensor.layout != torch.strided:
        raise CaptureError(f"{what} is a sparse tensor ({tensor.layout}), which cannot be cut: put tensor.to_dense() there")


def _is_plain(tensor: torch.Tensor) -> bool:
    kind = type(tensor)
    if kind in (torch.Tensor, nn.Parameter):
        return True
    own = (getattr(kind, name) is not getattr(nn.Parameter, name) for name in ("__torch_dispatch__", "__torch_function__"))
    return issubclass(kind, nn.Parameter) and not any(own)


def check_inputs(example_inputs: Any) -> None:
    """Refuse example inputs that are tensors of a type of their own, or a batch of nothing.

    Raises:
        InvalidArgumentError: An input is one; the message says which.
    """
    tensors = flatten_tensors(example_inputs if not isinstance(example_inputs, list) else tuple(example_inputs))
    if tensors and tensors[0].dim() and not tensors[0].shape[0]:
        raise InvalidArgumentError(
            f"example inputs of shape {tuple(tensors[0].shape)} are a batch of 0: the first dimension must be at least 1, the "
            "batch that is counted and measured"
        )
    for index, tensor in enumerate(tensors):
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            raise InvalidArgumentError(
                f"tensor {index} of the example inputs is a {type(tensor).__name__}, a tensor type of its own: give a plain one, "
                "tensor.as_subclass(torch.Tensor)"
            )


def check_state(model: nn.Module) -> None:
    """Refuse states that a checkpoint of tensors cannot hold.

    Raises:
        InvalidArgumentError: A module's ``get_extra_state`` gives something other than a tensor or a JSON value, a module is prepared for
            quantisation, or it is quantised in a form that no file without pickle holds.
    """
    for path, module in model.named_modules():
        kind = f"({type(module).__name__} of {type(module).__module__})"
        if _is_prepared(module):
            raise InvalidArgumentError(
                f"module '{path}' {kind} is prepared to be quantised: its scales cannot be cut. Prune the float model, and prepare the "
                "pruned one"
            )
        if type(module).__module__.startswith("torch.ao.nn.quantized") and not _can_be_stored(module):
            raise InvalidArgumentError(
                f"module '{path}' {kind} is quantised, and keeps packed weights that no file without pickle holds. Prune the float model, "
                "and quantise the pruned one"
            )
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            state: Any = module.get_extra_state()
            if not is_carried(state):
                held = f"keeps a {type(state).__name__} in its state (get_extra_state)"
                raise InvalidArgumentError(
                    f"module '{path}' ({type(module).__name__}) {held} that is neither a tensor nor a JSON value (dictionaries, lists, "
                    "numbers, texts), and results hold no pickle. Keep it in a buffer, let get_extra_state return one of these, or give "
                    "the module a class without it while the model is pruned"
                )


def _can_be_stored(module: nn.Module) -> bool:
    try:
        stored_state(module)
    except InvalidArgumentError:
        return False
    return True


def _is_prepared(module: nn.Module) -> bool:
    home = type(module).__module__
    if home.startswith(("torch.ao.nn.", "torch.nn.qat", "torch.nn.intrinsic")):
        return "qat" in home
    # What rounds or observes with one scale for a whole tensor holds nothing that could be cut.
    return home.startswith("torch.ao.quantization") and any(buffer.numel() > 1 for buffer in module.buffers())


def derived_weights(model: nn.Module) -> dict[str, str]:
    """Path of each module whose weight is computed of other parameters -> by what: ``weight_norm``, ``spectral_norm``, ``pruning mask``,
    or the class of a parametrisation.
    """
    found: dict[str, str] = {}
    for fold in folds_of(model):
        found[fold.module] = (
            f"{found[fold.module]}, {fold.kind}" if fold.kind not in found.setdefault(fold.module, fold.kind) else fold.kind
        )
    return found


_REMEDIES = {
    "weight_norm": "torch.nn.utils.remove_weight_norm(module)",
    "spectral_norm": "torch.nn.utils.remove_spectral_norm(module)",
    "pruning mask": "torch.nn.utils.prune.remove(module, 'weight')",
}


def check_derived_weights(model: nn.Module, keep: Sequence[str] = ()) -> None:
    """Refuse a model whose weights are for a large part derived from others, unless ``keep`` names them.

    Such weights stay whole. Where that is little, the rest is pruned; where it is much, the budget would fall on the wrong layers, or could
    not be met.

    Raises:
        InvalidArgumentError: More than a quarter of the parameters; the message says how to fold them.
    """
    derived = {
        path: kind
        for path, kind in derived_weights(model).items()
        if not any(fnmatchcase(path, pattern) or path.startswith(f"{pattern}.") for pattern in keep)
    }
    inside = {id(parameter): parameter.numel() for path in derived for parameter in model.get_submodule(path).parameters()}
    total = sum(parameter.numel() for parameter in model.parameters())
    if not total or sum(inside.values()) <= _MOST * total:
        return
    named = ", ".join(f"'{path}'" for path in list(derived)[:3]) + (", ..." if len(derived) > 3 else "")
    kinds = sorted(set(derived.values()))
    other = "torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')"
    remedies = " or ".join(dict.fromkeys(_REMEDIES.get(kind, other) for kind in kinds))
    raise InvalidArgumentError(
        f"{sum(inside.values()) / total:.0%} of the parameters are behind weights that are computed of others ({', '.join(kinds)} in "
        f"{len(derived)} modules: {named}), and such weights stay whole: with fold=True (--fold) a copy is pruned in which they are plain "
        f"weights, which changes no output ({remedies} does so for a module); or name them in keep to prune the rest"
    )
