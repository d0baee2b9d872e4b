"""The contractions of a network whose weights can be fitted: where they stand, what follows them and where their result is compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latprune.recovery.parameter_names import ParameterNames
from latprune.recovery.stepper import FOREVER, Key, Operation, Sequence_

__all__ = ["CLAMPS", "RELUS", "Affine", "Site", "find_sites"]

_CONTRACTIONS = {"aten.convolution": (0, 1, 2), "aten.addmm": (1, 2, 0), "aten.mm": (0, 1, None)}
"""Operator -> places of (input, weight, bias) among its tensor arguments."""
_OTHER_WEIGHTED = ("aten.bmm", "aten.baddbmm", "aten.lstm", "aten.gru", "aten.embedding", "aten.embedding_bag", "aten.mkldnn_rnn_layer")
_VIEWS = frozenset(
    f"aten.{n}"
    for n in "view _unsafe_view reshape permute transpose t unsqueeze squeeze clone alias detach contiguous dropout native_dropout".split()
)
_NORMS = frozenset({"aten.native_batch_norm", "aten._native_batch_norm_legit_no_training", "aten.cudnn_batch_norm", "aten.batch_norm"})
_SUMS = frozenset({"aten.add", "aten.add_"})
_ALONE = "nothing is fitted here: the layer that reads it is fitted to what it gives after the cut"
RELUS = frozenset({"aten.relu", "aten.relu_"})
CLAMPS = frozenset({"aten.hardtanh", "aten.hardtanh_", "aten.clamp", "aten.clamp_"})


@dataclass(slots=True, eq=False)
class Affine:
    """What a norm in evaluation mode (or a per-channel scale, or a bias added apart) does to each output channel: ``scale * y + shift``.

    Attributes:
        read: Returns ``(scale, shift)``, each ``(outputs,)`` float64, from the present parameters.
        shift: The parameter that a constant per channel can be added to; None where there is none.
        held: The parameters that it reads.
    """

    read: Callable[[], tuple[Tensor, Tensor]]
    shift: Tensor | None = None
    held: tuple[Tensor, ...] = ()


@dataclass(slots=True, eq=False)
class Site:
    """One contraction of the pruned network.

    Attributes:
        index: Number of the operation.
        name: Name of the weight without its last part (``layer1.0.conv1``).
        operation: The recorded operation.
        tensor: Name of the weight.
        inputs: Place of the layer's input among the tensor arguments.
        weight: The weight as the operation reads it: a view of the parameter, written in place.
        bias: The same for the bias.
        fixed_at: Place among the tensor arguments of a bias that is not the layer's own to change (shared, or joined from parts as the
            model runs); None without one.
        fixed: ``(outputs,)`` its value, taken from the run.
        views: Undo the views between the contraction's result and the place of comparison, last one first.
        affine: Per-channel maps on the way to the place of comparison.
        compared: Number of the operation whose result is compared (the contraction, a norm, or the sum of a residual branch).
        other: At a sum: key of the other operand.
        plain: At a sum: the place right before it, as the number of the operation and of the views up to there.
        activation: ``relu``, ``(low, high)`` of a clamp, or None: what the compared result goes through before anything else reads it.
        reason: Why the weight cannot be fitted; empty where it can.
    """

    index: int
    name: str
    operation: Operation
    tensor: str = ""
    inputs: int = 0
    weight: Tensor | None = None
    bias: Tensor | None = None
    fixed_at: int | None = None
    fixed: Tensor | None = None
    views: list[Callable[[Tensor], Tensor]] = field(default_factory=list)
    affine: list[Affine] = field(default_factory=list)
    compared: int = -1
    other: Key | None = None
    plain: tuple[int, int] = (-1, 0)
    activation: tuple[float, float] | None = None
    reason: str = ""

    @property
    def convolution(self) -> bool:
        """Whether it is a convolution; else a product of matrices."""
        return self.operation.name == "aten.convolution"

    @property
    def options(self) -> tuple[Any, ...]:
        """Of a convolution: stride, padding, dilation, transposed, output padding, groups."""
        return tuple(self.operation.constants[3:9])

    @property
    def output_dim(self) -> int:
        """The dimension of :attr:`weight` along which its filters lie (of one group where it is a transposed convolution)."""
        return 0 if self.convolution and not self.options[3] else 1

    @property
    def outputs(self) -> int:
        """Output channels."""
        assert self.weight is not None
        groups = int(self.options[5]) if self.convolution and self.options[3] else 1
        return int(self.weight.shape[self.output_dim]) * groups

    def rescale(self) -> tuple[Tensor, Tensor]:
        """``(scale, shift)``, each ``(outputs,)`` float64: what all per-channel maps together do."""
        assert self.weight is not None
        scale = torch.ones(self.outputs, dtype=torch.float64, device=self.weight.device)
        shift = torch.zeros_like(scale)
        for affine in self.affine:
            a, b = affine.read()
            scale, shift = a * scale, a * shift + b
        return scale, shift

    def take_constant(self, constant: Tensor, *, apply: bool = True) -> bool:
        """Add ``constant`` ``(outputs,)`` to the compared result through a bias or shift that is there already; whether there is one."""
        if self.bias is not None:
            scale = torch.ones(self.outputs, dtype=torch.float64, device=constant.device)
            for affine in self.affine:
                scale = scale * affine.read()[0]
            if apply:
                safe = scale.abs() > 1e-8
                step = torch.where(safe, constant / torch.where(safe, scale, torch.ones_like(scale)), torch.zeros_like(constant))
                self.bias.add_(step.reshape(self.bias.shape).to(self.bias))
            return True
        for place, affine in enumerate(self.affine):
            if affine.shift is None:
                continue
            if apply:
                scale = torch.ones(self.outputs, dtype=torch.float64, device=constant.device)
                for later in self.affine[place + 1 :]:
                    scale = scale * later.read()[0]
                safe = scale.abs() > 1e-8
                step = torch.where(safe, constant / torch.where(safe, scale, torch.ones_like(scale)), torch.zeros_like(constant))
                affine.shift.add_(step.reshape(affine.shift.shape).to(affine.shift))
            return True
        return False

    @property
    def has_constant(self) -> bool:
        """Whether a bias or a shift is there that takes a constant per output."""
        return self.bias is not None or any(affine.shift is not None for affine in self.affine)

    def before_sum(self) -> None:
        """Compare right before the sum instead of behind it."""
        if self.other is not None:
            self.compared, count = self.plain
            self.views, self.other, self.activation = self.views[:count], None, None

    def tensors(self) -> list[Tensor]:
        """All tensors that a fit of this layer writes."""
        found = [t for t in (self.weight, self.bias) if t is not None]
        return found + [a.shift for a in self.affine if a.shift is not None]


def _region(tensor: Tensor) -> tuple[int, int, int]:
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset()), tensor.numel()


def find_sites(sequence: Sequence_, model: nn.Module) -> list[Site]:
    """All that has weights of its own, in the order in which it runs: contractions, and what cannot be fitted with the reason.

    A norm or factor that follows a contraction is part of it; one that stands alone (a layer norm, a scale, a position embedding) has an
    entry of its own.
    """
    names = ParameterNames(model.named_parameters())
    uses: dict[tuple[int, int, int], int] = {}
    for operation in sequence.operations:
        if operation.name in _CONTRACTIONS or operation.name in _OTHER_WEIGHTED:
            for tensor in operation.operands.values():
                uses[_region(tensor)] = uses.get(_region(tensor), 0) + 1
    found = []
    for index, operation in enumerate(sequence.operations):
        if operation.name in _CONTRACTIONS:
            site = _site(index, operation, sequence, names, uses)
            if site is not None:
                found.append(site)
        elif operation.name in _OTHER_WEIGHTED:
            weights = [n for t in operation.operands.values() if (n := names.of(t)) is not None]
            if weights:
                name = weights[0].rpartition(".")[0]
                embedding = "embedding" in operation.name
                reason = (
                    "looked-up rows are the dense network's at the kept channels already"
                    if embedding
                    else f"no regression for {operation.name}"
                )
                found.append(Site(index=index, name=name, operation=operation, reason=reason))
    return sorted([*found, *_alone(sequence, names, found)], key=lambda site: site.index)


def _alone(sequence: Sequence_, names: ParameterNames, sites: list[Site]) -> list[Site]:
    """Parameters that no contraction holds, at the first operation that reads them."""
    held = {_region(t) for s in sites for t in (s.weight, s.bias, *(h for a in s.affine for h in a.held)) if t is not None}
    seen = {s.name for s in sites}
    found = []
    for index, operation in enumerate(sequence.operations):
        if operation.name in _CONTRACTIONS or operation.name in _OTHER_WEIGHTED or operation.name in _VIEWS:
            continue
        for tensor in operation.operands.values():
            full = names.of(tensor)
            if full is None or _region(tensor) in held:
                continue
            name = full.rpartition(".")[0] if operation.module and full.startswith(f"{operation.module}.") else full
            if name not in seen:
                seen.add(name)
                found.append(Site(index=index, name=name, operation=operation, reason=_ALONE))
    return found


def _site(
    index: int, operation: Operation, sequence: Sequence_, names: ParameterNames, uses: dict[tuple[int, int, int], int]
) -> Site | None:
    at_input, at_weight, at_bias = _CONTRACTIONS[operation.name]
    weight = operation.operands.get(at_weight)
    full = names.of(weight) if weight is not None else None
    if weight is None or full is None:
        if at_weight < len(operation.sources) and operation.module and not (operation.name == "aten.mm" and not operation.operands):
            name = operation.module
            if operation.name == "aten.convolution":
                return Site(index=index, name=name, operation=operation, reason="its weights are computed from other parameters as it runs")
        return None
    site = Site(index=index, name=full.rpartition(".")[0] or full, operation=operation, tensor=full, inputs=at_input, weight=weight)
    if uses[_region(weight)] > 1:
        site.name = operation.module or site.name
        site.reason = f"its weight is used at {uses[_region(weight)]} places (tied or shared)"
        return site
    if operation.name == "aten.addmm" and any(isinstance(c, (int, float)) and c != 1 for c in operation.constants):
        site.reason = "its product is scaled as it is computed"
        return site
    if at_bias is not None and len(operation.shapes) > at_bias:
        bias = operation.operands.get(at_bias)
        own = bias is not None and bias.dim() == 1 and bias.numel() == site.outputs and names.of(bias) is not None
        if bias is not None and own and uses.get(_region(bias), 1) <= 1:
            site.bias = bias
        else:
            site.fixed_at = at_bias
    _follow(site, sequence, names)
    return site


def _follow(site: Site, sequence: Sequence_, names: ParameterNames) -> None:
    """Find the place of comparison: through views and per-channel maps to a sum of two activations, or else the last of the maps."""
    outputs = site.outputs
    key = site.operation.results[0]
    site.compared = site.index
    shape = site.operation.result_shapes[0]
    channels: int | None = 1 if site.convolution else len(shape) - 1
    views: list[Callable[[Tensor], Tensor]] = []
    place = site.index
    while key is not None:
        readers = [j for j in sequence.readers.get(key, ()) if j > place]
        if len(set(readers)) != 1 or sequence.last_read.get(key) == FOREVER:
            return
        place = readers[0]
        operation = sequence.operations[place]
        if operation.name in _VIEWS and operation.sources[:1] == (key,):
            # The place of comparison stays before views: behind them channels may lie on several dimensions (heads and their places).
            views.append(_undo(operation, shape))
            channels = _moved(operation, shape, channels)
            shape, key = operation.result_shapes[0], operation.results[0]
            continue
        elif operation.name in _NORMS and operation.sources[0] == key and channels == 1 and _evaluating(operation):
            affine = _norm(operation, outputs)
            if affine is None:
                return
            site.affine.append(affine)
        elif operation.name in _SUMS and len(operation.sources) == 2 and not _alpha(operation):
            position = 0 if operation.sources[0] == key else 1
            other = operation.sources[1 - position]
            parameter = operation.operands.get(1 - position)
            if parameter is not None and parameter.dim() == 1 and _per_channel(parameter, operation, shape, channels):
                site.affine.append(_added(parameter, names))
            elif other is not None and other != key and operation.shapes[0] == operation.shapes[1]:
                site.plain = (site.compared, len(site.views))
                site.compared, site.other = place, other
                site.views = views
                key = operation.results[0]
                if key is not None:
                    site.activation = _activation(sequence, key, place)
                return
            else:
                return
        elif operation.name in ("aten.mul", "aten.mul_") and len(operation.sources) == 2 and operation.operands:
            position = 0 if operation.sources[0] == key else 1
            parameter = operation.operands.get(1 - position)
            if parameter is None or operation.sources[position] != key or not _per_channel(parameter, operation, shape, channels):
                return
            site.affine.append(_factor(parameter))
        else:
            site.activation = _activation(sequence, key, -1)
            return
        site.compared, site.views = place, list(views)
        shape = operation.result_shapes[0]
        key = operation.results[0]


def _alpha(operation: Operation) -> bool:
    return any(isinstance(c, (int, float)) and c != 1 for c in operation.constants)


def _moved(operation: Operation, before: tuple[int, ...], dim: int | None) -> int | None:
    """Where a dimension of a view's argument is in its result; None where it no longer stands alone."""
    if dim is None:
        return None
    name, constants, after = operation.name, operation.constants, operation.result_shapes[0]
    if name == "aten.permute":
        return [int(d) % len(before) for d in constants[1]].index(dim)
    if name in ("aten.transpose", "aten.t"):
        first, second = (int(d) % len(before) for d in (constants[1:3] if name == "aten.transpose" else (0, -1)))
        return {first: second, second: first}.get(dim, dim)
    # All others keep the order of the values: a dimension is the one with its size and as many values behind it.
    behind = math.prod(before[dim + 1 :])
    return next((d for d, size in enumerate(after) if size == before[dim] and math.prod(after[d + 1 :]) == behind), None)


