"""A network cut to a budget, what it took to find, and its file: a structure is found once and trained at several rates."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from networks import Dense
from torch import nn

from latprune.graph import ModelGraph, Selection
from latprune.storage import decode_tensors, encode_tensors, write_atomic
from latprune.surgery import prune

__all__ = ["Structure", "Unreachable", "cut"]


class Unreachable(Exception):
    """A method gives no network under a budget.

    Args:
        reason: In words.
        floor: Lowest share of the dense value that it was seen to reach; None where it is not known.
        final: Whether another try would say the same; not so of what broke on the way.
    """

    def __init__(self, reason: str, floor: float | None = None, *, final: bool = True) -> None:
        super().__init__(reason)
        self.floor = floor
        self.final = final


def cut(dense: Dense, graph: ModelGraph, selection: Selection) -> nn.Module:
    """A copy of the dense network, cut."""
    network = copy.deepcopy(dense.model)
    prune(network, graph, selection)
    return network.eval()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Structure:
    """A cut network.

    Attributes:
        network: With the weights that the method left it.
        selection: Units and blocks of the dense network that are kept.
        found: What else is to be said of it, JSON-able; goes into its rows.
    """

    network: nn.Module
    selection: Selection
    found: dict[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Write ``path.safetensors`` and then ``path.json``, which marks it as complete."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path.with_name(path.name + ".safetensors"), encode_tensors(self.network.state_dict()))
        kept = {name: units.tolist() for name, units in self.selection.kept.items()}
        text = json.dumps({"kept": kept, "removed": sorted(self.selection.removed_blocks), "found": self.found})
        write_atomic(path.with_name(path.name + ".json"), text)

    @classmethod
    def load(cls, path: Path, dense: Dense, graph: ModelGraph) -> Structure | None:
        """Read what :meth:`save` wrote, cutting a copy of the dense network; None where there is nothing."""
        file = path.with_name(path.name + ".json")
        if not file.exists():
            return None
        data = json.loads(file.read_text())
        kept = {name: np.asarray(units, dtype=np.int64) for name, units in data["kept"].items()}
        selection = Selection(kept=kept, removed_blocks=frozenset(data["removed"]))
        network = cut(dense, graph, selection)
        weights = path.with_name(path.name + ".safetensors")
        network.load_state_dict(decode_tensors(weights.read_bytes(), source=str(weights)))
        return cls(network=network, selection=selection, found=data["found"])
