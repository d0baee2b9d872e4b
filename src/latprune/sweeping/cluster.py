"""A sweep over a Ray cluster: one cell at a time on each node, so that nothing is measured beside another cell's training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from latprune.latency.remote.ray_cluster import connect, count_devices, one_line, ray_package
from latprune.sweeping.cells import Cell
from latprune.sweeping.rows import SweepRow

__all__ = ["LABEL", "rows_on_cluster"]

LABEL = "latprune"
"""Resource that a node offers once (``ray start --resources='{"latprune": 1}'``): it then takes one cell at a time."""


def rows_on_cluster(
    run: Callable[[Cell, Path], SweepRow], cells: Sequence[Cell], folder: Path, *, address: str
) -> Iterator[tuple[Cell, SweepRow]]:
    """The cells' rows as they end; a cell whose node is lost fails, and is run again with the sweep.

    Args:
        run: Runs one cell to its row.
        cells: What to run.
        folder: The sweep's folder, which every node must see under the same path.
        address: ``auto``, ``host:port`` or ``ray://host:port``.

    Raises:
        EngineError: Nobody answers at the address, or no node offers the resource ``latprune``.
        MissingExtraError: Ray is not installed.
    """
    ray = ray_package()
    connect(ray, address)
    count_devices(ray, LABEL)

    @ray.remote(num_cpus=0, max_retries=0, resources={LABEL: 1})  # type: ignore[untyped-decorator]
    def task(cell: Cell, place: Path) -> SweepRow:
        return run(cell, place)

    running: dict[Any, Cell] = {task.remote(cell, folder.resolve()): cell for cell in cells}
    try:
        while running:
            ended, _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(ended[0])
            try:
                yield cell, ray.get(ended[0])
            except ray.exceptions.RayError as error:
                yield cell, SweepRow.without(cell, "failed", one_line(error), seconds=0.0)
    finally:
        for reference in running:
            ray.cancel(reference)
