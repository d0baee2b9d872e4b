"""What fails once the model is changed is told so: with where the run stands, and how to go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from latprune.errors import InvalidArgumentError, UnfinishedRunError

if TYPE_CHECKING:
    from torch import nn

    from latprune.pruning.staged_run import StagedRun

__all__ = ["told_as_unfinished"]


@contextmanager
def told_as_unfinished(run: StagedRun, model: nn.Module) -> Iterator[None]:
    """An argument that turns out wrong after the first change is an unfinished run; whatever ends it, masks come off the model.

    Args:
        run: The run.
        model: The caller's model; where a copy of it is pruned (a program, folded weights), it is as it was.

    Raises:
        UnfinishedRunError: In place of an InvalidArgumentError, whose contract is that nothing was changed.
    """
    try:
        yield
    except BaseException as error:
        pruner = run.pruner
        if pruner.masks is not None:  # after an interruption too the model is a plain one, and no hook stays at the optimizers
            pruner.masks.close()
        if not isinstance(error, InvalidArgumentError):
            raise
        changed = bool(pruner.edits) or pruner.masks is not None or run.trains
        if not changed or all(part is not pruner.model for part in model.modules()):
            if not changed or run.folder is None:
                raise
            raise UnfinishedRunError(
                f"{error}. Your model is as it was, and what was finished is kept: the same call with the same folder "
                f"(={str(run.folder)!r}) goes on",
                folder=run.folder,
                stage=pruner.stage,
            ) from error
        state = f"pruned by now (stage {pruner.stage} of {pruner.stages})" if pruner.edits else "trained by now, and not yet cut"
        if run.folder is not None:
            further = (
                f"What was finished is kept in the folder (={str(run.folder)!r}): mend the cause and make the same call with the dense "
                "model built anew, and it goes on from there"
            )
        else:
            further = "Mend the cause, build the dense model anew and call again; with folder= a call goes on where the last one stopped"
        raise UnfinishedRunError(
            f"{error}. The model that was handed over is {state}. {further}", folder=run.folder, stage=pruner.stage
        ) from error
