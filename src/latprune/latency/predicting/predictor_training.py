"""Training the predictor: fit each family of kernels, try it on networks that it was kept from, and calibrate the whole end to end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from latprune.errors import TableError
from latprune.latency.features import FEATURES, network_weights, step_of
from latprune.latency.predicting.family_model import FamilyModel, Trial, fit_family, with_errors
from latprune.latency.predicting.kernel_rows import SWEEP_PARTS, TrainingNetwork, family_rows, training_networks
from latprune.latency.predicting.predictor import KernelPredictor
from latprune.latency.samples import SWEEP, ContextInfo, NetworkSample
from latprune.latency.tabulating.surface import non_negative_least_squares

__all__ = ["train_predictor"]

FloatArray = npt.NDArray[np.float64]

_FEWEST = 20
_MOST_OF_UNIT = 32
_TRIAL_ROWS, _TRIAL_TREES = 2000, 30


def train_predictor(context: ContextInfo, networks: Sequence[NetworkSample], *, seed: int = 0) -> KernelPredictor:
    """Train on measured networks of one set of conditions.

    Intervals come from trials: each structure in turn, and each quarter of a sweep's random networks, is predicted by models that were
    trained on all the others. One structure alone has no others: its networks tell how far the models carry within it, and the intervals,
    even those of its own kernels, are as wide as where nothing was tried (half-widths of the logarithm of 0.7, a factor of two either way).

    Args:
        context: The conditions of all of ``networks``.
        networks: Measured networks, of any structures, and random networks of sweeps.
        seed: Seed of the forests.

    Raises:
        TableError: There are too few samples, or none of a network that was timed end to end.
        MissingExtraError: scikit-learn is not installed.
    """
    known = training_networks(networks)
    rows = family_rows(known, seed=seed)
    count = sum(len(network.target) for network in known)
    if count < _FEWEST:
        raise TableError(f"a predictor needs at least {_FEWEST} kernel samples of {context.target}, but there are {count}; measure first")
    if not any(network.ms is not None and network.trusted for network in known):
        raise TableError(
            f"a predictor needs networks of {context.target} with an end-to-end latency that their profiles agree with, but none of the "
            f"{len(known)} has one, and kernels do not tell what a network takes beside them; measure networks end to end"
        )
    alone = len({network.unit for network in known}) == 1
    trials, wholes = _trials(known, seed)
    models = {
        family: with_errors(fit_family(part, seed=seed), part, trials.get(family, []), alone=alone, seed=seed)
        for family, part in rows.items()
    }
    constant, overhead, spread = _calibrate(known, models)
    return KernelPredictor(
        context=context,
        families=models,
        costing=frozenset(step_of(signature) for network in known for signature in network.signatures),
        constant_ms=constant,
        overhead_ms=overhead,
        spread=spread,
        # Networks of one structure do not show whether the errors of the kernels of another one cancel: they are taken not to.
        agreement=1.0 if alone else _agreement(wholes, models, constant, overhead),
        typical_weights=float(np.median([network_weights(network.kernels) for network in networks if network.kernels])),
        samples=count,
    )


@dataclass(frozen=True, slots=True)
class _Whole:
    """A network, and what models that were kept from it made of its kernels, together."""

    network: TrainingNetwork
    kernels_ms: float


def _trials(networks: Sequence[TrainingNetwork], seed: int) -> tuple[dict[str, list[Trial]], list[_Whole]]:
    """What models say of kernels, per family, and of whole networks that they were kept from."""
    random = np.random.default_rng(seed)
    units = sorted({network.unit for network in networks})
    if len(units) > 1:
        parts = np.asarray([units.index(network.unit) for network in networks])
    else:
        # One structure alone: its networks are all that there is to try the models on, and vouch for none of another structure.
        parts = random.permutation(len(networks)) % 4
    trials: dict[str, list[Trial]] = defaultdict(list)
    wholes = []
    for part in np.unique(parts):
        own = [network for network, place in zip(networks, parts, strict=True) if place == part and network.trusted]
        rest = [network for network, place in zip(networks, parts, strict=True) if place != part]
        own = _thinned(own)
        # All of a sweep counts as one structure: models like those that people have are what will be asked about.
        share = 1.0 / SWEEP_PARTS if own and own[0].unit.startswith(SWEEP) else 1.0
        models = {
            family: fit_family(rows, trees=_TRIAL_TREES, seed=seed)
            for family, rows in family_rows(rest, seed=seed, most=_TRIAL_ROWS).items()
        }
        for family, model in models.items():
            features = np.concatenate([network.rows_of(family)[0] for network in own] or [np.zeros((0, len(FEATURES)))])
            if len(features):
                target = np.concatenate([network.rows_of(family)[1] for network in own])
                trunk, correction, distance = model.parts(features)
                trials[family].append(
                    Trial(share=share, features=features, target=target, trunk=trunk, correction=correction, distance=distance)
                )
        wholes += [_Whole(network, _sum(network, models)) for network in own if network.ms and set(network.families) <= set(models)]
    return trials, wholes


def _thinned(networks: Sequence[TrainingNetwork]) -> list[TrainingNetwork]:
    """At most 32 networks of each unit, from all over what was measured of it; those of one structure are alike."""
    units: dict[str, list[TrainingNetwork]] = defaultdict(list)
    for network in networks:
        units[network.unit].append(network)
    return [network for group in units.values() for network in group[:: -(-len(group) // _MOST_OF_UNIT)]]


def _sum(network: TrainingNetwork, models: Mapping[str, FamilyModel]) -> float:
    return sum(float(np.exp(models[family].logarithm(network.rows_of(family)[0])).sum()) for family in set(network.families))


def _agreement(wholes: Sequence[_Whole], models: Mapping[str, FamilyModel], constant: float, overhead: float) -> float:
    """What a network's kernels are off together, as a share of their own intervals: 0 if errors cancelled, 1 if all went the same way."""
    shares = []
    for whole in wholes:
        assert whole.network.ms is not None
        total = whole.kernels_ms + constant + overhead * len(whole.network.target)
        doubt = 0.0
        for family in set(whole.network.families):
            features, target = whole.network.rows_of(family)
            doubt += float((np.exp(target) * models[family].error(features)).sum())
        shares.append(abs(float(np.log(total / whole.network.ms))) * whole.network.ms / max(doubt, 1e-9))
    return float(np.clip(np.quantile(shares, 0.95), 0.1, 1.0)) if shares else 1.0


