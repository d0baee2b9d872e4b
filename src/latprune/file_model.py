"""Bases of what is read from files: pydantic is used there and nowhere else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from latprune.errors import FileFormatError
from latprune.file_errors import naming

__all__ = ["DocumentModel", "FileModel", "StrictFileModel", "parsed", "validated"]

M = TypeVar("M", bound=BaseModel)


class FileModel(BaseModel):
    """Frozen and closed (an unknown key is an error), with finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


class StrictFileModel(FileModel):
    """As :class:`FileModel`, and nothing is converted: ``"1"`` is no number."""

    model_config = ConfigDict(strict=True)


class DocumentModel(FileModel):
    """A JSON file of its own: its fields ``format`` and ``version`` have the defaults that the file must have."""

    holds: ClassVar[str]
    """What a file holds, for errors."""

    @classmethod
    def from_dict(cls, data: Any) -> Self:
        """Read one from parsed JSON.

        Raises:
            FileFormatError: Something else, of an unknown version, or a value breaks its rule; names the place inside the file.
        """
        return validated(cls, data, what=cls.holds)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read one from JSON text; raises as :meth:`from_dict`."""
        return cls.from_dict(parsed(text))

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """Read a file; raises as :meth:`from_dict`, with the file's name."""
        with naming(path):
            return cls.from_json(Path(path).read_bytes())


def parsed(text: str | bytes) -> Any:
    """JSON text as plain objects.

    Raises:
        FileFormatError: It is not JSON.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"is not JSON: {error}") from error


def validated(model: type[M], data: Any, *, what: str) -> M:
    """Parsed JSON as ``model``, whose fields ``format`` and ``version`` have the defaults that the file must have.

    Args:
        model: The file's class.
        data: Parsed JSON.
        what: What the file should hold, for errors.

    Raises:
        FileFormatError: Another format, an unknown version, or a value that breaks its rule; names the place inside the file.
    """
    name, version = (model.model_fields[field].default for field in ("format", "version"))
    if not isinstance(data, dict) or data.get("format") != name:
        found = data.get("format") if isinstance(data, dict) else type(data).__name__
        raise FileFormatError(f"is {found!r}, not {what}; expected format {name!r}", path="format")
    if data.get("version") != version:
        raise FileFormatError(
            f"version {data.get('version')!r} is not known (this latprune reads version {version}); install a newer one", path="version"
        )
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise FileFormatError(_sentence(first["msg"], first.get("input")), path=_place(first["loc"])) from error


def _place(location: tuple[int | str, ...]) -> str:
    """``("groups", 3, "kept")`` as ``groups[3].kept``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text


def _sentence(message: str, value: Any) -> str:
    """The validator's message with the offending value, unless that is a whole section."""
    message = message.removeprefix("Value error, ")
    return message if isinstance(value, (dict, list, tuple)) else f"{message} (is {value!r})"
