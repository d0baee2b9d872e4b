"""Sweeps: budgets x methods x seeds x engines, one network each, resumable, summed up as accuracy against measured latency."""

from __future__ import annotations

from latprune.sweeping.cells import Cell, grid
from latprune.sweeping.rows import SweepRow, write_parquet
from latprune.sweeping.run import Sweep, read_sweep, sweep, sweep_with
from latprune.sweeping.summary import summarise

__all__ = ["Cell", "Sweep", "SweepRow", "grid", "read_sweep", "summarise", "sweep", "sweep_with", "write_parquet"]
