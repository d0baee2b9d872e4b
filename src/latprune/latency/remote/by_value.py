"""A model packed for another machine together with the code of its classes, which need not be there."""

from __future__ import annotations

import os
import sys
from collections import deque
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.latency.remote.ray_cluster import one_line

__all__ = ["packed"]

_ON_EVERY_NODE = {"latprune", "torch"}
"""Packages that are installed on every node, also where a developer's copy of them lies elsewhere here."""
_STANDARD_LIBRARY = Path(os.__file__).parent


def packed(ray: Any, model: nn.Module, *others: Any) -> bytes:
    """The model and what goes with it, the user's own code included: a node need not have his files."""
    pickler = ray.cloudpickle
    modules = [module for module in _own_modules(model) if module.__name__ not in pickler.list_registry_pickle_by_value()]
    for module in modules:
        pickler.register_pickle_by_value(module)
    try:
        return bytes(pickler.dumps((model, *others)))
    except Exception as error:  # whatever the object raises that cannot be packed
        raise InvalidArgumentError(
            f"model (={type(model).__name__}) cannot be sent to the devices ({one_line(error)}); keep what cannot be pickled out of the "
            "model and of the files that its classes are in, or install those as a package here and on the nodes"
        ) from error
    finally:
        for module in modules:
            pickler.unregister_pickle_by_value(module)


def _own_modules(model: nn.Module) -> list[ModuleType]:
    """The user's own modules: those of the model's classes, and those that they name."""
    found: dict[str, ModuleType] = {}
    names = deque(base.__module__ for part in model.modules() for base in type(part).__mro__)
    while names:
        name = names.popleft()
        module = sys.modules.get(name)
        if module is None or name in found or not _is_own(module):
            continue
        found[name] = module
        for value in vars(module).values():
            named = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
            if isinstance(named, str):
                names.append(named)
    return list(found.values())


def _is_own(module: ModuleType) -> bool:
    """Whether a module comes from a file of the user's, not from Python or an installed package, which the nodes have too."""
    file = getattr(module, "__file__", None)
    if file is None or module.__name__.partition(".")[0] in _ON_EVERY_NODE:
        return False
    path = Path(file)
    return _STANDARD_LIBRARY not in path.parents and not {"site-packages", "dist-packages"}.intersection(path.parts)
