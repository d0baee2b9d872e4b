"""Latency on the engine that will run the network: engines, the measuring protocol, tables and the store."""

from __future__ import annotations

from latprune.latency.engines import (
    CompiledNetwork,
    Engine,
    KernelTime,
    available_engines,
    engine_problems,
    get_engine,
    register_engine,
)
from latprune.latency.machine import machine_name
from latprune.latency.measuring.context import target_context
from latprune.latency.measuring.design import DesignPoint, design_points
from latprune.latency.measuring.protocol import FixedRuns, FixedRunsMeasurement, Measurement, measure, measure_fixed_runs
from latprune.latency.measuring.scenarios import (
    Offline,
    OfflineMeasurement,
    SingleStream,
    SPLampProtocol,
    Timing,
    measure_offline,
    time_network,
)
from latprune.latency.measuring.signature import kernel_signature, network_fingerprint
from latprune.latency.predicting.predictor import KernelPrediction, KernelPredictor
from latprune.latency.predicting.predictor_training import train_predictor
from latprune.latency.predicting.sweep import SweepProgress, sweep_kernels
from latprune.latency.remote.fanout import FanoutProgress, sample_on_cluster
from latprune.latency.remote.kit import import_kit_results, write_kit, write_kit_again
from latprune.latency.samples import ContextInfo, KernelSample, NetworkSample
from latprune.latency.storing.exchange import export_samples, import_samples, merge_stores, read_samples
from latprune.latency.storing.store import Store, default_store_path
from latprune.latency.tabulating.build import TableProgress, build_tables, stored_tables
from latprune.latency.tabulating.surface import SizeSurface, fit_surface
from latprune.latency.tabulating.tables import KernelTable, LatencyTables, Residual, TableStats
from latprune.latency.tabulating.unary import MeasuredContributions, measure_unary_contributions, unary_contributions
from latprune.latency.target import PRECISIONS, Target

__all__ = [
    "PRECISIONS",
    "CompiledNetwork",
    "ContextInfo",
    "DesignPoint",
    "Engine",
    "FanoutProgress",
    "FixedRuns",
    "FixedRunsMeasurement",
    "KernelPrediction",
    "KernelPredictor",
    "KernelSample",
    "KernelTable",
    "KernelTime",
    "LatencyTables",
    "MeasuredContributions",
    "Measurement",
    "NetworkSample",
    "Offline",
    "OfflineMeasurement",
    "Residual",
    "SPLampProtocol",
    "SingleStream",
    "SizeSurface",
    "Store",
    "SweepProgress",
    "TableProgress",
    "TableStats",
    "Target",
    "Timing",
    "available_engines",
    "engine_problems",
    "build_tables",
    "default_store_path",
    "design_points",
    "export_samples",
    "fit_surface",
    "get_engine",
    "import_kit_results",
    "import_samples",
    "kernel_signature",
    "machine_name",
    "measure",
    "measure_fixed_runs",
    "measure_offline",
    "measure_unary_contributions",
    "merge_stores",
    "network_fingerprint",
    "read_samples",
    "register_engine",
    "sample_on_cluster",
    "stored_tables",
    "sweep_kernels",
    "target_context",
    "time_network",
    "train_predictor",
    "unary_contributions",
    "write_kit",
    "write_kit_again",
]
