"""Following a recorded run: each operation of a real run beside its record, with what is removed hidden from it."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.errors import CaptureError
from latprune.graph.containers import like
from latprune.graph.tensors import operands, tensors_in
from latprune.graph.types import Call
from latprune.surgery.masked_rules import find_masked_rule

if TYPE_CHECKING:
    from latprune.surgery.masked import MaskedModel

__all__ = ["Follower"]

IntArray = npt.NDArray[np.int64]


def _shape_fits(field: IntArray, tensor: Tensor) -> bool:
    return field.ndim == tensor.ndim and all(extent in (1, size) for extent, size in zip(field.shape, tensor.shape, strict=True))


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers under every name that they have."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _labelled(call: Call) -> bool:
    """Whether a recorded operation reads or makes channels, or joins a block's branch."""
    return bool(call.joins) or any(call.all_fields) or any(call.all_output_fields)


def _copies(name: str) -> bool:
    """Whether an operation, by its name, only copies its argument (``contiguous`` does where the layout asks for it)."""
    return name in ("aten.clone.default", "aten.contiguous.default")


def _misfit(call: Call, operands: list[Tensor]) -> str:
    """Why an operation cannot be the recorded one, by the shapes of its tensors; empty where it can."""
    where = f"operation {call.index} ({call.op} in '{call.module}')"
    if len(call.all_fields) != len(operands):
        return f"{where} has {len(operands)} tensors, {len(call.all_fields)} when it was traced"
    for index, (fields, tensor) in enumerate(zip(call.all_fields, operands, strict=True)):
        for field in fields:
            if not _shape_fits(field, tensor):
                return (
                    f"tensor {index} of {where} has shape {tuple(tensor.shape)}, but its channels lay on {field.shape} when it was "
                    "traced; run it with inputs of the same shapes"
                )
    return ""