def _per_channel(parameter: Tensor, operation: Operation, shape: tuple[int, ...], channels: int | None) -> bool:
    """Whether a parameter that meets a tensor of ``shape`` has one value for each place of its dimension ``channels``, and for no other."""
    if channels is None or operation.result_shapes[0] != shape:
        return False
    own = [1] * (len(shape) - parameter.dim()) + list(parameter.shape)
    return own == [size if d == channels else 1 for d, size in enumerate(shape)]


def _undo(operation: Operation, before: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """The inverse of a view, for tensors of any batch size."""
    name, constants = operation.name, operation.constants
    if name == "aten.permute":
        order = [int(d) % len(before) for d in constants[1]]
        back = [order.index(d) for d in range(len(order))]
        return lambda t: t.permute(back)
    if name == "aten.transpose":
        return lambda t: t.transpose(int(constants[1]), int(constants[2]))
    if name == "aten.t":
        return lambda t: t.t()
    if name in ("aten.clone", "aten.alias", "aten.detach", "aten.contiguous", "aten.dropout", "aten.native_dropout"):
        return lambda t: t
    tail = before[1:]
    return lambda t: t.reshape(-1, *tail)


def _evaluating(operation: Operation) -> bool:
    return operation.name.endswith("no_training") or operation.constants[5] is False


def _norm(operation: Operation, outputs: int) -> Affine | None:
    held = operation.operands
    wanted = operation.constants
    # Tensor arguments in order: input, then weight and bias where the norm has them, then mean and variance.
    places = iter(range(1, len(operation.sources)))
    given = [next(places) if wanted[k] is None and _is_tensor(operation, k) else None for k in (1, 2, 3, 4)]
    if given[2] is None or given[3] is None:
        return None
    weight, bias = (held.get(given[k]) if given[k] is not None else None for k in (0, 1))  # type: ignore[arg-type]
    mean, variance = held.get(given[2]), held.get(given[3])
    if mean is None or variance is None or mean.numel() != outputs:
        return None
    eps = float(next(c for c in reversed(operation.constants) if isinstance(c, float)))

    def read() -> tuple[Tensor, Tensor]:
        scale = (variance.double() + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.detach().double()
        shift = -mean.double() * scale
        return scale, shift if bias is None else shift + bias.detach().double()

    own = tuple(t for t in (weight, bias) if t is not None)
    return Affine(read=read, shift=bias.detach() if bias is not None else None, held=own)


def _is_tensor(operation: Operation, position: int) -> bool:
    """Whether a norm's argument at ``position`` is a tensor: weight and bias come together or not at all."""
    tensors = len(operation.shapes)
    return tensors == 5 or (tensors == 3 and position >= 3)


def _added(parameter: Tensor, names: ParameterNames) -> Affine:
    mine = names.of(parameter) is not None

    def read() -> tuple[Tensor, Tensor]:
        values = parameter.detach().double().reshape(-1)
        return torch.ones_like(values), values

    return Affine(read=read, shift=parameter.detach() if mine else None, held=(parameter,))


def _factor(parameter: Tensor) -> Affine:
    def read() -> tuple[Tensor, Tensor]:
        values = parameter.detach().double().reshape(-1)
        return values, torch.zeros_like(values)

    return Affine(read=read, held=(parameter,))


def _activation(sequence: Sequence_, key: Key, after: int) -> tuple[float, float] | None:
    """The clamp that a result goes through before anything else reads it."""
    readers = sorted({j for j in sequence.readers.get(key, ()) if j > after})
    if not readers or sequence.last_read.get(key) == FOREVER:
        return None
    first = sequence.operations[readers[0]]
    in_place = first.func._schema.is_mutable
    if len(readers) > 1 and not in_place:
        return None
    if first.name in RELUS:
        return (0.0, float("inf"))
    if first.name in CLAMPS:
        bounds = [c for c in first.constants[1:3] if isinstance(c, (int, float))]
        if first.name.startswith("aten.hardtanh") and len(bounds) < 2:
            return (-1.0, 1.0)
        if len(bounds) == 2:
            return (float(bounds[0]), float(bounds[1]))
    return None
