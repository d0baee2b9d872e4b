"""The heads of a product of queries and keys in both networks: which dense places each of the pruned ones kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from latprune.recovery.attention import Product
from latprune.recovery.pairing import Pairing
from latprune.recovery.sites import Site

__all__ = ["Heads", "paired_heads"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heads:
    """The heads of one product in both networks.

    Attributes:
        query: The layer of the queries in the pruned network.
        key: The layer of the keys; may be the same.
        query_columns: ``(heads, size)`` output columns of the pruned query layer.
        key_columns: ``(key heads, size)`` output columns of the pruned key layer.
        dense_query_columns: ``(heads, dense size)`` output columns of the dense query layer.
        dense_key_columns: ``(key heads, dense size)`` output columns of the dense key layer.
        query_kept: ``(heads, size)`` which of a head's dense places its columns are.
        key_kept: ``(key heads, size)`` the same for the keys.
        key_of: ``(heads,)`` the key head that each head reads.
        query_factor: ``(heads,)`` factors that surgery put on the queries (attention keeps its dense scale).
        key_factor: ``(key heads,)`` the same for the keys.
    """

    query: Site
    key: Site
    query_columns: Tensor
    key_columns: Tensor
    dense_query_columns: Tensor
    dense_key_columns: Tensor
    query_kept: Tensor
    key_kept: Tensor
    key_of: Tensor
    query_factor: Tensor
    key_factor: Tensor

    @property
    def whole(self) -> bool:
        """Whether all heads that are left kept their size."""
        return self.query_columns.shape[1] == self.dense_query_columns.shape[1]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The layers, in the order in which they run."""
        return tuple(sorted({s.index: s for s in (self.query, self.key)}.values(), key=lambda site: site.index))

    def columns(self, site: Site) -> Tensor:
        """``(columns,)`` output columns of a layer that go through the product."""
        mine = [c.reshape(-1) for s, c in ((self.query, self.query_columns), (self.key, self.key_columns)) if s.index == site.index]
        return torch.cat(mine)

    def other_columns(self, site: Site) -> Tensor:
        """``(columns,)`` output columns of a layer that do not go through the product (the values of a packed projection)."""
        own = torch.zeros(site.outputs, dtype=torch.bool)
        own[self.columns(site)] = True
        return (~own).nonzero().reshape(-1)


def paired_heads(product: Product, dense: Product, pairing: Pairing, sites: dict[int, Site], dense_sites: dict[int, Site]) -> Heads | str:
    """The heads of a product beside those of the same product in the dense network.

    Args:
        product: The pruned network's.
        dense: The dense network's at the same place.
        pairing: The operations of both networks.
        sites: The pruned network's contractions by their operation.
        dense_sites: The dense network's.

    Returns:
        The heads, or why the product cannot be fitted.
    """
    sides = []
    for mine, theirs, columns, dense_columns in (
        (product.query, dense.query, product.query_columns, dense.query_columns),
        (product.key, dense.key, product.key_columns, dense.key_columns),
    ):
        site, wide = sites[mine], dense_sites[theirs]
        if site.reason:
            return site.reason
        if pairing.dense_of.get(site.index) != wide.index or pairing.dense_of.get(site.compared) != wide.compared:
            return "the dense network has no operation at its place"
        if site.fixed_at is not None or (not site.has_constant and bool((site.rescale()[1] != 0).any())):
            return "its bias cannot change"
        mask = pairing.mask(wide.compared)
        if mask is not None and sum(n > 1 for n in mask.shape) > 1:
            return "its channels lie on several dimensions of its result"
        left = torch.arange(wide.outputs) if mask is None else mask.reshape(-1).nonzero().reshape(-1)
        if len(left) != site.outputs:
            return f"the dense result has {len(left)} kept channels at its place, the layer {site.outputs}"
        unique, head_of = torch.unique(columns, dim=0, return_inverse=True)
        wide_unique, wide_of = torch.unique(dense_columns, dim=0, return_inverse=True)
        place_of = torch.full((wide.outputs, 2), -1)
        for number, row in enumerate(wide_unique):
            place_of[row] = torch.stack([torch.full_like(row, number), torch.arange(len(row))], 1)
        found = place_of[left[unique]]  # (heads, size, (dense head, place))
        if bool((found < 0).any()) or bool((found[:, :, 0] != found[:, :1, 0]).any()):
            return "its heads are not parts of the dense network's heads"
        factors = pairing.output_scale(site)
        factor = torch.ones(unique.shape, dtype=torch.float64) if factors is None else factors[unique]
        if bool((factor != factor[:, :1]).any()):
            return "the places of a head carry factors of their own"
        sides.append((site, unique, head_of, wide_unique[found[:, 0, 0]], found[:, :, 1], factor[:, 0]))
    (query, query_columns, _, dense_query, query_kept, query_factor), (key, key_columns, key_of, dense_key, key_kept, key_factor) = sides
    key_of = key_of[sides[0][2].argsort()]
    if not torch.equal(query_kept, key_kept[key_of]):
        return "its queries and keys kept different places of a head"
    return Heads(
        query=query,
        key=key,
        query_columns=query_columns,
        key_columns=key_columns,
        dense_query_columns=dense_query,
        dense_key_columns=dense_key,
        query_kept=query_kept,
        key_kept=key_kept,
        key_of=key_of,
        query_factor=query_factor,
        key_factor=key_factor,
    )
