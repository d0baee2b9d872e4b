"""Labels: one integer per place of a tensor dimension, and the facts that a recorded run states about them.

While the run is recorded, facts are only collected (as arrays); they are solved together at the end, in numpy. The facts:

- *unite* ``a`` and ``b``: the two places carry the same channel;
- *bundle* ``coarse`` over ``fine``: a place that stands for several finer ones (a head and its channels); it goes exactly when all of
them go;
- *grid*: rows of places that must keep equal counts, because a later view or chunk cuts them into equal parts;
- *freeze*: the places must stay, with the reason in words; *still*: they must not go by themselves, only with what stands for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["CodeReason", "Grid", "LabelRange", "LabelSpace"]

IntArray = npt.NDArray[np.int64]


class CodeReason(str):
    """Why channels stay, where that lies in the code of the model's class: a captured program would be free of it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelRange:
    """Consecutive labels ``start .. stop`` that were made together.

    Attributes:
        start: First label.
        stop: One past the last label.
        kind: ``tensor`` (a dimension of a parameter or buffer), ``bundle`` (coarse labels) or ``pad`` (zero padding).
        tensor: Name of the tensor, or of the place of the padding.
        dim: Dimension of the tensor.
    """

    start: int
    stop: int
    kind: str
    tensor: str
    dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """``rows`` of labels, ``(rows, places)``, that must keep equal counts; ``why`` names the operation that needs it.

    ``last``: there is no milder way to keep the counts equal; where the rows cannot be tied, their channels stay.
    """

    rows: IntArray
    why: str
    last: bool = False


@dataclass(slots=True)
class LabelSpace:
    """Hands out labels and collects the facts about them."""

    size: int = 0
    ranges: list[LabelRange] = field(default_factory=list)
    pairs: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    bundles: list[tuple[IntArray, IntArray]] = field(default_factory=list)
    grids: list[Grid] = field(default_factory=list)
    merges: list[IntArray] = field(default_factory=list)
    frozen: list[tuple[IntArray, str]] = field(default_factory=list)
    still: list[tuple[IntArray, str]] = field(default_factory=list)
    _bundles: dict[bytes, torch.Tensor] = field(default_factory=dict)

    def fresh(self, count: int, kind: str, tensor: str, dim: int = 0) -> torch.Tensor:
        """``(count,)`` new labels."""
        start = self.size
        self.size += count
        self.ranges.append(LabelRange(start=start, stop=self.size, kind=kind, tensor=tensor, dim=dim))
        return torch.arange(start, self.size, dtype=torch.int64)

    def unite(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """State that ``a`` and ``b`` (broadcastable against each other) carry the same channels, place by place."""
        if a is b:
            return
        if a.shape != b.shape:
            shape = np.broadcast_shapes(tuple(a.shape), tuple(b.shape))
            a, b = a.expand(shape), b.expand(shape)
        left, right = a.reshape(-1).numpy(), b.reshape(-1).numpy()
        if left.size == right.size and np.array_equal(left, right):
            return
        self.pairs.append((left, right))

    def bundle(self, coarse: torch.Tensor, fine: torch.Tensor) -> None:
        """State that each place of ``coarse`` stands for the places of ``fine`` that it broadcasts to."""
        wide = coarse.expand_as(fine)
        self.bundles.append((wide.reshape(-1).numpy(), fine.reshape(-1).numpy()))

    def reduce(self, fine: torch.Tensor, dims: tuple[int, ...], why: str) -> torch.Tensor:
        """Coarse labels for ``fine`` reduced over ``dims`` (some of its dimensions stay); same rank, size 1 on ``dims``.

        Places that stand for the same labels get the same coarse one (windows and batch entries repeat them).
        """
        kept = [d for d in range(fine.dim()) if d not in dims]
        rows = fine.permute(*kept, *dims).reshape(int(np.prod([fine.shape[d] for d in kept])), -1).numpy()
        with np.errstate(over="ignore"):
            weights = np.arange(1, rows.shape[1] + 1, dtype=np.int64) * np.int64(-7046029254386353131)
            _, first, inverse = np.unique((rows * weights).sum(axis=1) ^ rows[:, 0], return_index=True, return_inverse=True)
        members = rows[first]
        key = members.tobytes()
        if key not in self._bundles:
            coarse = self.fresh(len(first), "bundle", why)
            self.bundle(coarse[:, None], torch.from_numpy(members))
            self._bundles[key] = coarse
        shape = [1 if d in dims else n for d, n in enumerate(fine.shape)]
        return self._bundles[key][torch.from_numpy(inverse.reshape(-1))].reshape(shape)

    def grid(self, rows: torch.Tensor, why: str) -> None:
        """State that the rows of ``rows`` ``(rows, places)`` keep equal counts."""
        if rows.shape[0] > 1 and rows.shape[1] > 0:
            self.grids.append(Grid(rows=rows.contiguous().numpy(), why=why))

    def freeze(self, labels: torch.Tensor, reason: str) -> None:
        """State that ``labels`` must stay."""
        self.frozen.append((labels.reshape(-1).numpy(), reason))


def connected(size: int, pairs: list[tuple[IntArray, IntArray]]) -> IntArray:
    """``(size,)`` smallest label of each label's connected component (min-label hooking with pointer jumping)."""
    root = np.arange(size, dtype=np.int64)
    if not pairs:
        return root
    a = np.concatenate([p[0] for p in pairs])
    b = np.concatenate([p[1] for p in pairs])
    while True:
        ra, rb = root[a], root[b]
        differ = ra != rb
        if not differ.any():
            return root
        a, b, ra, rb = a[differ], b[differ], ra[differ], rb[differ]
        low = np.minimum(ra, rb)
        np.minimum.at(root, ra, low)
        np.minimum.at(root, rb, low)
        while True:
            jumped = root[root]
            if np.array_equal(jumped, root):
                break
            root = jumped
