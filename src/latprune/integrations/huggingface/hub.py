"""To the Hub: the folder and its card, in one commit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, Protocol

from latprune.integrations.huggingface.folder import save_pretrained
from latprune.integrations.huggingface.library import huggingface_hub
from latprune.pruning.result import Result

__all__ = ["HubApi", "push_to_hub"]


class HubApi(Protocol):
    """What is used of ``huggingface_hub.HfApi``."""

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> Any:
        """Make the repository, unless it is there."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, revision: str | None) -> Any:
        """Commit the files of a folder."""


def push_to_hub(
    result: Result,
    repository: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    api: HubApi | None = None,
    **options: Any,
) -> Any:
    """Upload a pruned model with its record and model card.

    Args:
        result: As for :func:`save_pretrained`.
        repository: ``owner/name``; made if it is not there.
        private: Whether a new repository is private; None leaves it to the owner's settings.
        token: Access token; None takes the one that is logged in.
        revision: Branch to commit to.
        commit_message: Says by default what was pruned to which budget.
        api: In place of ``huggingface_hub.HfApi(token=token)``, for another server or a rehearsal without network.
        **options: ``dense_config``, ``processing``, ``metadata`` and ``introduction`` of :func:`save_pretrained`.

    Returns:
        What ``upload_folder`` returns (its commit).

    Raises:
        MissingExtraError: ``huggingface_hub`` is not installed.

    Example:
        >>> push_to_hub(result, "me/bert-half", private=True)  # doctest: +SKIP
    """
    hub: HubApi = api if api is not None else huggingface_hub().HfApi(token=token)
    with tempfile.TemporaryDirectory() as place:
        # Saved first: what cannot be saved makes no repository.
        folder = save_pretrained(result, Path(place) / "model", repository=repository, **options)
        hub.create_repo(repository, private=private, exist_ok=True)
        message = commit_message or f"{result.record.model.name} pruned to {result.record.budget.text} by latprune"
        return hub.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=message, revision=revision)