def _calibrate(networks: Sequence[TrainingNetwork], models: Mapping[str, FamilyModel]) -> tuple[float, float, float]:
    """Constant, overhead per kernel, and 95th percentile of the relative error of whole networks."""
    timed = _thinned([network for network in networks if network.ms is not None and network.trusted])
    goal = np.asarray([network.ms for network in timed], dtype=np.float64)
    kernels = np.asarray([float(len(network.target)) for network in timed])
    parts = np.asarray([_sum(network, models) for network in timed])
    # Not as many networks as there are, but as many units: a structure that was measured a hundred times has one constant.
    counts: dict[str, int] = defaultdict(int)
    for network in timed:
        counts[network.unit] += 1
    weights = np.sqrt([1.0 / np.sqrt(counts[network.unit]) for network in timed]) / goal
    columns = np.stack([np.ones(len(goal)), kernels], axis=1)
    solution = np.zeros(2)
    robust = np.ones(len(goal))
    for _ in range(3):
        solution = non_negative_least_squares(columns * (weights * robust)[:, None], (goal - parts) * weights * robust)
        error = np.abs((parts + columns @ solution) / goal - 1.0)
        robust = np.sqrt(np.minimum(1.0, 2.0 * max(float(np.median(error)), 1e-3) / np.maximum(error, 1e-9)))
    return float(solution[0]), float(solution[1]), float(np.quantile(error, 0.95))
