"""What a measurement of divergence takes: widths, examples, priors, rivals and the measure."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from latprune.argument_rules import check_number, check_one_of, check_share, check_whole
from latprune.errors import InvalidArgumentError
from latprune.importance.core import GroupedModel, check_criterion, get_criterion
from latprune.importance.outputs import MEASURES
from latprune.importance.sp_lamp import SpLampConfig
from latprune.importance.taylor import TaylorConfig

__all__ = ["DivergenceConfig", "example_count"]

_WORK = 5e12
"""Multiply-adds that all measurements together may take where the number of examples is left open: some minutes of two cores."""
_FEWEST, _MOST = 32, 256
"""Examples at least, for the norms' statistics, and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DivergenceConfig:
    """Output divergence of each group's widths, measured; units are ranked by another criterion.

    Values may be plain ones, as a command line has them: a criterion by its name, and a list as text with commas.

    Attributes:
        rank: Criterion that orders the units of a group (it gets the same data and loss).
        removed: Shares of a group's width that are taken away and measured, rising, between 0 and 1.
        examples: Examples that each measurement runs, from the first batches. Norms use their statistics: some dozens at least. None: 32 to
            256, as many as all measurements together can run within 5e12 multiply-adds (of the model as it was traced).
        prior: How far a measured curve is drawn to SP-LAMP's, between 0 and 1 (on a logarithmic scale, all groups' on one common scale).
            A group's measured curve says what it costs alone; the prior, the share of the signal that survives, keeps the many groups that
            are cut together from being cut deeply where each alone is cheap. 0 takes the measured curves as they are.
        priors: Further priors to read the same measurement with: a pruner solves with each, measures the divergence of the whole networks
            that come out, and takes the least. None of them is right for every network, because single effects do not add up.
        narrowings: Factors on what narrower groups cost, beside what missing blocks cost, in further readings with ``prior``: many groups
            that are narrowed together cost more than the sum of what each costs alone, and a block costs what it costs.
        rivals: Other criteria whose networks are compared along. One whose loss the batches cannot feed (they have no labels, say) is left
            out, and the run says so; a loss of the caller's own that fails is an error.
        measure: ``kl``: mean Kullback-Leibler divergence of the class probabilities. ``error``: squared error of all outputs relative to
            their variance, for models that do not classify. ``auto``: the first where the outputs are class scores, else the second.
            Outputs whose shape follows from the images (boxes after a threshold) are left out; where no other is left, the results of the
            sub-module that is pruned (``within``) are compared, and without one the model is refused.
    """

    rank: object = field(default_factory=SpLampConfig)
    removed: tuple[float, ...] = (0.125, 0.25, 0.5, 0.75)
    examples: int | None = None
    prior: float = 0.5
    priors: tuple[float, ...] = (0.0, 0.25, 0.75, 1.0)
    narrowings: tuple[float, ...] = (2.0,)
    rivals: tuple[object, ...] = (SpLampConfig(), TaylorConfig())
    measure: str = "auto"

    def __post_init__(self) -> None:
        for name in ("removed", "priors", "narrowings"):
            object.__setattr__(self, name, _numbers(name, getattr(self, name)))
        object.__setattr__(self, "rank", _criterion("rank", self.rank))
        object.__setattr__(self, "rivals", tuple(_criterion("rivals", rival) for rival in _entries(self.rivals)))
        rising = all(a < b for a, b in pairwise(self.removed))
        if not self.removed or not rising or not 0 < self.removed[0] or not self.removed[-1] < 1:
            raise InvalidArgumentError(f"removed (={self.removed}) must be rising shares between 0 and 1, at least one")
        if self.examples is not None:
            check_whole("examples", self.examples, least=2, instead=", as norms need the statistics of a batch, or None")
        check_share("prior", self.prior)
        for prior in self.priors:
            check_share("priors", prior, instead=", each of them")
        for factor in self.narrowings:
            check_number("narrowings", factor, "be factors above 0", 0.0, above=True)
        check_one_of("measure", self.measure, MEASURES)


def _entries(value: object) -> tuple[object, ...]:
    """The entries of a list, of text with commas, or one value by itself."""
    if isinstance(value, str):
        return tuple(entry.strip() for entry in value.split(",") if entry.strip())
    return tuple(value) if isinstance(value, Iterable) else (value,)


def _numbers(name: str, value: object) -> tuple[float, ...]:
    try:
        return tuple(float(entry) for entry in _entries(value))  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise InvalidArgumentError(f"{name} (={value!r}) must be numbers, such as 0.25,0.5") from error


def _criterion(argument: str, value: object) -> object:
    if isinstance(value, str):
        return get_criterion(value)
    check_criterion(argument, value)
    return value


def example_count(graph: GroupedModel, config: DivergenceConfig) -> int:
    """Examples that each measurement runs: the configuration's own number, or what the work allows."""
    if config.examples is not None:
        return config.examples
    widths = {name: group.columns for name, group in graph.groups.items()}
    one = sum(kernel.macs * math.prod(axis.size(widths, frozenset()) for axis in kernel.axes) for kernel in graph.kernels.values())
    blocks = {block for kernel in graph.kernels.values() for block in kernel.blocks}
    runs = len(graph.groups) * len(config.removed) + len(blocks) + 1
    return int(min(max(_WORK / max(one * runs, 1.0), _FEWEST), _MOST))
