"""A plausible record of a pruned ResNet-56, for the tests of saving and reporting."""

from __future__ import annotations

from typing import Any

from latprune.export.record import ResultRecord

__all__ = ["sample_dict", "sample_record"]


def _latency(name: str, ms: float, ratio: float) -> dict[str, Any]:
    return {
        "name": name,
        "ms": ms,
        "low": ms * 0.994,
        "high": ms * 1.007,
        "ratio": ratio,
        "ratio_low": ratio * 0.996,
        "ratio_high": ratio * 1.003,
        "reference": "dense",
        "spread": 0.031,
        "runs": 2400,
        "rounds": 60,
        "drift": 0.002,
        "converged": True,
        "tolerance": 0.01,
    }


def sample_dict(**changes: Any) -> dict[str, Any]:
    """The record as parsed JSON, with top-level ``changes``."""
    blocks = [f"layer{stage}.{index}" for stage in (1, 2, 3) for index in range(9)]
    removed = ["layer1.3", "layer1.6", "layer2.4", "layer3.8"]
    groups: list[dict[str, Any]] = [
        {"name": name, "dense": width, "kept": width - 4, "kind": "channels", "rows": 1, "blocks": []}
        for name, width in (("conv1", 16), ("layer2.0.conv2", 32), ("layer3.0.conv2", 64))
    ]
    for index, block in enumerate(blocks):
        width = 16 * 2 ** (int(block[5]) - 1)
        kept = 0 if block in removed else max(4, width * (3 + index % 5) // 8)
        groups.append({"name": f"{block}.conv1", "dense": width, "kept": kept, "kind": "channels", "rows": 1, "blocks": [block]})
    data: dict[str, Any] = {
        "format": "latprune/result",
        "version": 1,
        "model": {
            "name": "cifar_resnet",
            "constructor": "latprune.zoo:cifar_resnet",
            "arguments": {"depth": 56},
            "inputs": [{"shape": [1, 3, 32, 32], "dtype": "float32", "name": None}],
            "tensors": {"conv1.weight": [16, 3, 3, 3]},
        },
        "method": {"name": "mdp", "options": {"stages": 1}},
        "target": {"engine": "openvino", "device": "cpu", "threads": 1, "batch": 1, "precision": "fp32"},
        "budget": {"text": "50%", "resource": "latency", "value": 50.0, "unit": "%", "limit": 1.6},
        "dense": {"parameters": 853018, "macs": 125485696.0, "latency": _latency("dense", 3.2, 1.0), "accuracy": 0.9339},
        "pruned": {"parameters": 412345, "macs": 60112233.0, "latency": _latency("pruned", 1.57, 0.4906), "accuracy": 0.9212},
        "groups": groups,
        "blocks": blocks,
        "blocks_removed": removed,
        "edits": [],
        "problem": {"format": "latprune/problem", "version": 1, "variables": [{"name": "conv1"}], "gains": [], "costs": []},
        "solution": {
            "format": "latprune/solution",
            "version": 1,
            "solver": "exact",
            "status": "optimal",
            "assignment": {"conv1": 12},
            "gain": 41.250001,
            "bound": 41.250001,
            "gap": 0.0,
            "costs": {"latency": 1.58},
            "seconds": 0.21,
        },
        "predicted_ms": 1.58,
        "corrections": [
            {"iteration": 0, "predicted_ms": 1.6, "measured_ms": 1.66, "limit_ms": 1.6},
            {"iteration": 1, "predicted_ms": 1.58, "measured_ms": 1.575, "limit_ms": 1.59},
        ],
        "accuracies": [
            {"stage": "dense", "accuracy": 0.9339, "epoch": None},
            {"stage": "pruned", "accuracy": 0.3127, "epoch": None},
            {"stage": "fine-tuned", "accuracy": 0.9051, "epoch": 1.0},
            {"stage": "fine-tuned", "accuracy": 0.9148, "epoch": 2.0},
            {"stage": "fine-tuned", "accuracy": 0.9212, "epoch": 3.0},
        ],
        "stages": [
            {"name": "trace", "seconds": 0.31},
            {"name": "measure", "seconds": 41.5},
            {"name": "score", "seconds": 12.2},
            {"name": "solve", "seconds": 0.44},
            {"name": "surgery", "seconds": 0.08},
            {"name": "fine-tune", "seconds": 215.0},
            {"name": "verify", "seconds": 22.6},
        ],
        "equality": {"max_abs_error": 3.1e-6, "max_rel_error": 4.4e-7},
        "notes": ["group 'linear' stays whole: it is the model's output"],
        "verifications": [
            {
                "created": "2026-01-02T03:10:00+00:00",
                "target": {"engine": "openvino", "device": "cpu", "threads": 1, "batch": 1, "precision": "fp32"},
                "dense": _latency("dense", 3.22, 1.0),
                "pruned": _latency("pruned", 1.59, 0.494),
                "accuracy": None,
                "met": True,
            }
        ],
        "provenance": {
            "created": "2026-01-02T03:04:05+00:00",
            "versions": {"python": "3.11.7", "latprune": "0.1.0", "torch": "2.13.0", "openvino": "2026.4.1"},
            "platform": "Linux-x86_64",
            "processor": "A processor",
            "seed": 0,
            "command": "latprune prune --budget 50%",
            "weights_sha256": None,
        },
    }
    return data | changes


def sample_record(**changes: Any) -> ResultRecord:
    """The record itself, with top-level ``changes``."""
    return ResultRecord.from_dict(sample_dict(**changes))
