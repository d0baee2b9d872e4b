"""The optional packages, imported where they are used."""

from __future__ import annotations

import importlib
from typing import Any

from latprune.extras import importing

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
    with importing(package, EXTRA):
        return importlib.import_module(package)
