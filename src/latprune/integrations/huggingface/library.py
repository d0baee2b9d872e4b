"""The optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from latprune.errors import MissingExtraError

__all__ = ["EXTRA", "huggingface_hub", "transformers"]

EXTRA = "huggingface"


def transformers() -> Any:
    """The package ``transformers``.

    Raises:
        MissingExtraError: It is not installed.
    """
    return _imported("transformers")


def huggingface_hub() -> Any:
    """The package ``huggingface_hub``.

    Raises:
        MissingExtraError: It is not installed.
    """
    return _imported("huggingface_hub")


def _imported(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:  # it is there, and lacks something of its own
            raise
        raise MissingExtraError(package, EXTRA) from error
