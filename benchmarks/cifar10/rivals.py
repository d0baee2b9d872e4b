"""Torch-Pruning beside us: its pruners with their defaults, the ratio searched until the measured latency is that of the budget.

Only the classifier is ignored, as its documentation has it. A pruner's channels are read from its own groups and said in our terms, so that
the same network can be counted, kept and recovered; that it computes the same is checked.

Torch-Pruning leaves a group whole that a ratio would empty, so latency does not fall steadily with the ratio: ratios are tried from below,
and the first (the least pruned) that meets the budget is refined.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from measuring import Budget, counted, measured
from networks import Dense
from structure import Structure, Unreachable, cut
from torch import Tensor, nn

from latprune.graph import ModelGraph, Selection
from latprune.graph.types import Role
from latprune.importance import cross_entropy_loss
from latprune.latency import Target
from latprune.storage import write_atomic

__all__ = ["BEST_OF", "RIVALS", "Ratios", "Rival", "gradients_of", "least_ratio", "rival_structure"]

VERSION = "1.6.1"
GRID = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.9375)
"""Ratios that are tried first; above the last one a group of 16 channels would be emptied, and stays whole instead."""
TOLERANCE = 0.015
"""How far from the budget a network may lie."""
_HALVINGS, _CONFIRMATIONS = 6, 3

_IMPORTANCES = {
    "magnitude": lambda tp: tp.importance.GroupMagnitudeImportance(p=2),
    "taylor": lambda tp: tp.importance.GroupTaylorImportance(),
    "lamp": lambda tp: tp.importance.LAMPImportance(p=2),
    "bn_scale": lambda tp: tp.importance.BNScaleImportance(),
    "fpgm": lambda tp: tp.importance.FPGMImportance(p=2),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rival:
    """A pruner of Torch-Pruning.

    Attributes:
        importance: What scores its channels.
        scope: Whether channels are compared within a layer (its default: the same ratio everywhere), over the network, or among groups of
            the same pattern (``isomorphic=True``).
        round_to: Widths are multiples of it; None leaves them as they are.
    """

    importance: str
    scope: Literal["local", "global", "isomorphic"] = "local"
    round_to: int | None = None


RIVALS: dict[str, Rival] = {
    f"tp_{importance}{'' if scope == 'local' else '_' + scope}{f'_{round_to}' if round_to else ''}": Rival(
        importance=importance,
        scope=scope,
        round_to=round_to,
    )
    for importance in _IMPORTANCES
    for scope in ("local", "global", "isomorphic")
    for round_to in (None, 8)
}

BEST_OF = (
    "tp_taylor",
    "tp_taylor_8",
    "tp_taylor_global",
    "tp_taylor_isomorphic",
    "tp_magnitude",
    "tp_magnitude_8",
    "tp_magnitude_isomorphic",
    "tp_lamp_global",
    "tp_bn_scale_isomorphic",
    "tp_fpgm",
)
"""What ``tp_best`` is chosen of."""


def _torch_pruning() -> Any:
    try:
        import torch_pruning
    except ImportError as error:
        raise SystemExit(f"methods tp_* need Torch-Pruning: pip install --no-deps torch-pruning=={VERSION}") from error
    return torch_pruning


def gradients_of(model: nn.Module, batches: Iterable[Any]) -> dict[str, Tensor]:
    """Gradients of the loss, added up over batches, by parameter."""
    network = copy.deepcopy(model).eval()
    network.zero_grad()
    for batch in batches:
        torch.autograd.backward(cross_entropy_loss(network, batch))
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


@dataclass(slots=True, kw_only=True)
class Ratios:
    """What ratios were seen to give, kept in a file: budgets of one network share them.

    Attributes:
        path: JSON file.
        seen: Rival -> ratio -> share of the dense value.
    """

    path: Path
    seen: dict[str, dict[str, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            self.seen = json.loads(self.path.read_text())

    def value(self, rival: str, ratio: float, find: Callable[[], float]) -> float:
        """The share at a ratio, found once."""
        known = self.seen.get(rival, {}).get(repr(ratio))
        return known if known is not None else self.put(rival, ratio, find())

    def put(self, rival: str, ratio: float, share: float) -> float:
        """Keep a share; returns it."""
        self.seen.setdefault(rival, {})[repr(ratio)] = share
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(self.seen, indent=1))
        return share


def rival_structure(
    name: str, dense: Dense, graph: ModelGraph, budget: Budget, target: Target, *, gradients: Mapping[str, Tensor], ratios: Ratios
) -> Structure:
    """Search the ratio that meets the budget.

    Raises:
        Unreachable: No ratio does, or the network cannot be pruned by it.
        SystemExit: Torch-Pruning is not installed.
    """
    made: dict[float, Structure] = {}
    timed: dict[tuple[int, ...], float] = {}  # several ratios give the same widths

    def at(ratio: float) -> Structure:
        if ratio not in made:
            made[ratio] = _pruned(name, dense, graph, ratio, gradients)
        return made[ratio]

    def find(ratio: float, quick: bool) -> float:
        if not budget.on_latency:
            return float(counted(graph, at(ratio).selection)["macs"])
        widths = tuple(counted(graph, at(ratio).selection)["widths"].values())
        if widths not in timed or not quick:
            timed[widths] = float(measured(dense, at(ratio).network, target, quick=quick)["pruned"].ratio or 0.0)
        return timed[widths]

    resource = f"{name}, {'latency' if budget.on_latency else 'flops'}"
    for _ in range(_CONFIRMATIONS):
        found, tried = least_ratio(lambda ratio: ratios.value(resource, ratio, lambda: find(ratio, True)), budget.share)
        # The value that was searched by is a quick one: a closer one takes its place, and the search goes on from it if it is over.
        if ratios.put(resource, found, find(found, False)) <= budget.share * (1.0 + TOLERANCE):
            break
    result = at(found)
    result.found.update({"pruning_ratio": found, "ratios_tried": len(tried), "variant": name})
    return result


def least_ratio(share: Callable[[float], float], target: float) -> tuple[float, dict[float, float]]:
    """The least ratio of the grid that meets the target, refined from below until it lies within the tolerance.

    Args:
        share: Ratio -> share of the dense value.
        target: Share to meet; up to the tolerance above it counts as met.

    Returns:
        The ratio, and what was tried. Where widths leave no ratio within the tolerance it is the one nearest below.

    Raises:
        Unreachable: No ratio of the grid meets the target.
    """
    tried: dict[float, float] = {}
    over, met = 0.0, None
    for ratio in GRID:
        tried[ratio] = share(ratio)
        if tried[ratio] <= target * (1.0 + TOLERANCE):
            met = ratio
            break
        over = ratio
    if met is None:
        floor = min(tried.values())
        raise Unreachable(f"no ratio meets the budget: the lowest share of {len(tried)} ratios is {floor:.3f}", floor)
    for _ in range(_HALVINGS):
        if tried[met] >= target * (1.0 - TOLERANCE):
            break
        middle = (over + met) / 2
        tried[middle] = share(middle)
        if tried[middle] <= target * (1.0 + TOLERANCE):
            met = middle
        else:
            over = middle
    return met, tried


def _pruned(name: str, dense: Dense, graph: ModelGraph, ratio: float, gradients: Mapping[str, Tensor]) -> Structure:
    tp, rival = _torch_pruning(), RIVALS[name]
    network = copy.deepcopy(dense.model).eval()
    for key, parameter in network.named_parameters():
        parameter.grad = gradients[key].clone() if key in gradients else None
    with torch.no_grad():
        classes = network(dense.example).shape[-1]
    classifiers = [m for m in network.modules() if isinstance(m, nn.Linear) and m.out_features == classes]
    attentions: list[Any] = [m for m in network.modules() if all(hasattr(m, name) for name in ("heads", "query", "key", "value"))]
    importance = _IMPORTANCES[rival.importance](tp)
    heads = {part: m.heads for m in attentions for part in (m.query, m.key, m.value)}
    with _theirs():
        pruner = tp.pruner.BasePruner(
            network,
            dense.example,
            importance=importance,
            pruning_ratio=ratio,
            global_pruning=rival.scope != "local",
            isomorphic=rival.scope == "isomorphic",
            round_to=rival.round_to,
            ignored_layers=classifiers,
            num_heads=heads,
        )
    left = {module: np.arange(module.weight.shape[0]) for module in network.modules() if isinstance(module, (nn.Conv2d, nn.Linear))}
    groups = iter(pruner.step(interactive=True))
    while (group := _next_group(groups)) is not None:
        for dependency, indices in group:
            module = dependency.target.module
            if module in left and pruner.DG.is_out_channel_pruning_fn(dependency.handler):
                left[module] = np.delete(left[module], indices)
        with _theirs():
            group.prune()
    for m in attentions:  # sizes that their forward reads, which Torch-Pruning leaves to its user
        m.qk_size, m.v_size = m.query.out_features // m.heads, m.value.out_features // m.heads
    network.zero_grad(set_to_none=True)
    with _theirs(), torch.no_grad():
        network(dense.example)
    names = {module: path for path, module in network.named_modules()}
    selection = _selection(graph, {f"{names[module]}.weight": kept for module, kept in left.items()})
    # Queries and keys may differ: we keep the scale of their products, which a smaller head would change.
    scaled = tuple(f"{names[part]}." for m in attentions for part in (m.query, m.key))
    own, theirs = cut(dense, graph, selection).state_dict(), network.state_dict()
    other = [name for name, tensor in own.items() if not (torch.equal(tensor, theirs[name]) or name.startswith(scaled))]
    if other:
        raise Unreachable(f"the same channels cut by us give other tensors: {', '.join(other[:3])}")
    return Structure(network=network, selection=selection)


@contextmanager
def _theirs() -> Iterator[None]:
    """Around what Torch-Pruning does, and the network that it leaves: it has no errors of its own, so any usual one is its refusal."""
    try:
        yield
    except (RuntimeError, ValueError, IndexError, AssertionError, AttributeError, KeyError) as error:
        reason = f"{type(error).__name__}: {str(error)[:150]}"
        raise Unreachable(f"Torch-Pruning {version('torch-pruning')} cannot prune this network: {reason}") from error


def _next_group(groups: Iterator[Any]) -> Any:
    with _theirs():
        return next(groups, None)


def _selection(graph: ModelGraph, left: Mapping[str, npt.NDArray[np.int64]]) -> Selection:
    """Output channels that stay by weight -> units that stay by group."""
    kept = {}
    for name, group in graph.groups.items():
        makers = [m for m in group.members if m.role is Role.PRODUCER and m.dim == 0 and m.tensor in left]
        if not makers:
            raise Unreachable(f"group {name} has no layer that Torch-Pruning prunes")
        kept[name] = np.unique(makers[0].units[np.isin(makers[0].positions, left[makers[0].tensor])])
    return Selection(kept={name: units for name, units in kept.items() if units.size < graph.groups[name].units})
