"""Predicting kernels and networks that were never measured (nn-Meter's role), as sums of their kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latprune.errors import TableError
from latprune.graph.types import Kernel
from latprune.latency.features import LAYERS, family_of, kernel_features, kernel_weights, step_of
from latprune.latency.measuring.signature import kernel_signature
from latprune.latency.predicting.family_model import FamilyModel
from latprune.latency.samples import ContextInfo

__all__ = ["KernelPrediction", "KernelPredictor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelPrediction:
    """A predicted latency with its 95 % interval, milliseconds."""

    ms: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KernelPredictor:
    """Regression models of one set of conditions, one per family of kernels (``FamilyModel``).

    Attributes:
        context: Conditions that it was trained under.
        families: Kernel family -> its model.
        costing: Kinds and operations of kernels (``features.step_of``) that the engine spent time on of their own, as its profiles had it.
            Others it fused into what ran before, except layers with weights.
        constant_ms: Latency of a network beside its kernels.
        overhead_ms: Latency per kernel beside the kernel itself.
        spread: 95th percentile of the relative error on whole networks seen in training.
        agreement: What the errors of a network's kernels are together, as a share of their own intervals.
        typical_weights: Weights of the median network that it was trained on: what a kernel is taken to have around it.
        samples: Kernel samples it was trained on.
    """

    context: ContextInfo
    families: Mapping[str, FamilyModel]
    costing: frozenset[str]
    constant_ms: float
    overhead_ms: float
    spread: float
    agreement: float
    typical_weights: float
    samples: int

    def kernel(self, signature: str, sizes: Sequence[int], weights_around: float | None = None) -> KernelPrediction:
        """Predict one kernel at ``sizes``.

        Args:
            signature: The kernel's signature.
            sizes: Its axis sizes.
            weights_around: Weights of the network that it is in (``features.network_weights``); by default those of a usual one.

        Raises:
            TableError: The kernel's family was not in the training data.
        """
        return self.kernels([(signature, sizes)], weights_around)[0]

    def kernels(self, kernels: Sequence[tuple[str, Sequence[int]]], weights_around: float | None = None) -> list[KernelPrediction]:
        """Predict kernels, each a signature and its sizes, of one network; see ``kernel``."""
        around = self.typical_weights if weights_around is None else weights_around
        found: list[KernelPrediction | None] = [None] * len(kernels)
        for family, members in self._by_family([(signature, signature, sizes) for signature, sizes in kernels]).items():
            features = np.stack([kernel_features(*kernels[index], around) for index in members])
            centre, error = self.families[family].logarithm(features), self.families[family].error(features)
            for index, middle, half in zip(members, centre.tolist(), error.tolist(), strict=True):
                found[index] = KernelPrediction(
                    ms=float(np.exp(middle)), low=float(np.exp(middle - half)), high=float(np.exp(middle + half))
                )
        return [prediction for prediction in found if prediction is not None]

    def _by_family(self, kernels: Sequence[tuple[str, str, Sequence[int]]]) -> dict[str, list[int]]:
        """Family -> which of the (name, signature, sizes) are of it; raises TableError for one that was not in the training data."""
        found: dict[str, list[int]] = defaultdict(list)
        for index, (name, signature, _) in enumerate(kernels):
            family = family_of(signature)
            if family not in self.families:
                raise TableError(
                    f"kernel {name!r}: no kernel of family {family!r} was measured under {self.context.target}; "
                    f"known: {', '.join(self.families)}"
                )
            found[family].append(index)
        return found

    def network(self, kernels: Iterable[Kernel], widths: Mapping[str, int], removed_blocks: Iterable[str] = ()) -> KernelPrediction:
        """Predict a network at ``widths`` without ``removed_blocks``, from its traced kernels alone.

        Raises TableError where a layer's family was not in the training data: it is not counted as free for want of samples.
        """
        removed = set(removed_blocks)
        named = [(kernel, kernel_signature(kernel)) for kernel in kernels if removed.isdisjoint(kernel.blocks)]
        present = [
            (kernel.name, signature, [axis.size(widths, removed) for axis in kernel.axes])
            for kernel, signature in named
            if kernel.kind in LAYERS or step_of(signature) in self.costing
        ]
        around = sum(kernel_weights(signature, sizes) for _, signature, sizes in present)
        total, doubt = self.constant_ms, 0.0
        for family, members in self._by_family(present).items():
            features = np.stack([kernel_features(*present[index][1:], around) for index in members])
            parts = np.exp(self.families[family].logarithm(features))
            total += float(parts.sum()) + self.overhead_ms * len(features)
            doubt += float((parts * self.families[family].error(features)).sum())
        # The kernels of a network that is new are partly wrong in the same direction: trials told how far.
        error = float(np.expm1(max(np.log1p(self.spread), self.agreement * doubt / max(total, 1e-9))))
        return KernelPrediction(ms=total, low=total / (1 + error), high=total * (1 + error))

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file of plain arrays with a JSON header."""
        from latprune.latency.predicting.predictor_file import write_predictor

        write_predictor(self, path)

    @property
    def digest(self) -> str:
        """What identifies it: SHA-256, in hexadecimal, of what its file holds."""
        from latprune.latency.predicting.predictor_file import predictor_digest

        return predictor_digest(self)

    @classmethod
    def load(cls, path: str | Path) -> KernelPredictor:
        """Read a file that ``save`` wrote; raises FileFormatError where it is something else or inconsistent."""
        from latprune.latency.predicting.predictor_file import read_predictor

        return read_predictor(path)
