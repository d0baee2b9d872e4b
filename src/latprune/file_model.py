"""Bases of what is read from files: pydantic is used there and nowhere else."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

__all__ = ["FileModel", "StrictFileModel"]


class FileModel(BaseModel):
    """Frozen and closed (an unknown key is an error), with finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class StrictFileModel(FileModel):
    """As :class:`FileModel`, and nothing is converted: ``"1"`` is no number."""

    model_config = ConfigDict(strict=True)
