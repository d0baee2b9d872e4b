"""Where the pruned network is compared with the dense one as a whole: at its outputs, or else at another place that both have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from latprune.errors import CaptureError, InvalidArgumentError
from latprune.importance.compared import Compared
from latprune.recovery.batches import Piece
from latprune.recovery.contract import Situation
from latprune.recovery.output_error import Pair, output_error, outputs_of, relative_error
from latprune.recovery.pairing import Pairing
from latprune.recovery.sites import Site, find_sites
from latprune.recovery.stepper import Sequence_, Stepper, record_operations
from latprune.recovery.values import Values

__all__ = ["Watch"]


class Watch:
    """The error of the pruned network as it is, on images that decide.

    It is that of the outputs; where those cannot be compared (boxes in varying number, integers), that of what the sub-module gives that
    was pruned; where that cannot be either, that of the last layers' results. A place that turns out not to be comparable is left for the
    next one for good.

    Args:
        situation: The networks.
        pieces: The images that decide; none: nothing is compared.
        start: The pruned network's values before the strategy.

    Attributes:
        before: The error at :attr:`place` with the values of the start; None where nothing can be compared.
    """

    def __init__(self, situation: Situation, pieces: list[Piece], start: Values) -> None:
        self._situation, self._pieces, self._start = situation, pieces, start
        within = situation.within
        places: list[tuple[str, Callable[[], float | None]]] = [("outputs", self._of_outputs)]
        if within:
            places.append((f"output of '{within}'", self._of_part))
        places.append(("last layers", self._of_last_layers))
        self._places = places if pieces else []
        self.before = self.error()

    @property
    def place(self) -> str:
        """What is compared, in words; empty where nothing can be."""
        return self._places[0][0] if self._places else ""

    def error(self) -> float | None:
        """Squared error relative to the dense network's variation; None where nothing can be compared.

        Raises:
            InvalidArgumentError: The dense network's results are not finite; the batch is named.
        """
        found = self._present()
        while found is None and self._places:
            self._places.pop(0)
            now = Values(self._situation.pruned)
            self._start.put_back()
            try:
                self.before = self._present()
            finally:
                now.put_back()
            found = None if self.before is None else self._present()
        return found

    @torch.no_grad()
    def _present(self) -> float | None:
        return self._places[0][1]() if self._places else None

    def _of_outputs(self) -> float | None:
        inputs, places = [piece.inputs for piece in self._pieces], [piece.place for piece in self._pieces]
        return output_error(self._situation.pruned, self._situation.dense, inputs, places)

    def _of_part(self) -> float | None:
        pruned, dense, part = self._situation.pruned, self._situation.dense, Compared(within=self._situation.within)
        return relative_error(
            (outputs_of(part.of(pruned, piece.inputs)), outputs_of(part.of(dense, piece.inputs)), piece.place) for piece in self._pieces
        )

    def _of_last_layers(self) -> float | None:
        try:
            return relative_error(self._last_layers())
        except CaptureError:  # the course depends on the data before the last layers
            return None

    def _last_layers(self) -> Iterator[Pair]:
        situation, example = self._situation, self._pieces[0].inputs
        runs = [record_operations(net, example, situation.within) for net in (situation.dense, situation.pruned)]
        pairing = Pairing(situation.graph, situation.selection, runs[0], runs[1], situation.dense, situation.pruned)
        ends = [site.compared for site in _last(find_sites(runs[1], situation.pruned), runs[1]) if site.compared in pairing.dense_of]
        if not ends:
            return
        for piece in self._pieces:
            wanted = _reached(situation.dense, piece.inputs, situation.within, runs[0], [pairing.dense_of[at] for at in ends])
            given = _reached(situation.pruned, piece.inputs, situation.within, runs[1], ends)
            mine, theirs = [], []
            for at, a, b in zip(ends, given, wanted, strict=True):
                try:
                    theirs.append(pairing.target(pairing.dense_of[at], b, tuple(a.shape)))
                except InvalidArgumentError:  # its channels lie on several dimensions, in another order
                    continue
                mine.append(a)
            yield mine, theirs, piece.place


def _reached(model: nn.Module, inputs: Any, within: str, run: Sequence_, operations: list[int]) -> list[Tensor]:
    """First results of some operations on one batch."""
    stepper = Stepper(model, [inputs], within, run)
    for index in operations:
        stepper.pin(index)
    stepper.advance(0, max(operations) + 1)
    return [stepper.pinned(0, index) for index in operations]


def _last(sites: list[Site], run: Sequence_) -> list[Site]:
    """Layers whose results reach no other layer."""
    contractions = [site for site in sites if site.weight is not None]
    indices = {site.index for site in contractions}
    found = []
    for site in contractions:
        todo, seen = [site.index], set()
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            results = [key for key in (*run.operations[at].results, *run.operations[at].writes) if key is not None]
            todo += [j for key in results for j in run.readers.get(key, ()) if j > at]
        if not (seen - {site.index}) & indices:
            found.append(site)
    return found
