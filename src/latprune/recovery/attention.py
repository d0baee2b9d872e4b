"""Products of queries and keys in a recorded run: which layers make them, and which of their output columns each head reads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latprune.recovery.sites import Site
from latprune.recovery.stepper import FOREVER, Key, Sequence_

__all__ = ["BATCHED", "Product", "RowOrder", "factors_of", "find_products", "has_products"]

_ATTENTION = frozenset(
    f"aten.{name}"
    for name in (
        "scaled_dot_product_attention _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention "
        "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention _scaled_dot_product_fused_attention_overrideable"
    ).split()
)
BATCHED = {"aten.bmm": (0, 1), "aten.baddbmm": (1, 2)}
"""Product of matrices -> places of the two factors among its tensor arguments; the second has its tokens last."""
_SAME = frozenset(f"aten.{name}" for name in "clone alias detach contiguous dropout native_dropout".split())
_RESHAPED = frozenset({"aten.view", "aten._unsafe_view", "aten.reshape"})
_MOVED = frozenset(
    f"aten.{name}" for name in "permute transpose t unsqueeze squeeze select slice split split_with_sizes unbind chunk expand roll".split()
)
_OTHER_HEADS = "its heads are not columns of its own: fitted to its own values"
_SCALED = frozenset({"aten.mul", "aten.mul_", "aten.div", "aten.div_"})


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowOrder:
    """Which rows of a layer's result are the tokens of one sequence, for any number of examples.

    Attributes:
        pattern: ``(sequences, tokens)`` rows of one example alone.
        rows: Rows of one example.
        outer: Whether the rows of an example stand together; else the examples stand together at each row.
    """

    pattern: Tensor
    rows: int
    outer: bool

    def of(self, examples: int) -> Tensor:
        """``(examples * sequences, tokens)`` rows, in a batch of so many examples."""
        number = torch.arange(examples)[:, None, None]
        found = self.pattern + number * self.rows if self.outer else self.pattern * examples + number
        return found.flatten(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """One product of queries and keys, such as that of scaled dot-product attention.

    Attributes:
        index: Number of the operation.
        query: Number of the operation of the layer that makes the queries, a product of matrices.
        key: The same of the keys; may be the same.
        query_columns: ``(heads, size)`` output columns of the query layer that each head reads.
        key_columns: ``(heads, size)`` output columns of the key layer; heads that share a key head have the same row.
        query_rows: How the rows of the query layer's result belong together.
        key_rows: The same for the key layer.
    """

    index: int
    query: int
    key: int
    query_columns: Tensor
    key_columns: Tensor
    query_rows: RowOrder
    key_rows: RowOrder


def find_products(run: Sequence_, sites: Sequence[Site], examples: int) -> tuple[list[Product], dict[int, str]]:
    """All products of two layers' results that only views and factors bring to it.

    Args:
        run: A run recorded on one or two examples.
        sites: Its contractions.
        examples: How many they were; two are needed to see which rows belong to which.

    Returns:
        The products, and for layers whose results meet in a product by another way (a rotation by position, a norm of the queries) the
        number of the layer's operation with what stands between.
    """
    makers = {site.compared: site for site in sites if not site.convolution and site.weight is not None and site.other is None}
    found: list[Product] = []
    between: dict[int, str] = {}
    for index, operation in enumerate(run.operations):
        places = factors_of(operation.name)
        if places is None:
            continue
        sides = [_traced(run, operation.sources[place], makers, index) for place in places]
        if any(side.site is None for side in sides):
            continue
        reasons = [side.reason for side in sides if side.reason]
        product = None if reasons else _product(index, operation.name in _ATTENTION, sides, examples)
        if product is not None:
            reasons = [_own(run, product, makers)]
        if product is None or any(reasons):
            for side in sides:
                assert side.site is not None
                between.setdefault(side.site.index, side.reason or next(filter(None, reasons), _OTHER_HEADS))
            continue
        found.append(product)
    return found, between


def factors_of(operator: str) -> tuple[int, int] | None:
    """Places of queries and keys among the tensor arguments of an operator that may be their product; None for any other."""
    return (0, 1) if operator in _ATTENTION else BATCHED.get(operator)


def has_products(run: Sequence_) -> bool:
    """Whether any operation may be a product of queries and keys."""
    return any(operation.name in _ATTENTION or operation.name in BATCHED for operation in run.operations)


@dataclass(slots=True, eq=False)
class _Side:
    """One factor: the layer that makes it, the place of each of its values in that layer's result, or what stands between."""

    site: Site | None = None
    places: Tensor | None = None
    rows: int = 0
    outputs: int = 0
    reason: str = ""


