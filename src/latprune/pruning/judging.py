"""Which of several networks is nearest to the dense one as a whole: single effects do not add up, so networks themselves are compared."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import nn

from latprune.errors import InvalidArgumentError
from latprune.graph.types import Selection
from latprune.importance.reference import failed_reading
from latprune.pruning.state import selection_to_dict
from latprune.recovery import recover

if TYPE_CHECKING:
    from latprune.graph import ModelGraph
    from latprune.importance import Readings
    from latprune.importance.core import Scores
    from latprune.recovery.contract import Recovery

__all__ = ["NetworkJudge"]

_COMPARED_ON = (64, 512)
"""Examples to recover a network on that is only compared with others, at least and at most."""
_COMPARING = 5e11
"""Multiply-adds of all forward passes of such recoveries together, as far as the fewest examples allow: a minute or less."""
_COMPARED, _PASSES = 8, 2
"""Networks that the default's readings lead to, and networks that run in a recovery: the dense one and the cut one."""


class _NotRecoveredError(Exception):
    """The batches at hand are nothing that a network can be recovered from."""


@dataclass(slots=True, kw_only=True, eq=False)
class NetworkJudge:
    """Measures how far whole networks are from the dense one.

    Networks are compared as they are after recovery where one follows and nothing was cut yet: right after a deep cut all of them are
    wrecks, and which of those is nearest says little of what comes of them.

    Attributes:
        graph: The dense network's graph.
        dense_model: The dense network.
        network: Cuts a selection out of a copy of the dense network.
        strategy: Recovery after which networks are compared; None compares them as they are cut.
        seed: Seed of everything random.
        say: Takes a line of text.
    """

    graph: ModelGraph
    dense_model: nn.Module
    network: Callable[[Selection], nn.Module]
    strategy: Recovery | None
    seed: int
    say: Callable[[str], None]
    _by: Readings | None = None
    _recoverable: bool = True
    """Whether the batches of these readings can be recovered from, as far as it was tried."""
    _known: dict[str, Scores] = field(default_factory=dict)
    """Networks that were compared by the last readings: a step after an exploration meets some of them again."""

    def values(self, readings: Readings, selections: Mapping[str, Selection], since: Selection) -> dict[str, Scores]:
        """Name -> ``(parts,)`` divergence of the network that its selection leaves, all judged alike.

        Args:
            readings: What judges.
            selections: The networks, by name.
            since: What is left of the network so far.
        """
        if self._by is not readings:
            self._by, self._known, self._recoverable = readings, {}, True
        # What earlier stages cut was trained since, and a recovered network is cut of the dense one.
        if self.strategy is not None and not since.kept and not since.removed_blocks and self._recoverable:
            try:
                return {name: self._value(readings, selection, recovers=True) for name, selection in selections.items()}
            except _NotRecoveredError as error:
                self._recoverable = False
                self.say(f"networks are compared as they are cut, not as they are after recovery: {error}")
        return {name: self._value(readings, selection, recovers=False) for name, selection in selections.items()}

    def _value(self, readings: Readings, selection: Selection, *, recovers: bool) -> Scores:
        key = json.dumps([recovers, selection_to_dict(selection)])
        if key not in self._known:
            self._known[key] = readings.divergences(selection, self.recovered(readings, selection) if recovers else None)
        return self._known[key]

    def recovered(self, readings: Readings, selection: Selection) -> nn.Module:
        """The network that ``selection`` leaves, recovered on the readings' batches."""
        assert self.strategy is not None
        network = self.network(selection)
        try:
            recover(
                network,
                self.dense_model,
                readings.batches,
                graph=self.graph,
                selection=selection,
                strategy=self.strategy,
                images=min(readings.examples, self._compared_on()),
                seed=self.seed,
                progress=lambda text: None,  # its layers say nothing of the network that is delivered
            )
        except InvalidArgumentError as error:
            if failed_reading(readings.batches, error):
                raise
            raise _NotRecoveredError(str(error)) from error
        return network.eval()

    def _compared_on(self) -> int:
        """Examples to recover a network on that is only compared: fewer for a large network."""
        fewest, most = _COMPARED_ON
        each = _COMPARING / (_COMPARED * _PASSES * max(self.graph.macs(self.graph.dense_widths()), 1.0))
        return int(min(max(each, fewest), most))
