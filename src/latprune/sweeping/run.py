"""Runs the cells of a sweep, one after another or spread over a cluster; what is done stays done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.errors import (
    BrokenPackageError,
    BudgetInfeasibleError,
    CheckpointError,
    FileFormatError,
    LatpruneError,
    MissingExtraError,
    SolverNotApplicableError,
)
from latprune.latency import Target, get_engine
from latprune.methods import Method, get_method
from latprune.progress import Progress, listener_of, listening, speaker, stretch
from latprune.pruning.budget import Budget
from latprune.pruning.lock import locked
from latprune.pruning.result import Result
from latprune.pruning.run import prune
from latprune.report.trade_off import TradeOff, trade_off_text
from latprune.storage import write_atomic
from latprune.sweeping.cells import Cell, grid, listed
from latprune.sweeping.rows import SweepRow, write_parquet
from latprune.sweeping.settings import described, shared_settings
from latprune.sweeping.summary import summarise
from latprune.sweeping.turns import machine_turn
from latprune.train.contracts import rereadable

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Job", "Sweep", "read_sweep", "sweep", "sweep_with"]

Job = Callable[[Cell, Path], Result]
"""Prunes one cell in the folder that is given."""

PLAN, ROW, TABLE = "sweep.json", "row.json", "results.parquet"

# What the library says of a cell on purpose, and would say again.
_REFUSALS = (BudgetInfeasibleError, SolverNotApplicableError)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """What a sweep's folder says of it: its cells, and what all of them share; whether that holds more than plain values (version 2)."""

    cells: list[Cell]
    settings: dict[str, Any]
    objects: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """The rows of a sweep.

    Attributes:
        folder: Where it lies: a folder for each cell (its result, its ``row.json``) and ``results.parquet``.
        cells: All cells, in the order in which they run.
        rows: Rows of the cells that ended, in that order.
    """

    folder: Path
    cells: tuple[Cell, ...]
    rows: tuple[SweepRow, ...]

    @property
    def failed(self) -> tuple[SweepRow, ...]:
        """Cells in which something broke."""
        return tuple(row for row in self.rows if row.answer == "failed")

    def summary(self) -> list[TradeOff]:
        """One entry for each engine, method and budget: means and spreads over the seeds (:func:`~latprune.sweeping.summary.summarise`)."""
        return summarise(self.rows)

    def __str__(self) -> str:
        """The table of :meth:`summary`."""
        lines = [trade_off_text(self.summary())]
        lines += [f"{row.cell}: {row.answer}: {row.message}" for row in self.rows if row.answer != "pruned"]
        left = len(self.cells) - len(self.rows)
        return "\n".join(lines + ([f"{left} of {len(self.cells)} runs are still to come"] if left else []))


