"""What recovery did, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from latprune.errors import FileFormatError

__all__ = ["LayerRecovery", "RecoveryReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRecovery:
    """One layer.

    Attributes:
        layer: Name of the layer.
        action: What was done (``refit``, ``shift``, ``map``, ...); empty where it was left alone.
        at: Where its result is compared: ``layer`` (after the norm that follows), ``join`` (after the sum of its residual branch) or
            ``logits`` (queries and keys, at their product; both have its errors). Of the batch norms' spread it is the ``class
            probabilities``, and the errors are Jensen-Shannon divergences. Of a strategy that changes all layers at once it is the
            place where the whole network is compared (``outputs``), and the errors are those with and without the layers that were
            decided together with it.
        fitted_before: Squared error of the result on the images that were fitted to, relative to the dense result's variation; None where
            it was not computed.
        fitted_after: The same after the change.
        held_out_before: On the images that were held out.
        held_out_after: The same after the change; where the layer keeps its weights, what the change would have given.
        reason: Why it was left alone; empty where it was changed.
        note: What else there is to say, such as why queries were fitted to their own values instead of through their product.
    """

    layer: str
    action: str = ""
    at: str = "layer"
    fitted_before: float | None = None
    fitted_after: float | None = None
    held_out_before: float | None = None
    held_out_after: float | None = None
    reason: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryReport:
    """What :func:`latprune.recovery.recover` returns.

    Attributes:
        strategy: Name of the strategy.
        images: Images that were fitted to.
        held_out: Images that decided whether a layer's change stands.
        seconds: Wall time.
        layers: The layers in the order in which they run.
        settings: Options of the strategy.
        output_before: Error of the network's outputs on the held-out images, relative to the dense outputs' variation; None where the
            outputs could not be compared.
        output_after: The same after recovery.
        compared: Where these errors were measured: ``outputs``, or another place where outputs cannot be compared; empty for none.
    """

    strategy: str
    images: int
    held_out: int
    seconds: float
    layers: tuple[LayerRecovery, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    output_before: float | None = None
    output_after: float | None = None
    compared: str = "outputs"

    @property
    def changed(self) -> int:
        """Number of layers that were changed."""
        return sum(1 for layer in self.layers if layer.action)

    @property
    def left(self) -> tuple[LayerRecovery, ...]:
        """Layers that were left alone, with the reason."""
        return tuple(layer for layer in self.layers if not layer.action)

    @property
    def error_left(self) -> float | None:
        """Share of the outputs' error that recovery left, a ratio of root mean squares; None where they were not compared."""
        if self.output_before is None or self.output_after is None:
            return None
        return math.sqrt(self.output_after / self.output_before) if self.output_before > 0 else 1.0

    def to_dict(self) -> dict[str, Any]:
        """As plain objects, for JSON."""
        return {
            "format": "latprune/recovery",
            "version": 1,
            "strategy": self.strategy,
            "images": self.images,
            "held_out": self.held_out,
            "seconds": self.seconds,
            "settings": dict(self.settings),
            "output_before": self.output_before,
            "output_after": self.output_after,
            "compared": self.compared,
            "layers": [{name: getattr(layer, name) for name in LayerRecovery.__dataclass_fields__} for layer in self.layers],
        }

    @classmethod
    def from_dict(cls, data: Any) -> RecoveryReport:
        """Read what :meth:`to_dict` wrote.

        Raises:
            FileFormatError: The data does not follow the format; the error names its path.
        """
        try:
            read = _Report.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            raise FileFormatError(first["msg"], path="recovery." + ".".join(str(p) for p in first["loc"])) from error
        if read.format != "latprune/recovery" or read.version != 1:
            raise FileFormatError(f"format {read.format!r} version {read.version} is not known here", path="recovery.format")
        values = read.model_dump(exclude={"format", "version", "layers"})
        return cls(**values, layers=tuple(LayerRecovery(**layer.model_dump()) for layer in read.layers))

    def __str__(self) -> str:
        text = f"{self.strategy}: {self.changed} of {len(self.layers)} layers changed, {self.images} images, {self.seconds:.1f} s"
        if self.output_before is not None and self.output_after is not None:
            where = "output" if self.compared == "outputs" else f"{self.compared}:"
            text += f"; {where} error on {self.held_out} held-out images {self.output_before:.3g} -> {self.output_after:.3g}"
        return text


class _Layer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    layer: str
    action: str
    at: str
    fitted_before: float | None
    fitted_after: float | None
    held_out_before: float | None
    held_out_after: float | None
    reason: str
    note: str = ""


class _Report(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: str
    version: int
    strategy: str
    images: int
    held_out: int
    seconds: float
    settings: dict[str, Any]
    output_before: float | None
    output_after: float | None
    compared: str = "outputs"
    layers: list[_Layer]
