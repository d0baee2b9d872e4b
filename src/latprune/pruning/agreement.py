"""Several processes of one training (``torch.distributed``) prune alike: the first one decides, and the others take what it decided."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import distributed

from latprune.errors import LatpruneError
from latprune.latency import Measurement
from latprune.methods import Proposal
from latprune.pruning.proposal import StageProposal
from latprune.pruning.state import selection_from_dict, selection_to_dict
from latprune.pruning.trials import Trial

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["agreed", "of_first"]

T = TypeVar("T")


def of_first(
    make: Callable[[], T], *, encode: Callable[[T], Any] = lambda value: value, decode: Callable[[Any], T] = lambda data: data
) -> T:
    """``make()`` of the first process, in all of them; alone it is just called.

    Two processes that measure never measure the same, and networks that differ between the processes of one training are no network. So
    whatever a clock, a search or a time limit has a part in is left to one of them. Every process must call this, at the same point.

    Args:
        make: Makes the value; called in the first process only. It must not itself talk to the others.
        encode: The value as a JSON value.
        decode: The value from it.

    Raises:
        LatpruneError: ``make`` failed in the first process: there with its own error, in the others with its words.
    """
    if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
        return make()
    if distributed.get_rank() != 0:
        found = json.loads(_broadcast(None))
        if "error" in found:
            raise LatpruneError(f"the first process failed: {found['error']}")
        return decode(found["value"])
    try:
        value = make()
        text = json.dumps({"value": encode(value)})
    except BaseException as error:
        _broadcast(json.dumps({"error": f"{type(error).__name__}: {error}"}))
        raise
    _broadcast(text)
    return value


def agreed(find: Callable[[], StageProposal]) -> StageProposal:
    """What ``find`` proposes in the first process, in all of them; the others get it without the problem that was solved."""
    return of_first(find, encode=_proposal_to_dict, decode=_proposal_from_dict)


def _broadcast(text: str | None) -> str:
    """The first process's ``text``; the others give None."""
    device = torch.device("cuda", torch.cuda.current_device()) if distributed.get_backend() == "nccl" else torch.device("cpu")
    raw = torch.frombuffer(bytearray((text or "").encode()), dtype=torch.uint8) if text else torch.zeros(0, dtype=torch.uint8)
    size: Tensor = torch.tensor([raw.numel()], device=device)
    distributed.broadcast(size, 0)
    data = raw.to(device) if text else torch.zeros(int(size), dtype=torch.uint8, device=device)
    distributed.broadcast(data, 0)
    return bytes(data.cpu().tolist()).decode()


def _proposal_to_dict(found: StageProposal) -> dict[str, Any]:
    return {
        "widths": dict(found.proposal.widths),
        "removed_blocks": list(found.proposal.removed_blocks),
        "value": found.proposal.predicted,
        "selection": selection_to_dict(found.selection),
        "limit": found.limit,
        "predicted": found.predicted,
        "trial": _trial_to_dict(found.trial),
        "fresh": _trial_to_dict(found.fresh),
        "rounds": [list(entry) for entry in found.rounds],
        "note": found.note,
        "stage": found.stage,
    }


def _proposal_from_dict(data: dict[str, Any]) -> StageProposal:
    return StageProposal(
        proposal=Proposal(widths=data["widths"], removed_blocks=tuple(data["removed_blocks"]), predicted=data["value"]),
        selection=selection_from_dict(data["selection"]),
        limit=data["limit"],
        predicted=data["predicted"],
        trial=_trial_from_dict(data["trial"]),
        fresh=_trial_from_dict(data["fresh"]),
        rounds=tuple((limit, predicted, measured) for limit, predicted, measured in data["rounds"]),
        note=data["note"],
        stage=data["stage"],
    )


def _trial_to_dict(trial: Trial | None) -> dict[str, Any] | None:
    if trial is None:
        return None
    return {
        "dense": trial.dense.to_dict(),
        "pruned": trial.pruned.to_dict(),
        "value": trial.value,
        "uncertainty": trial.uncertainty,
    }


def _trial_from_dict(data: dict[str, Any] | None) -> Trial | None:
    if data is None:
        return None
    return Trial(
        dense=Measurement.from_dict(data["dense"]),
        pruned=Measurement.from_dict(data["pruned"]),
        value=data["value"],
        uncertainty=data["uncertainty"],
    )
