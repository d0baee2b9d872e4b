"""Is the pruned network equal to the masked one? Asked before any result is returned."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latprune.copying import copied
from latprune.errors import CaptureError, LatpruneError, SurgeryError
from latprune.graph.conditions import failing_module, folds_weights
from latprune.graph.containers import rebuilt
from latprune.graph.example_inputs import as_call, own_copy, random_inputs
from latprune.graph.tensors import tensors_in
from latprune.modes import preserved_modes
from latprune.surgery.masked import MaskedModel

__all__ = ["TOLERANCES", "EqualityReport", "check_equal", "compare", "doubled", "in_double"]

TOLERANCES: Mapping[torch.dtype, float] = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Largest relative error by the type that was computed in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualityReport:
    """How far the pruned network's outputs are from the masked network's.

    Attributes:
        max_abs: Largest absolute difference of any output value.
        max_rel: Largest difference of an output tensor relative to that tensor's largest magnitude.
        tolerance: Largest ``max_rel`` that counts as equal.
        dtype: What was computed in.
        outputs: Number of output tensors compared.
        problem: Why they cannot be compared (other shapes, NaN), empty where they could.
    """

    max_abs: float
    max_rel: float
    tolerance: float
    dtype: str
    outputs: int
    problem: str = ""

    @property
    def equal(self) -> bool:
        """Whether the two count as equal."""
        return not self.problem and self.max_rel <= self.tolerance

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        return f"largest difference {self.max_abs:.3g}, relative {self.max_rel:.3g} (allowed {self.tolerance:.3g}, {self.dtype})"


class _DenseFailsError(Exception):
    """The dense model itself does not run in the type, or on the values, that were tried."""


class _NoNumbersError(Exception):
    """The dense model's own outputs hold NaN, or nothing finite, on the values that were tried."""


_WIDE = {False: torch.float64, True: torch.complex128}


def doubled(model: nn.Module) -> nn.Module:
    """A copy of ``model`` in float64, complex parameters and buffers in complex128."""
    with warnings.catch_warnings():
        # The parameters of a copied TorchScript part are no leaves any more.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        wide = copied(model).double()
    if any(tensor.is_complex() for tensor in (*wide.parameters(), *wide.buffers())):
        wide._apply(lambda tensor: tensor.to(torch.complex128) if tensor.is_complex() else tensor)  # type: ignore[no-untyped-call]
    return wide


def in_double(value: Any) -> Any:
    """The same inputs with their floating-point tensors in float64, complex ones in complex128."""

    def wide(leaf: Any) -> Any:
        inexact = isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex())
        return leaf.to(_WIDE[leaf.is_complex()]) if inexact else leaf

    return rebuilt(value, wide)


def _kept(tensor: Tensor, mask: Tensor | None, shape: torch.Size) -> Tensor | None:
    """The kept coordinates of a masked output in the pruned output's shape; None where they do not fit it."""
    if mask is None:
        return tensor if tensor.shape == shape else None
    values = tensor[mask.to(tensor.device).expand(tensor.shape)]
    return values.reshape(shape) if values.numel() == shape.numel() else None


def compare(pruned: nn.Module, masked: MaskedModel, inputs: Any, *, tolerance: float | None = None) -> EqualityReport:
    """Run both once on the same inputs, in the type that they are in, and compare every output tensor in its kept coordinates.

    What is infinite (a class that is ruled out) must be so in both, with the same sign, and the rest is compared.

    Args:
        pruned: The pruned network; runs in evaluation mode, its mode is restored.
        masked: The masked dense network.
        inputs: Tensor, tuple of positional or mapping of keyword inputs.
        tolerance: Largest relative error; None takes the one of the outputs' type in :data:`TOLERANCES`.
    """
    try:
        return _compared(pruned, masked, inputs, tolerance)
    except _NoNumbersError as error:
        return EqualityReport(max_abs=0.0, max_rel=0.0, tolerance=0.0, dtype="", outputs=0, problem=str(error))