def sweep(
    build: Callable[[], nn.Module],
    example_inputs: Any,
    *,
    budgets: Iterable[str | float | Budget | Sequence[str | Budget]],
    methods: Iterable[str] | Mapping[str, str | Method] = ("mdp",),
    targets: Iterable[str] | Mapping[str, Target] | None = None,
    seeds: Iterable[int] = (0,),
    folder: str | Path,
    ray_address: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Sweep:
    """Prune fresh copies of a model for every budget, method, target and seed.

    Each cell is one call of :func:`latprune.prune` in a folder of its own, so a sweep that was killed goes on inside the cell that it was
    in when it is called again with the same arguments; cells that ended are not run again. One cell runs at a time, so nothing is measured
    while something trains; over a cluster one cell at a time on each node.

    Args:
        build: Returns the trained dense model, anew for each cell.
        example_inputs: As :func:`latprune.prune` takes them.
        budgets: Budgets, each as :func:`latprune.prune` takes one; ``"params=467K+flops=13.36M"`` is one cell that meets both.
        methods: Methods' names, or label -> name or method object.
        targets: Engines' names, or label -> target; None takes for each budget the engine that it names, else the default.
        seeds: Seeds of scoring, calibration and measuring; one row each, summed up as mean and spread.
        folder: Where everything is kept.
        ray_address: Address of a Ray cluster (``auto``, ``host:6379``, ``ray://host:10001``) to run on; its nodes must see ``folder``
            under the same path (:mod:`latprune.sweeping.cluster`). None runs here.
        progress: Called with a line for people now and then, or a listener (:mod:`latprune.progress`).
        options: Further arguments of :func:`latprune.prune`, such as ``data=``, ``evaluate=``, ``fit=`` and ``store=``.

    Returns:
        The rows; ``print(sweep)`` shows accuracy against measured latency.

    Raises:
        InvalidArgumentError: An axis is empty or has a value twice, a text is no budget, a seed is negative, or a method or an engine is
            not known.
        CheckpointError: ``folder`` holds another sweep's cells, or one of other options, or another process works in it.
        MissingExtraError: Ray is asked for and not installed.

    Example:
        >>> found = latprune.sweep(  # doctest: +SKIP
        ...     build, x, budgets=["70%", "50%"], methods=["mdp", "uniform"], seeds=[0, 1, 2], folder="sweep", data=train, evaluate=test
        ... )
        >>> print(found)  # doctest: +SKIP
    """
    labels = listed("methods", methods)
    named: Mapping[str, str | Method] = methods if isinstance(methods, Mapping) else {name: name for name in labels}
    known = {label: get_method(method) for label, method in named.items()}
    cells = grid(budgets=budgets, methods=labels, engines=listed("targets", targets) if targets is not None else None, seeds=seeds)
    places = targets if isinstance(targets, Mapping) else {cell.engine: cell.engine for cell in cells}
    for target in places.values():
        get_engine(Target.of(target).engine)  # one that nobody knows is told before the first run
    # Every run reads them, and an iterator is read once.
    options = {name: tuple(value) if isinstance(value, Iterator) and name != "data" else value for name, value in options.items()}
    if "data" in options:
        options["data"] = rereadable(options["data"], options.get("importance_batches", 16))
    settings = shared_settings(options)
    settings |= {f"method {label}": {"name": method.name, **described(method.options())} for label, method in known.items()}
    settings |= {f"target {label}": target.to_dict() for label, target in places.items() if not isinstance(target, str)}

    def job(cell: Cell, place: Path) -> Result:
        return prune(
            build(),
            example_inputs,
            budget=cell.budgets,
            target=places[cell.engine],
            method=known[cell.method],
            seed=cell.seed,
            folder=place,
            **options,
        )

    return sweep_with(job, cells, folder=folder, settings=settings, ray_address=ray_address, progress=progress)


def sweep_with(
    job: Job,
    cells: Iterable[Cell],
    *,
    folder: str | Path,
    settings: Mapping[str, Any] | None = None,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Run ``job`` for each cell; see :func:`sweep`, which makes the job.

    Args:
        job: Prunes one cell in the folder that is given.
        cells: What to run. Those of a sweep that is there already must be among them.
        folder: Where everything is kept.
        settings: What else decides the outcome, as JSON values: one that differs from the sweep's that is there is an error.
        ray_address: See :func:`sweep`.
        progress: See :func:`sweep`.

    Raises:
        CheckpointError: ``folder`` holds a sweep of other cells or settings, or another process works in it. Cells that failed hold
            nothing, and need not be among ``cells``.
    """
    progress = listener_of(progress)
    say = speaker(progress)
    place, wanted = Path(folder), tuple(cells)
    with locked(place), listening(progress), stretch("sweep", total=len(wanted), unit="runs") as work:
        _check_plan(place, wanted, json.loads(json.dumps(dict(settings or {}))))
        done = {cell: row for cell in wanted if (row := _row_of(place, cell)) is not None and row.answer != "failed"}
        left = [cell for cell in wanted if cell not in done]
        if done:
            say(f"{len(done)} of {len(wanted)} runs are done already")
            work.reached(len(done))
        if not left:  # what ended the last call may have come between the last row and the table
            _write_table(place, [done[each] for each in wanted], say)
        for cell, row in _rows(job, left, place, ray_address, say):
            path = place / cell.folder / ROW
            path.parent.mkdir(parents=True, exist_ok=True)
            row.write(path)
            done[cell] = row
            _write_table(place, [done[each] for each in wanted if each in done], say if len(done) == len(wanted) else None)
            say(f"{len(done)} of {len(wanted)}  {_line(row)}")
            work.reached(len(done))
    return read_sweep(place)


def _rows(
    job: Job, cells: Sequence[Cell], folder: Path, ray_address: str | None, say: Callable[[str], None]
) -> Iterator[tuple[Cell, SweepRow]]:
    """The cells' rows as they end."""
    if ray_address is not None:
        from latprune.sweeping.cluster import rows_on_cluster

        yield from rows_on_cluster(partial(run_cell, job), cells, folder, address=ray_address)
        return
    for cell in cells:
        with machine_turn(say):
            say(f"running {cell}")
            row = run_cell(job, cell, folder)
        yield cell, row


def run_cell(job: Job, cell: Cell, folder: Path) -> SweepRow:
    """Run one cell to its row; what goes wrong in it is its row's message, and the sweep goes on."""
    start = time.monotonic()
    try:
        result = job(cell, folder / cell.folder)
    except _REFUSALS as error:
        return SweepRow.without(cell, "refused", str(error), seconds=time.monotonic() - start)
    except LatpruneError as error:
        return SweepRow.without(cell, "failed", str(error), seconds=time.monotonic() - start)
    except Exception as error:
        return SweepRow.without(cell, "failed", f"{type(error).__name__}: {error}", seconds=time.monotonic() - start)
    return SweepRow.of(cell, result.record, seconds=time.monotonic() - start)


def read_sweep(folder: str | Path) -> Sweep:
    """The sweep in ``folder``, finished or not.

    Raises:
        FileFormatError: There is no sweep, or a file of it is not one.
    """
    place = Path(folder)
    plan = _plan(place)
    if plan is None:
        raise FileFormatError(f"{place} holds no sweep: there is no {PLAN} in it")
    rows = [row for cell in plan.cells if (row := _row_of(place, cell)) is not None]
    return Sweep(folder=place, cells=tuple(plan.cells), rows=tuple(rows))


def _plan(folder: Path) -> _Plan | None:
    """The plan of the sweep in ``folder``; None where there is none."""
    path = folder / PLAN
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_bytes())
        if data["format"] != "latprune/sweep" or data["version"] not in (1, 2):
            raise ValueError(f"it is {data['format']!r}, version {data['version']!r}; expected 'latprune/sweep', version 1 or 2")
        cells = [
            Cell(budget=str(c["budget"]), method=str(c["method"]), engine=str(c["engine"]), seed=int(c["seed"])) for c in data["cells"]
        ]
        return _Plan(cells=cells, settings=dict(data["settings"]), objects=data["version"] > 1)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is no plan of a sweep: {error}") from error


def _check_plan(folder: Path, cells: tuple[Cell, ...], settings: dict[str, Any]) -> None:
    """Write the plan, or extend the one that is there: cells may be added to a sweep, not taken away unless they failed and so hold
    nothing, and not run by other settings.
    """
    found = _plan(folder) or _Plan(cells=[], settings={}, objects=True)
    before, old = found.cells, found.settings
    gone = [cell for cell in before if cell not in cells and not _is_empty(folder, cell)]
    if gone:
        raise CheckpointError(
            f"folder '{folder}' holds a sweep with {len(gone)} other runs (the first: {gone[0]}); name them too, or choose another folder"
        )

    def comparable(name: str) -> bool:
        if name in old and name in settings:
            return True
        if name.startswith(("method ", "target ")):  # of those that one of the two sweeps does not have, nothing can differ
            return False
        return found.objects or isinstance(settings.get(name), (str, int, float, bool, type(None)))  # version 1 has none but plain ones

    changed = sorted(name for name in old.keys() | settings.keys() if old.get(name) != settings.get(name) and comparable(name))
    if before and changed:
        told = "; ".join(f"{name} was {old.get(name)!r}, is {settings.get(name)!r}" for name in changed)
        raise CheckpointError(f"folder '{folder}' holds a sweep with other settings ({told}); choose another folder")
    entries = [{"budget": c.budget, "method": c.method, "engine": c.engine, "seed": c.seed} for c in cells]
    plan = {"format": "latprune/sweep", "version": 2, "settings": {**old, **settings}, "cells": entries}
    write_atomic(folder / PLAN, json.dumps(plan, indent=1) + "\n")


def _is_empty(folder: Path, cell: Cell) -> bool:
    """Whether a cell failed and left no result, so that a sweep loses nothing without it."""
    row = _row_of(folder, cell)
    return row is not None and row.answer == "failed" and not (folder / cell.folder / "result").exists()


def _row_of(folder: Path, cell: Cell) -> SweepRow | None:
    path = folder / cell.folder / ROW
    return SweepRow.read(path) if path.exists() else None


def _write_table(folder: Path, rows: list[SweepRow], say: Callable[[str], None] | None) -> None:
    try:
        write_parquet(rows, folder / TABLE)
    except (BrokenPackageError, MissingExtraError) as error:
        if say is not None:
            say(f"{TABLE} is not written ({error}); the rows lie in each run's {ROW}")


def _line(row: SweepRow) -> str:
    if row.answer != "pruned":
        return f"{row.cell}: {row.answer}: {row.message}"
    parts = [f"{row.share:.1%} of the budget" if row.share is not None else ""]
    parts += [f"{row.ratio:.1%} of the dense latency" if row.ratio is not None else ""]
    parts += [f"accuracy {row.accuracy:.2%}" if row.accuracy is not None else ""]
    return f"{row.cell}: {', '.join(part for part in parts if part)}"
