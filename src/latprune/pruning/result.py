"""The result of a run: the pruned module, what is known about it, and how it saves, exports and reports itself."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from latprune.errors import CaptureError, InvalidArgumentError, RebuiltWarning
from latprune.export import OnnxExport, ResultRecord, load_result, save_result
from latprune.export.checkpoint import rebuilt_tensors, tensor_shapes
from latprune.export.verdict import Verdict
from latprune.problem import Problem, Solution
from latprune.states import stored_shapes

__all__ = ["Result"]


@dataclass(slots=True, repr=False)
class Result:
    """What :func:`latprune.prune` returns.

    Attributes:
        model: The pruned module: the user's own, changed in place, or the captured program (``form="program"``).
        record: Everything that was found out, as plain data (``result.json``).
        example_inputs: The inputs that it was traced and measured with.
        led_to: Names and shapes of the state that the record's edits lead to, by which a network that was rebuilt since is told; None
            where they are not known, and names alone tell it.

    Example:
        >>> result = latprune.prune(model, x, budget="50%")  # doctest: +SKIP
        >>> result.latency_ms, result.dense_latency_ms  # doctest: +SKIP
        (3.91, 7.94)
    """

    model: nn.Module
    record: ResultRecord
    example_inputs: Any
    led_to: Mapping[str, tuple[int, ...]] | None = None

    @property
    def latency_ms(self) -> float | None:
        """Median latency of the pruned network in the final, fresh measurement; None where none was made."""
        return self.record.pruned.latency.ms if self.record.pruned.latency is not None else None

    @property
    def dense_latency_ms(self) -> float | None:
        """Median latency of the dense network, measured in turns with the pruned one."""
        return self.record.dense.latency.ms if self.record.dense.latency is not None else None

    @property
    def latency_ratio(self) -> float | None:
        """Pruned over dense latency, the median over rounds that measured both."""
        return self.record.pruned.latency.ratio if self.record.pruned.latency is not None else None

    @property
    def accuracy(self) -> float | None:
        """Accuracy of the delivered network, if an evaluation was given."""
        return self.record.pruned.accuracy

    @property
    def dense_accuracy(self) -> float | None:
        """Accuracy of the dense network, if an evaluation was given."""
        return self.record.dense.accuracy

    @property
    def verdict(self) -> Verdict | None:
        """Whether the budget is met: ``under``, ``close`` (met, within what two measurements differ by) or ``over``; None where unknown."""
        return self.record.verdict

    @property
    def problem(self) -> Problem | None:
        """The pruning problem that was solved last."""
        return Problem.from_json(json.dumps(self.record.problem)) if self.record.problem is not None else None

    @property
    def solution(self) -> Solution | None:
        """The solver's answer to it."""
        return Solution.from_json(json.dumps(self.record.solution)) if self.record.solution is not None else None

    def save(self, path: str | Path) -> None:
        """Save as safetensors and JSON, a folder or a ``.zip``; :func:`latprune.restore` brings the network back.

        A network that was rebuilt since it was pruned (branches fused by a method of its class, a layer replaced by one of another size or
        kind) has no edits that lead to it: it is saved as a captured program, which needs no class, with a
        :class:`~latprune.errors.RebuiltWarning`. One that was cast (``half()``) comes back in the types that it has.

        Raises:
            InvalidArgumentError: The network was rebuilt, and cannot be captured either; or ``path`` lies at or inside of a file.
        """
        saved = self._restorable()
        self.record = save_result(path, saved, self.record)
        if saved is self.model and self.led_to is not None:  # norms that were taken off are none of the record's edits any more
            self.led_to = tensor_shapes(self.model)

    def _restorable(self) -> nn.Module:
        """What is saved: the network, or its program where no edits lead to it."""
        further = rebuilt_tensors(self.model, self.record, self.led_to)
        if not further:
            return self.model
        from latprune.program import capture

        try:
            program = capture(self.model, self.example_inputs)
        except CaptureError as error:
            raise InvalidArgumentError(
                f"the model was rebuilt since it was pruned ({further[0]}), and cannot be saved as a captured program either "
                f"({error}): save the result before it is rebuilt, and rebuild the restored network"
            ) from error
        warnings.warn(
            f"the model was rebuilt since it was pruned ({further[0]}): it is saved as a captured program, which latprune.restore "
            "brings back without the model's class; save before it is rebuilt to get the class back",
            RebuiltWarning,
            stacklevel=3,
        )
        return program

    @classmethod
    def load(cls, path: str | Path, *, model: nn.Module, example_inputs: Any) -> Result:
        """Read a saved record back for a network that is already in memory (after ``latprune verify`` added to it, say)."""
        saved = load_result(path)
        return cls(model=model, record=saved.record, example_inputs=example_inputs, led_to=stored_shapes(saved.tensors))

    def export_onnx(self, path: str | Path, *, dynamic_batch: bool = False, dynamic_size: bool = False) -> OnnxExport:
        """Export the pruned network to ONNX; the file is checked against the module in the installed runtimes before this returns.

        Args:
            path: File to write.
            dynamic_batch: Leave the batch size open.
            dynamic_size: Leave height and width of the images among the inputs open.
        """
        from latprune.export import export_onnx

        return export_onnx(self.model, self.example_inputs, path, dynamic_batch=dynamic_batch, dynamic_size=dynamic_size)

    def report(self, path: str | Path) -> None:
        """Write a self-contained HTML page.

        Raises:
            InvalidArgumentError: ``path`` ends in something else than ``.html``.
        """
        from latprune.report import write_html

        if Path(path).suffix.lower() not in (".html", ".htm"):
            raise InvalidArgumentError(f"path (={str(path)!r}) must end in .html: the report is a page")
        write_html(self.record, path)

    def _repr_html_(self) -> str:
        """The before/after table, for notebooks."""
        from latprune.report import result_html

        return result_html(self.record)

    def __repr__(self) -> str:
        """One line; ``print(result)`` shows the table."""
        record = self.record
        share = f", {record.budget_share:.1%} of the budget" if record.budget_share is not None else ""
        return f"Result({record.model.name}, {record.method.name}, budget {record.budget.text}{share})"

    def __str__(self) -> str:
        """The before/after table."""
        from latprune.report import summary_text

        return summary_text(self.record)