def _compared(pruned: nn.Module, masked: MaskedModel, inputs: Any, tolerance: float | None) -> EqualityReport:
    args, kwargs = as_call(inputs)
    try:
        run = masked.run(*own_copy((args, kwargs)))
    except LatpruneError:
        raise
    except Exception as error:
        raise _DenseFailsError(f"{type(error).__name__}: {error}") from error
    with preserved_modes(pruned), torch.no_grad():
        args, kwargs = own_copy((args, kwargs))
        got = tensors_in(pruned.eval()(*args, **kwargs))
    wanted, masks = tensors_in(run.output), run.masks
    floats = {tensor.dtype.to_real() for tensor in wanted if tensor.is_floating_point() or tensor.is_complex()} | run.types
    dtype = max(floats, key=lambda kind: TOLERANCES.get(kind, 0.0), default=torch.float32)
    allowed = TOLERANCES.get(dtype, 1e-4) if tolerance is None else tolerance
    name = str(dtype).removeprefix("torch.")
    largest, relative = 0.0, 0.0

    def report(problem: str) -> EqualityReport:
        return EqualityReport(max_abs=largest, max_rel=relative, tolerance=allowed, dtype=name, outputs=len(wanted), problem=problem)

    if len(got) != len(wanted):
        return report(f"the pruned network returns {len(got)} tensors, the masked one {len(wanted)}")
    if not wanted:
        return report("the network returns no tensor, so there is nothing to compare")
    for index, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
        expected = _kept(theirs, masks.get(id(theirs)), mine.shape)
        if expected is None:
            return report(f"output {index} has shape {tuple(mine.shape)}, the masked one {tuple(theirs.shape)}")
        if not (mine.is_floating_point() or mine.is_complex()):
            if not torch.equal(mine, expected):
                return report(f"output {index} ({mine.dtype}) differs")
            continue
        finite = torch.isfinite(expected)
        if bool(expected.isnan().any()) or not (bool(finite.any()) or not expected.numel()):
            raise _NoNumbersError(
                f"output {index} of the masked network holds NaN, or nothing finite; check the model with inputs of the kind it is made for"
            )
        if not torch.equal(mine.isfinite(), finite) or not torch.equal(mine[~finite], expected[~finite]):
            return report(f"output {index} of the pruned network holds NaN, or infinite values in other places than the masked one's")
        if mine.numel():
            wide = _WIDE[mine.is_complex()]
            mine, expected = mine[finite].to(wide), expected[finite].to(wide)
            difference = float((mine - expected).abs().max())
            largest = max(largest, difference)
            relative = max(relative, difference / max(float(expected.abs().max()), torch.finfo(theirs.dtype).tiny))
    return report("")


def check_equal(
    pruned: nn.Module,
    masked: MaskedModel,
    inputs: Any,
    *,
    trials: int = 2,
    seed: int = 0,
    tolerance: float | None = None,
    double: bool = True,
) -> EqualityReport:
    """Compare on the given inputs and on random ones; an error where they differ.

    Args:
        pruned: The pruned network.
        masked: The masked dense network (:func:`latprune.surgery.masked`).
        inputs: Example inputs as they were traced.
        trials: Runs: the first on ``inputs``, the others on random values of the same shapes.
        seed: Of the random values.
        tolerance: Largest relative error; None takes the one of the type that is computed in; where surgery multiplied weights to keep a
            scale (attention), or the model folds weights when its mode changes, that of the type which they were rounded to.
        double: Compute in float64 copies of both networks, which tells rounding from mistakes. Where the dense model itself does not run
            in float64 or takes another course there (parts that compute in a type of their own), the two are compared in the model's own
            type, by that type's tolerance; the report says which.

    Returns:
        The report of the worst trial.

    Raises:
        SurgeryError: The two differ, or the pruned network fails to run where the dense one runs.
        CaptureError: The dense model takes another course than when it was traced.
    """
    if not double:
        try:
            return _check(pruned, masked, inputs, trials, seed, tolerance)
        except _DenseFailsError as own:
            raise CaptureError(f"the dense model does not run on the inputs of the check: {own}") from own
    held = [TOLERANCES.get(parameter.dtype, 0.0) for parameter in pruned.parameters()]
    # The pruned network stores the multiplied weights in the model's type, and a model that is folded holds only the rounded sum: the exact
    # values are nowhere any more, so that float64 cannot tell their rounding from a mistake. Models held in float64 keep 1e-9 all the same.
    if tolerance is None and held and (masked.rescaled or folds_weights(masked.model)):
        tolerance = max(held)
    wide = masked.with_model(doubled(masked.model))
    try:
        return _check(doubled(pruned), wide, in_double(inputs), trials, seed, tolerance)
    except (CaptureError, _DenseFailsError) as error:
        # Some operators exist in one type only, and some modules compute in one whatever the model's type: then the run in the model's own
        # type decides, and where that diverges too the error stands.
        try:
            return _check(pruned, masked, inputs, trials, seed, tolerance)
        except _DenseFailsError as own:
            raise CaptureError(f"the dense model does not run on the inputs of the check: {own}") from own
        except CaptureError:
            if isinstance(error, CaptureError):
                raise error from None
            raise


def _at_fault(model: nn.Module, error: BaseException) -> str:
    """The innermost module whose own code the error passed through, and what to do; empty where it is none but PyTorch's."""
    found = failing_module(model, error, own=True)
    if not found:
        return ""
    kind = type(model.get_submodule(found)).__name__
    return (
        f" (in module '{found}', a {kind}, whose code holds sizes that could not be followed: name it in keep to leave it and what it "
        "reads whole)"
    )


def _check(pruned: nn.Module, masked: MaskedModel, inputs: Any, trials: int, seed: int, tolerance: float | None) -> EqualityReport:
    worst: EqualityReport | None = None
    for trial in range(max(trials, 1)):
        values = inputs if trial == 0 else random_inputs(inputs, seed + trial)
        try:
            report = _compared(pruned, masked, values, tolerance)
        except _NoNumbersError as error:
            if trial == 0:
                raise SurgeryError(f"the pruned network cannot be compared with the masked one: {error}") from None
            continue  # random values may lie where the model is not defined, and say nothing then
        except (CaptureError, _DenseFailsError):
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise SurgeryError(f"the pruned network does not run: {error}{_at_fault(pruned, error)}") from error
        if not report.equal:
            raise SurgeryError(f"the pruned network is not equal to the masked one: {report}")
        if worst is None or report.max_rel > worst.max_rel:
            worst = report
    assert worst is not None
    return worst
