"""The library's own methods: each gives a structure under a budget."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from measuring import Budget
from networks import Dense
from structure import Structure, Unreachable, cut

import latprune
from latprune.errors import BudgetInfeasibleError, LatpruneError, SolverNotApplicableError
from latprune.graph import ModelGraph, Selection
from latprune.importance import TaylorConfig
from latprune.latency import Store, Target
from latprune.methods import HALP, MDP, SMCP, SPLAMP, Lamp, Method, SoftMasks, Uniform
from latprune.pruning import driver_of, training_threads
from latprune.recovery import reconstruction_ranking, reselected
from latprune.train import Batches, Recipe, finetune
from latprune.train.batches import FirstBatches

__all__ = ["OURS", "Own", "own_of", "own_structure", "trains"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """One of our methods.

    Attributes:
        method: Builds it.
        units: Which channels of a width stay: the best by the method's ``score``, or by ``reconstruction``.
    """

    method: Callable[[], Method]
    units: str = "score"

    @property
    def trains(self) -> bool:
        """Whether it trains under masks before the cut; nothing is recovered then."""
        return isinstance(self.method().schedule, SoftMasks)


OURS: dict[str, Own] = {
    "best": Own(method=MDP, units="reconstruction"),
    "best_taylor": Own(method=lambda: MDP(score=TaylorConfig()), units="reconstruction"),
    "mdp": Own(method=MDP),
    "sp_lamp": Own(method=SPLAMP),
    "halp": Own(method=HALP),
    "smcp": Own(method=SMCP),
    "lamp": Own(method=Lamp),
    "uniform": Own(method=Uniform),
}
"""``lamp`` is SP-LAMP's ablation "only structured LAMP": its scores under one threshold, without latency in the choice."""


def own_of(method: str) -> Own | None:
    """Ours of this name, ``best`` of ``best=tp_taylor`` too; None of any other."""
    return OURS.get(method.partition("=")[0])


def trains(method: str) -> bool:
    """Whether a method's network comes of a training: of its own, or of that whose latency it is to have."""
    return any(OURS[name].trains for name in method.removesuffix("+recover").split("=") if name in OURS)


def own_structure(
    own: Own,
    dense: Dense,
    graph: ModelGraph,
    budget: Budget,
    target: Target,
    *,
    train: Batches,
    plain: Batches,
    masked: tuple[Batches, Recipe],
    store: Store,
    seed: int,
    threads: int,
) -> Structure:
    """Prune a copy of the dense network.

    Args:
        own: The method.
        dense: The dense network.
        graph: Its trace.
        budget: The budget.
        target: Engine and conditions.
        train: Labelled batches to score with, 16 of them.
        plain: Batches of images without augmentation, to choose channels by reconstruction.
        masked: Batches and recipe of a training under masks, for a method that has one.
        store: Where measurements are kept.
        seed: Seed of everything random.
        threads: Threads of a training.

    Raises:
        Unreachable: The method cannot meet the budget, or something broke on the way, which is not final.
    """
    start = time.perf_counter()
    network = copy.deepcopy(dense.model)
    try:
        pruner = latprune.Pruner(
            network, dense.example, budget=budget.asked, target=target, method=own.method(), store=store, seed=seed, time_limit=120.0
        )
        try:
            if own.trains:
                batches, recipe = masked
                teacher = dense.model if recipe.distillation is not None else None
                with training_threads(threads):
                    finetune(
                        pruner.model, batches, recipe, teacher=teacher, driver=lambda optimizer, steps: driver_of(pruner, optimizer, steps)
                    )
            while not pruner.done:
                pruner.step(train, batches=16)
            selection, stages = pruner.selection, pruner.stage
        finally:
            pruner.close()
    except BudgetInfeasibleError as error:
        raise Unreachable(str(error), _floor_share(error, budget)) from error
    except LatpruneError as error:
        raise Unreachable(str(error), final=isinstance(error, SolverNotApplicableError)) from error
    if own.units == "reconstruction":
        selection = _reselected(dense, graph, selection, plain)
        network = cut(dense, graph, selection)
    found: dict[str, Any] = {"stages": stages, "structure_seconds": time.perf_counter() - start}
    return Structure(network=network.eval(), selection=selection, found=found)


def _reselected(dense: Dense, graph: ModelGraph, selection: Selection, plain: Batches) -> Selection:
    images = [batch for batch, _ in FirstBatches(plain, 4)]
    return reselected(graph, selection, reconstruction_ranking(dense.model, graph, images, images=512))


def _floor_share(error: BudgetInfeasibleError, budget: Budget) -> float | None:
    """The lowest value as a share of the dense one."""
    return next((float(error.floor[name] / limit) * budget.share for name, limit in error.limit.items() if name in error.floor), None)