def _traced(run: Sequence_, key: Key | None, makers: dict[int, Site], stop: int) -> _Side:
    """Go back from a factor to the layer that makes it, then follow the places of its values forward."""
    chain: list[Key] = []
    reason = ""
    while key is not None and key[0] >= 0:
        writers = [j for j in run.written.get(key, ()) if key[0] < j < stop]
        site = makers.get(key[0]) or next((makers[j] for j in writers if j in makers), None)
        if not reason and any(run.operations[j].name not in _SCALED and j not in makers for j in writers):
            reason = _between(run.operations[writers[0]].name)
        if site is not None:
            if reason:
                return _Side(site=site, reason=reason)
            rows = math.prod(run.operations[site.compared].result_shapes[0]) // site.outputs
            return _Side(site=site, places=_followed(run, site, chain), rows=rows, outputs=site.outputs)
        operation = run.operations[key[0]]
        tensors = [s for s in operation.sources if s is not None]
        if operation.name in _ATTENTION or operation.name in BATCHED or not tensors:
            return _Side()
        plain = operation.name in _SAME | _RESHAPED | _MOVED or (operation.name in _SCALED and _by_number(operation.shapes))
        if not plain or len(tensors) != 1:
            reason = reason or _between(operation.name)
        chain.append(key)
        key = tensors[0]
    return _Side()


def _by_number(shapes: tuple[tuple[int, ...], ...]) -> bool:
    return len(shapes) == 1 or any(all(n == 1 for n in shape) for shape in shapes[1:])


def _between(name: str) -> str:
    return f"{name.removeprefix('aten.')} stands between it and the logits (positions by rotation, a norm): fitted to its own values"


def _own(run: Sequence_, product: Product, makers: dict[int, Site]) -> str:
    """Why what makes the queries and keys may not change together; empty where nothing but the product reads them."""
    query, key = product.query_columns, torch.unique(product.key_columns, dim=0)
    if torch.unique(query).numel() != query.numel() or torch.unique(key).numel() != key.numel():
        return _OTHER_HEADS
    if product.query == product.key and bool(torch.isin(query, key).any()):
        return "queries and keys are the same columns: fitted to its own values"
    for site in makers.values():
        mine = [columns for index, columns in ((product.query, query), (product.key, key)) if index == site.index]
        if mine and any(index != product.index and bool(torch.isin(columns, torch.cat(mine)).any()) for index, columns in _read(run, site)):
            return "something beside the logits reads it: fitted to its own values"
    return ""


def _read(run: Sequence_, site: Site) -> list[tuple[int, Tensor]]:
    """The operations that read a layer's result behind views and factors, each with the output columns that it reads."""
    found = []
    start = run.operations[site.compared].results[0]
    todo = [] if start is None else [(start, _places(run, site))]
    while todo:
        key, places = todo.pop()
        columns = torch.unique(places % site.outputs)
        if run.last_read.get(key) == FOREVER:
            found.append((FOREVER, columns))
        for index in run.readers.get(key, ()):
            operation = run.operations[index]
            tensors = [s for s in operation.sources if s is not None]
            if index <= site.compared:
                continue
            if len(tensors) != 1 or operation.name not in _SAME | _RESHAPED | _MOVED | _SCALED:
                found.append((index, columns))
                continue
            for place, result in enumerate(operation.results):
                if result is not None and result != key:
                    todo.append((result, _stepped(run, (index, place), places)))
    return found


