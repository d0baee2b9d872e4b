"""Whole sequences of the products of queries and keys, for fitting them through their logits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from latprune.recovery.attention import Product, find_products, has_products
from latprune.recovery.batches import count, run_on_few, sliceable
from latprune.recovery.contract import Situation
from latprune.recovery.heads import Heads, paired_heads
from latprune.recovery.logits import LogitRows
from latprune.recovery.pairing import Pairing
from latprune.recovery.sites import Site, find_sites
from latprune.recovery.stepper import Key, Sequence_, Stepper, record_operations

__all__ = ["ProductRows", "Products"]

_SEVERAL_LENGTHS = "its sequences have several lengths: fitted to its own values"


@dataclass(slots=True, eq=False)
class ProductRows:
    """The sequences of one product: those that are fitted to and, where there are any, those that decide."""

    heads: Heads
    fitted: LogitRows
    held_out: LogitRows | None


class Products:
    """The products of queries and keys of the pruned network that can be fitted through their logits.

    Args:
        situation: The networks and the images.
        pairing: The operations of both networks.
        dense_run: Recorded run of the dense network.
        pruned_run: Recorded run of the pruned network.
        sites: The pruned network's contractions.
        rows: Rows per input of a layer at most.
        memory: Bytes that the rows of one product may take.
    """

    def __init__(
        self,
        situation: Situation,
        pairing: Pairing,
        dense_run: Sequence_,
        pruned_run: Sequence_,
        sites: list[Site],
        *,
        rows: int,
        memory: float,
    ) -> None:
        self._situation = situation
        self._pairing = pairing
        self._rows, self._memory = rows, memory
        self._examples = [count(batch) for batch in (*situation.fitted, *situation.held_out)]
        self._found: dict[int, tuple[Product, Heads]] = {}
        self.notes: dict[int, str] = {}
        """Number of a layer's operation -> why its queries or keys are not fitted through their product."""
        first = [*situation.fitted, *situation.held_out][0]
        if not sliceable(first) or not has_products(pruned_run):
            return
        few, _ = run_on_few(situation.dense, first)
        examples = count(few)
        mine = record_operations(situation.pruned, few, situation.within)
        theirs = record_operations(situation.dense, few, situation.within)
        if any([op.func for op in a.operations] != [op.func for op in b.operations] for a, b in ((mine, pruned_run), (theirs, dense_run))):
            return
        products, self.notes = find_products(mine, find_sites(mine, situation.pruned), examples)
        dense_sites = {site.index: site for site in find_sites(theirs, situation.dense)}
        # By the layers, not by the operation: attention runs another kernel where queries and values have come to differ in size.
        dense_products = {(p.query, p.key): p for p in find_products(theirs, list(dense_sites.values()), examples)[0]}
        by_index = {site.index: site for site in sites}
        self._dense_sites = dense_sites
        for product in products:
            dense = dense_products.get((pairing.dense_of.get(product.query, -1), pairing.dense_of.get(product.key, -1)))
            heads = (
                "the dense network has no such product at its place"
                if dense is None
                else paired_heads(product, dense, pairing, by_index, dense_sites)
            )
            indices = {product.query, product.key}
            if isinstance(heads, Heads) and indices & self._found.keys():
                heads = "it takes part in several products"
            if isinstance(heads, Heads) and _fitted_between(heads, pruned_run, by_index):
                heads = "what one of its queries and keys reads is fitted after the other"
            if isinstance(heads, str):
                self.notes |= {index: f"{heads}: fitted to its own values" for index in indices}
                continue
            for index in indices:
                self._found[index] = product, heads

    def of(self, site: Site) -> Heads | None:
        """The heads that a layer makes queries or keys of; None where it is fitted to its own values."""
        found = self._found.get(site.index)
        return found[1] if found is not None else None

    def rows(
        self,
        heads: Heads,
        dense: Stepper,
        pruned: Stepper,
        goals: Mapping[int, tuple[int, bool]],
        numbers: Sequence[int],
        fitted: int,
    ) -> ProductRows | None:
        """The sequences of a product; both networks are brought to the place where its first layer runs.

        Args:
            heads: The product's heads.
            dense: The dense network, its results at the goals pinned.
            pruned: The pruned network.
            goals: Number of a layer's operation -> the dense operation whose result is its target.
            numbers: Numbers of the batches that are held here, fitted ones first.
            fitted: How many of them are fitted.

        Returns:
            The sequences; None where they have several lengths, and then the two layers are fitted to their own values.
        """
        product = self._found[heads.query.index][0]
        first, last = heads.sites[0], heads.sites[-1]
        with dense.ready():
            for k in numbers:
                dense.advance(k, max(goals[site.index][0] for site in heads.sites) + 1)
        with pruned.ready():
            for k in numbers:
                pruned.advance(k, first.index)
        read = {first.index: [pruned.arguments(k)[first.inputs] for k in numbers]}
        if last is not first:
            with pruned.ready():
                read[last.index] = [pruned.peek(k, last.index)[last.inputs] for k in numbers]
        parts: list[LogitRows] = []
        generator = torch.Generator().manual_seed(self._situation.seed * 1_000_003 + 500_009 + first.index)
        share = self._share(heads, product, [len(x) for x in read[heads.query.index]])
        for k, query_x, key_x in zip(numbers, read[heads.query.index], read[heads.key.index], strict=True):
            examples = self._examples[k]
            if len(query_x) != examples * product.query_rows.rows or len(key_x) != examples * product.key_rows.rows:
                for site in heads.sites:
                    del self._found[site.index]
                    self.notes[site.index] = _SEVERAL_LENGTHS
                return None
            query_rows, key_rows = product.query_rows.of(examples), product.key_rows.of(examples)
            if share < 1:
                drawn = torch.randperm(len(query_rows), generator=generator)[: max(1, round(share * len(query_rows)))].sort().values
                query_rows, key_rows = query_rows[drawn], key_rows[drawn]
            wanted = [self._dense(site, dense.pinned(k, goals[site.index][0])) for site in (heads.query, heads.key)]
            query_rows, key_rows = query_rows.to(query_x.device), key_rows.to(key_x.device)
            parts.append(
                LogitRows(
                    query_x=query_x[query_rows],
                    key_x=key_x[key_rows],
                    query=wanted[0][query_rows][..., heads.dense_query_columns],
                    key=wanted[1][key_rows][..., heads.dense_key_columns],
                )
            )
        return ProductRows(heads=heads, fitted=_joined(parts[:fitted]), held_out=_joined(parts[fitted:]) if parts[fitted:] else None)

    def _dense(self, site: Site, value: Tensor) -> Tensor:
        """``(rows, outputs)`` of the dense layer at the place of a pruned one."""
        wide = self._dense_sites[self._pairing.dense_of[site.index]]
        for undo in reversed(wide.views):
            value = undo(value)
        return value.reshape(-1, wide.outputs)

    def _share(self, heads: Heads, product: Product, counts: list[int]) -> float:
        """Share of the sequences that gives the rows that are wanted, within the memory."""
        tokens, others = product.query_rows.pattern.shape[1], product.key_rows.pattern.shape[1]
        inputs = max(_inputs(heads.query), _inputs(heads.key))
        total = sum(counts) / product.query_rows.rows * len(product.query_rows.pattern)
        per_sequence = 4 * (
            tokens * (_inputs(heads.query) + heads.dense_query_columns.numel())
            + others * (_inputs(heads.key) + heads.dense_key_columns.numel())
        )
        wanted = min(math.ceil(max(self._rows * inputs, 4096) / min(tokens, others)), self._memory / (2 * per_sequence))
        return min(1.0, wanted / total)


def _fitted_between(heads: Heads, run: Sequence_, sites: Mapping[int, Site]) -> bool:
    """Whether the later of the two layers reads what layers make that are fitted after the first one."""
    first, last = heads.sites[0], heads.sites[-1]
    todo = [run.operations[last.index].sources[last.inputs]]
    seen: set[Key] = set()
    while todo:
        key = todo.pop()
        if key is None or key in seen:
            continue
        seen.add(key)
        for index in (key[0], *(j for j in run.written.get(key, ()) if j < last.index)):
            if index > first.index:
                if index in sites and not sites[index].reason:
                    return True
                todo += run.operations[index].sources
    return False


def _inputs(site: Site) -> int:
    assert site.weight is not None
    return int(site.weight.shape[0])


def _joined(parts: list[LogitRows]) -> LogitRows:
    joined: dict[str, Any] = {name: torch.cat([getattr(p, name) for p in parts]) for name in LogitRows.__dataclass_fields__}
    return LogitRows(**joined)
