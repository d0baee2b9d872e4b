"""The folder of a pruned model: written with its configuration and card, read back as the class that it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.export import load_result
from latprune.export.checkpoint import RECORD, WEIGHTS, SavedResult
from latprune.integrations.huggingface.card import model_card
from latprune.integrations.huggingface.config import checked, dense_of, pruned_config
from latprune.integrations.huggingface.library import huggingface_hub, transformers
from latprune.pruning.result import Result
from latprune.storage import write_atomic

__all__ = ["from_pretrained", "save_pretrained"]

_CONFIG, _GENERATION, _CARD = "config.json", "generation_config.json", "README.md"
_OURS = "latprune"
"""``model_type`` of a configuration of which ``transformers`` must build no network: it would have other shapes than the weights, or layers
that were removed, with random values. Its ``dtype`` is no type of PyTorch, so that a class that does not look at ``model_type`` stops too.
"""


def save_pretrained(
    result: Result,
    folder: str | Path,
    *,
    dense_config: Any | None = None,
    processing: Any | None = None,
    repository: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    introduction: str = "",
) -> Path:
    """Save a pruned model of ``transformers`` as a folder that the Hub and :func:`from_pretrained` know.

    It holds what :meth:`Result.save` writes (``model.safetensors``, ``result.json``), ``config.json``, ``generation_config.json`` where the
    model generates, and the model card as ``README.md``. Where a configuration of the model's class states the pruned widths, that is
    ``config.json``, and ``AutoModel.from_pretrained`` loads the folder too. Else ``config.json`` is of the model type ``latprune`` and
    holds the dense model's, for :func:`from_pretrained` of this module; the loaders of ``transformers`` refuse it. A captured program
    (``form="program"``) needs none of it.

    Args:
        result: Of :func:`latprune.prune` or :meth:`latprune.Pruner.result`; its model may have been trained on since.
        folder: Made if missing; other files in it stay.
        dense_config: Configuration that builds the dense model, where the model's own does not (it was changed after building).
        processing: A tokenizer or processor to save beside it.
        repository: Name to print in the card's lines that load the model; the folder's by default.
        metadata: Entries of the card's header (``license``, ``base_model``, ...).
        introduction: Text of your own for the card.

    Returns:
        The folder.

    Raises:
        InvalidArgumentError: The result's model is none of ``transformers``, nor a captured program.
        CheckpointError: Its configuration does not build the dense model.
        MissingExtraError: ``transformers`` is not installed.

    Example:
        >>> save_pretrained(result, "pruned", metadata={"license": "apache-2.0"})  # doctest: +SKIP
    """
    from latprune.program import ProgramModule

    folder, model = Path(folder), result.model
    program = isinstance(model, ProgramModule)
    if not program and not isinstance(model, transformers().PreTrainedModel):
        raise InvalidArgumentError(
            f"the result's model is a {type(model).__name__}, which is no transformers.PreTrainedModel: save it with result.save(folder), "
            "and reload it with latprune.restore(constructor, folder)"
        )
    stated = None if program else pruned_config(model, result.record, result.example_inputs)
    if stated is not None:
        config = _as_data(stated, model)
    else:
        name = result.record.model.name if program else type(model).__name__
        config = {"model_type": _OURS, "dtype": _OURS, "architectures": [name]}
        if not program:
            # Without its own model type: transformers looks for it inside of a configuration too.
            config["dense"] = {
                key: value for key, value in _as_data(_dense(model, result, dense_config), model).items() if key != "model_type"
            }
    card = model_card(
        result.record,
        loads_with="latprune" if stated is None else "transformers",
        model_class=type(model).__name__,
        repository=repository or folder.name,
        metadata=metadata,
        introduction=introduction,
    )
    result.save(folder)
    write_atomic(folder / _CONFIG, json.dumps(config, indent=2, sort_keys=True, allow_nan=False) + "\n")
    write_atomic(folder / _CARD, card)
    plain: Any = model
    if not program and plain.can_generate():
        plain.generation_config.save_pretrained(folder)
    if processing is not None:
        processing.save_pretrained(folder)
    return folder


def _dense(model: nn.Module, result: Result, given: Any | None) -> Any:
    """The configuration that builds the dense model."""
    return dense_of(model, result.record) if given is None else checked(type(model), given, result.record)


def from_pretrained(
    folder: str | Path,
    *,
    model_class: type[nn.Module] | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> nn.Module:
    """The pruned model of a folder, or of a repository on the Hub, that :func:`save_pretrained` or :func:`push_to_hub` wrote.

    No pickle is read and no code from the folder is run: classes come from the installed ``transformers``, by name.

    Args:
        folder: A folder, or a repository's name.
        model_class: The model's class, where it is none of ``transformers``' own.
        revision: Branch, tag or commit of a repository.
        token: Access token for a private repository.

    Returns:
        The model in evaluation mode; a captured program where the result is one.

    Raises:
        CheckpointError: A part is missing, damaged, or does not fit the others.
        MissingExtraError: ``transformers`` is not installed.

    Example:
        >>> model = from_pretrained("pruned")  # doctest: +SKIP
    """
    place = Path(folder)
    if not place.is_dir():
        wanted = [_CONFIG, _GENERATION, WEIGHTS, RECORD]
        place = Path(huggingface_hub().snapshot_download(str(folder), revision=revision, token=token, allow_patterns=wanted))
    saved = load_result(place)
    if saved.record.program is not None:
        return saved.restore()
    config = _read(place / _CONFIG)
    if config.get("model_type") == _OURS:
        restored: nn.Module = _restored(place, saved, config.get("dense"), model_class)
        return restored
    loader: Any = model_class or _class_named(config, place / _CONFIG)
    model: nn.Module = loader.from_pretrained(str(place))
    return model.eval()


def _restored(place: Path, saved: SavedResult, dense: Any, model_class: Any | None) -> Any:
    """The dense model of its configuration, cut and loaded."""
    if not isinstance(dense, dict):
        raise CheckpointError(f"{place / _CONFIG} holds no configuration of the dense model ('dense')")
    found = model_class or _class_named(dense, place / _CONFIG)
    config_class = getattr(found, "config_class", None)
    if config_class is None:
        raise InvalidArgumentError(f"model_class ({found.__name__}) has no config_class to read the configuration with")
    built = found(config_class.from_dict(dense))
    kinds = {tensor.dtype for tensor in saved.tensors.values() if tensor.is_floating_point()}
    if len(kinds) == 1:  # as it was saved: loading alone keeps the type that it was built in
        built.to(kinds.pop())
    model: Any = saved.restore(built)
    if (place / _GENERATION).is_file() and model.can_generate():
        model.generation_config = transformers().GenerationConfig.from_pretrained(str(place))
    return model


def _class_named(config: Mapping[str, Any], path: Path) -> Any:
    """The class of ``transformers`` that a configuration names."""
    library = transformers()
    names = config.get("architectures") or [None]
    found = getattr(library, str(names[0]), None)
    if not (isinstance(found, type) and issubclass(found, library.PreTrainedModel)):
        raise CheckpointError(f"{path} names the class {names[0]!r}, which transformers does not have: give it as model_class=")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise CheckpointError(
            f"there is no {path}: the folder was not written by save_pretrained; latprune.restore(constructor, folder) loads a plain result"
        ) from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} must hold a JSON object")
    return data


def _as_data(config: Any, model: nn.Module) -> dict[str, Any]:
    """A configuration as the JSON object that ``transformers`` writes, with the model's class and type."""
    data: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return {**data, "architectures": [type(model).__name__], "dtype": dtype}
