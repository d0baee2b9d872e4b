"""Walking a recorded run backwards to what makes a value 0."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from torch import nn

from latprune.graph.types import Call
from latprune.surgery.mask_operations import (
    ATTENTION,
    BATCH_NORMS,
    CONVOLUTIONS,
    NORMS,
    PRODUCTS,
    ZERO_STAYS,
    bounds_hold_zero,
    input_dim,
    name_of,
    place_of,
)

__all__ = ["RefusedError", "Walk", "dynamic_calls", "tensor_names"]

_LONGEST = 200
"""Operations in a row that a walk follows backwards."""


class RefusedError(Exception):
    """Why there is no zero; those who look for one catch it."""


def tensor_names(model: nn.Module) -> set[str]:
    """Names of parameters and buffers, tied ones under each of their names."""
    return {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))}


def dynamic_calls(calls: tuple[Call, ...]) -> list[bool]:
    """Which calls compute from the inputs."""
    found: list[bool] = []
    for call in calls:
        found.append(any(s == -2 or (s >= 0 and found[s]) for s in call.sources))
    return found


@dataclass(slots=True, kw_only=True, eq=False)
class Walk:
    """From an operand backwards to the tensors of the model that make it 0.

    Attributes:
        calls: The recorded run.
        dynamic: Which of the calls compute from the inputs.
        carries: ``(call, argument)``: whether the operand holds places that are to be 0.
        along: ``(call, argument, but)``: whether it holds them along another dimension than ``but``.
        enters: Whether the walk may go through a call.
        leaf: Checks a parameter or buffer; raises RefusedError where it must not be changed.
        known: What was found so far: by call the tensors, or why there are none.
    """

    calls: tuple[Call, ...]
    dynamic: list[bool]
    carries: Callable[[Call, int], bool]
    along: Callable[[Call, int, int], bool]
    enters: Callable[[Call], bool]
    leaf: Callable[[str], None]
    known: dict[int, frozenset[str] | str] = field(default_factory=dict)

    def zero(self, call: Call, argument: int, depth: int = 0) -> frozenset[str]:
        """Parameters that make an operand 0.

        Raises:
            RefusedError: There are none.
        """
        source = call.sources[argument]
        if source == -1:
            name = call.names[argument]
            if name is None:
                raise RefusedError(f"{place_of(call)} reads a constant")
            self.leaf(name)
            return frozenset([name])
        if source < 0:
            raise RefusedError(f"{place_of(call)} reads the network's input")
        maker = self.calls[source]
        if depth > _LONGEST:
            raise RefusedError(f"what {place_of(call)} reads is made by more than {_LONGEST} operations in a row")
        if source not in self.known:
            try:
                if not self.enters(maker):
                    raise RefusedError(f"{place_of(call)} reads what is made outside of the branch")
                self.known[source] = self._made_zero(maker, depth + 1)
            except RefusedError as error:
                self.known[source] = str(error)
        found = self.known[source]
        if isinstance(found, str):
            raise RefusedError(found)
        return found

    def one_of(self, call: Call, arguments: Collection[int], depth: int = 0) -> frozenset[str]:
        """The first operand that can be made 0, weights before activations."""
        reason = f"no operand of {place_of(call)} carries the channels"
        for argument in sorted(arguments, key=lambda k: (call.sources[k] == -2 or self.is_dynamic(call, k), k)):
            try:
                return self.zero(call, argument, depth)
            except RefusedError as error:
                reason = str(error)
        raise RefusedError(reason)

    def is_dynamic(self, call: Call, argument: int) -> bool:
        """Whether an operand depends on the inputs."""
        source = call.sources[argument]
        return source == -2 or (source >= 0 and self.dynamic[source])

    def _all_of(self, call: Call, arguments: Collection[int], depth: int) -> frozenset[str]:
        return frozenset().union(*(self.zero(call, k, depth) for k in arguments))

    def _made_zero(self, call: Call, depth: int) -> frozenset[str]:
        """Parameters that make the result of a call 0."""
        name, count = name_of(call), len(call.sources)
        if name in ZERO_STAYS:
            return self.zero(call, 0, depth)
        if name in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
            if not bounds_hold_zero(name, call.literals):
                raise RefusedError(f"{place_of(call)} makes no 0 of 0")
            return self.zero(call, 0, depth)
        if name == "constant_pad_nd" and not any(isinstance(v, (int, float)) and v for v in call.literals):
            return self.zero(call, 0, depth)
        if name == "pow" and count == 1 and call.literals and isinstance(call.literals[0], (int, float)) and call.literals[0] > 0:
            return self.zero(call, 0, depth)
        if name == "mul":
            return self.one_of(call, [k for k in range(count) if self.carries(call, k)], depth)
        if name in ("add", "sub", "cat", "concat", "stack", "where"):
            operands = range(1, count) if name == "where" else range(count)
            carrying = [k for k in operands if self.carries(call, k)]
            if name in ("add", "sub", "where") and len(carrying) < 2:
                raise RefusedError(f"{place_of(call)} adds what carries no channels")
            return self._all_of(call, carrying, depth)
        if name in CONVOLUTIONS:
            options = [k for k in (0, 1) if self.along(call, k, 1 if k == 0 else input_dim(call))]
            return self.one_of(call, options, depth) | self._all_of(call, range(2, count), depth)
        if name in PRODUCTS:
            options = [k for k, dim in PRODUCTS[name] if self.along(call, k, dim)]
            bias = [k for k in range(count) if k not in {k for k, _ in PRODUCTS[name]}]
            return self.one_of(call, options, depth) | self._all_of(call, bias, depth)
        if name.startswith(ATTENTION):
            return self.zero(call, 2, depth)
        if name in NORMS | BATCH_NORMS:
            return self._affine(call, depth)
        raise RefusedError(f"{place_of(call)} makes no 0 of 0")

    def _affine(self, call: Call, depth: int) -> frozenset[str]:
        """Scale and shift of a norm; without them what a norm over the root mean square reads."""
        affine = [k for k in range(1, min(len(call.sources), 3)) if not (call.names[k] or "").rpartition(".")[2].startswith("running_")]
        if affine:
            return self._all_of(call, affine, depth)
        if "rms" in name_of(call):
            return self.zero(call, 0, depth)
        raise RefusedError(f"{place_of(call)} has no scale and shift")