class Follower(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Steps through the recorded calls beside a real run and hides what is removed from each operation."""

    def __init__(self, owner: MaskedModel) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.owner = owner
        self.place = 0
        self._produced: dict[int, tuple[weakref.ref[Tensor], tuple[IntArray, ...]]] = {}
        self.types: set[torch.dtype] = set()
        self._carriers = {id(tensor) for name, tensor in _named(owner.model) if name in owner.carriers}
        self._stored = {id(tensor) for tensor in (*owner.model.parameters(), *owner.model.buffers())}

    def finish(self) -> None:
        """Check that the run did not end early."""
        if self.place <= self.owner.last:
            missing = self.owner.call(self.place)
            raise CaptureError(
                f"the model stopped after {self.place} of {self.owner.recorded} recorded operations (next was "
                f"{missing.op if missing else '?'}): it took another course than when it was traced; trace it with the inputs that it is "
                "checked with"
            )

    def mask_of(self, tensor: Tensor) -> Tensor | None:
        """Kept places of a tensor of this run, by the operation that made it."""
        known = self._produced.get(id(tensor))
        return self.owner.mask(known[1]) if known is not None and known[0]() is tensor else None

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        """Run one operation on what is left of its arguments."""
        options = dict(kwargs or {})
        if self.place > self.owner.last:
            self.place += 1
            return func(*args, **options)
        tensors = operands(args, options)
        call = self._expect(func, tensors)
        if call is None:
            return self._unrecorded(func, tensors, func(*args, **options))
        masks = [self.owner.mask(fields) for fields in call.all_fields]
        gone = {index for block, index in call.joins.items() if self.owner.removes(block)}
        if not gone and (func.is_view or all(mask is None for mask in masks)):
            # A view stays a view of the real tensor (writes through it must arrive); what reads it hides what is removed.
            return self._note(call, func(*args, **options))
        hidden = _hide_all(tensors, masks, gone)
        replaced_args, replaced_options = _replace(args, options, iter(hidden))
        rule = find_masked_rule(func)
        if rule is None:
            output = func(*replaced_args, **replaced_options)
        else:
            output = _in_layout_of(func(*replaced_args, **replaced_options), rule(func, replaced_args, replaced_options, masks))
        if func._schema.is_mutable:
            output = self._write_back(func, args, options, tensors, hidden, output)
        return self._note(call, output)

    def _expect(self, func: Any, operands: list[Tensor]) -> Call | None:
        """The record of this operation, or None where it has none and needs none.

        The two runs must agree in what carries channels. What carries none may differ (an index table that is computed once and kept), and
        copies that are made where a tensor happens not to be contiguous.
        """
        call = self.owner.call(self.place)
        if call is not None and call.op == str(func):
            problem = _misfit(call, operands)
            if not problem:
                self.place += 1
                return call
        else:
            recorded = f"{call.op} in '{call.module}'" if call is not None else "the end"
            problem = (
                f"operation {self.place} of the model is {func}, but the recorded run had {recorded}; the model takes another course than "
                "when it was traced (training mode, other input shapes, or a path that depends on the data)"
            )
        carries = any(self._carries(tensor) for tensor in operands)
        found = self._further(func, operands, carries)
        if found is not None:
            self.place = found.index + 1
            return found
        if carries and not (_copies(str(func)) and self._made_here(operands[0])):
            raise CaptureError(problem)
        return None

    def _unrecorded(self, func: Any, operands: list[Tensor], output: Any) -> Any:
        """The result of an operation without a record: a copy carries what the tensor carries that it was made of."""
        if operands and _copies(str(func)) and self._made_here(operands[0]):
            self._produced[id(output)] = (weakref.ref(output), self._produced[id(operands[0])][1])
        return output

    def _made_here(self, tensor: Tensor) -> bool:
        """Whether a recorded operation of this run made the tensor."""
        known = self._produced.get(id(tensor))
        return known is not None and known[0]() is tensor

    def _further(self, func: Any, operands: list[Tensor], carries: bool) -> Call | None:
        """The record of this operation further on, behind records that carry no channels or only copy, and that this run did without."""
        place = self.place
        while (call := self.owner.call(place)) is not None:
            labelled = _labelled(call)
            if call.op == str(func) and labelled == carries and not _misfit(call, operands):
                return call
            if (labelled and not _copies(call.op)) or place > self.owner.last:
                return None
            place += 1
        return None

    def _carries(self, tensor: Tensor) -> bool:
        """Whether a tensor of this run carries channels: a parameter or buffer of a group, or what an operation with labels made."""
        return bool(self._produced[id(tensor)][1]) if self._made_here(tensor) else id(tensor) in self._carriers

    def _write_back(
        self, func: Any, args: tuple[Any, ...], options: dict[str, Any], operands: list[Tensor], hidden: list[Tensor], output: Any
    ) -> Any:
        """An operation that writes into its arguments wrote into hidden copies: bring the result to the real ones."""
        written = _written(func, args, options)
        results = {id(replaced): real for real, replaced in zip(operands, hidden, strict=True) if id(real) in written}
        for real, replaced in zip(operands, hidden, strict=True):
            if id(real) in written and replaced is not real:
                if id(real) in self._stored:
                    raise CaptureError(
                        f"{func} writes into a parameter or buffer that carries pruned channels; the model changes as it runs"
                    )
                real.copy_(replaced)
        if isinstance(output, Tensor):
            return results.get(id(output), output)
        if isinstance(output, (tuple, list)):
            return like(output, (results.get(id(item), item) for item in output))
        return output

    def _note(self, call: Call, output: Any) -> Any:
        """Remember the labels of the results, for the outputs of the model."""
        outputs = [output] if isinstance(output, Tensor) else tensors_in(output)
        for tensor, fields in zip(outputs, call.all_output_fields, strict=False):
            self._produced[id(tensor)] = (weakref.ref(tensor), fields)
            if fields and tensor.is_floating_point():
                self.types.add(tensor.dtype)
        return output


def _replace(args: tuple[Any, ...], options: Mapping[str, Any], tensors: Iterator[Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The same arguments with their tensors exchanged, in the order of :func:`latprune.graph.tensors.operands`."""

    def exchanged(value: Any) -> Any:
        if isinstance(value, Tensor):
            return next(tensors)
        if isinstance(value, (list, tuple)):
            return like(value, (next(tensors) if isinstance(item, Tensor) else item for item in value))
        return value

    replaced = tuple(exchanged(value) for value in args)
    return replaced, {name: exchanged(value) for name, value in options.items()}


def _hide_all(operands: list[Tensor], masks: list[Tensor | None], gone: set[int]) -> list[Tensor]:
    """The operands with what is removed hidden; a tensor that is given twice stays one (an operation may write into it)."""
    copies: dict[tuple[int, bool], Tensor] = {}
    for index, (tensor, mask) in enumerate(zip(operands, masks, strict=True)):
        key = (id(tensor), index in gone)
        if key not in copies:
            copies[key] = _hide(tensor, mask, index in gone)
    return [copies[id(tensor), index in gone] for index, tensor in enumerate(operands)]


def _hide(tensor: Tensor, mask: Tensor | None, gone: bool) -> Tensor:
    """The tensor with removed places at 0 (all of them where the whole operand is gone); itself where nothing is removed.

    The strides stay: composite operations choose their parts by them, and the run must take the recorded course.
    """
    if mask is None and not gone:
        return tensor
    overlapping = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    if overlapping:
        hidden = tensor.clone()
    else:
        hidden = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    if gone:
        return hidden.zero_()
    assert mask is not None
    return hidden.masked_fill_(mask.logical_not().to(tensor.device), 0)


def _in_layout_of(plain: Any, result: Any) -> Any:
    """The values of ``result`` in tensors of the type and strides that the operation itself gives."""
    if isinstance(plain, Tensor):
        return plain.copy_(result)
    if isinstance(plain, (tuple, list)):
        return like(plain, (_in_layout_of(mine, theirs) for mine, theirs in zip(plain, result, strict=True)))
    return plain


def _written(func: Any, args: tuple[Any, ...], options: Mapping[str, Any]) -> set[int]:
    """Ids of the tensors that an operation writes into."""
    written: set[int] = set()
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = args[position] if position < len(args) else options.get(argument.name)
        written.update(id(tensor) for tensor in ([value] if isinstance(value, Tensor) else tensors_in(value)))
    return written