def _followed(run: Sequence_, site: Site, chain: list[Key]) -> Tensor:
    """For each value of the factor its place in the layer's flattened result."""
    places = _places(run, site)
    for key in reversed(chain):
        places = _stepped(run, key, places)
    return places


def _places(run: Sequence_, site: Site) -> Tensor:
    """The place of each value of the compared result among the rows and columns that the layer makes."""
    shape = run.operations[site.compared].result_shapes[0]
    there = torch.arange(math.prod(shape)).reshape(shape)
    for undo in reversed(site.views):
        there = undo(there)
    places = torch.empty(there.numel(), dtype=torch.int64)
    places[there.reshape(-1)] = torch.arange(there.numel())
    return places.reshape(shape)


def _stepped(run: Sequence_, key: Key, places: Tensor) -> Tensor:
    operation = run.operations[key[0]]
    if operation.name in _RESHAPED:
        return places.reshape(operation.result_shapes[0])
    if operation.name in _MOVED:
        out = operation.func(places, *operation.constants[1:])
        places = out[key[1]] if isinstance(out, (list, tuple)) else out
    return places


def _product(index: int, attention: bool, sides: list[_Side], examples: int) -> Product | None:
    """The heads of a product; None where they are not the same columns for all rows."""
    query, key = sides
    assert query.site is not None and key.site is not None and query.places is not None and key.places is not None
    left, right = query.places, key.places
    if attention:
        if left.dim() != right.dim() or left.dim() < 3:
            return None
        if left.dim() == 4 and right.shape[1] and right.shape[1] != left.shape[1]:
            right = right.repeat_interleave(left.shape[1] // right.shape[1], 1)
        left, right = left.flatten(0, -3), right.flatten(0, -3)
    else:
        right = right.transpose(1, 2)
    if left.shape[0] != right.shape[0] or left.shape[2] != right.shape[2]:
        return None
    parts = []
    for places, outputs in ((left, query.outputs), (right, key.outputs)):
        columns, rows = places % outputs, places // outputs
        if bool((columns != columns[:, :1]).any()) or bool((rows != rows[:, :, :1]).any()):
            return None
        parts.append((columns[:, 0], rows[:, :, 0]))
    (query_columns, query_rows), (key_columns, key_rows) = parts
    heads, head_of = torch.unique(torch.cat([query_columns, key_columns], 1), dim=0, return_inverse=True)
    sequences, sequence_of = torch.unique(torch.cat([query_rows, key_rows], 1), dim=0, return_inverse=True)
    pairs = torch.unique(head_of * len(sequences) + sequence_of)
    if len(heads) * len(sequences) != left.shape[0] or len(pairs) != left.shape[0]:
        return None
    size, tokens = query_columns.shape[1], query_rows.shape[1]
    for outer in (True, False):
        orders = [_order(r, s.rows, examples, outer) for r, s in ((sequences[:, :tokens], query), (sequences[:, tokens:], key))]
        if len({len(order.pattern) for order in orders}) > 1:
            continue
        again = torch.cat([order.of(examples) for order in orders], 1)
        if torch.equal(torch.unique(again, dim=0), sequences):
            break
    else:
        return None
    return Product(
        index=index,
        query=query.site.index,
        key=key.site.index,
        query_columns=heads[:, :size],
        key_columns=heads[:, size:],
        query_rows=orders[0],
        key_rows=orders[1],
    )


def _order(sequences: Tensor, rows: int, examples: int, outer: bool) -> RowOrder:
    """The order of rows if the examples stand together (``outer``) or each row's examples do; to be checked against the sequences."""
    own = sequences < rows // examples if outer else sequences % examples == 0
    first = sequences[own.all(1)]
    return RowOrder(pattern=first if outer else first // examples, rows=rows // examples, outer=outer)
