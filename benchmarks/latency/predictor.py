"""The predictor on a network family that it never saw: share of kernels and of whole networks within +-10 % and +-20 %, per engine.

For each model in turn, a predictor is trained on the measured networks of all the others and asked about this one's kernels and networks.
Networks come from the store; models that it does not hold yet are measured first.

    python benchmarks/latency/predictor.py --engines openvino --store latency.sqlite --output benchmarks/results/latency-predictor.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from models import MODELS

from latprune.graph import trace
from latprune.latency import Store, Target, build_tables, machine_name, network_fingerprint, target_context, train_predictor
from latprune.latency.features import family_of
from latprune.latency.fitting import timer_overhead


def shares(errors: list[float]) -> dict[str, float]:
    size = np.abs(np.asarray(errors))
    return {
        "count": len(errors),
        "mean_absolute": float(size.mean()),
        "within_10": float((size <= 0.1).mean()),
        "within_20": float((size <= 0.2).mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet56", "mobilenet_v2", "resnet50"], choices=list(MODELS))
    parser.add_argument("--engines", nargs="+", default=["openvino", "onnxruntime"])
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    print(
        f"{'engine':12} {'never saw':13} {'kernels':>8} {'<= 10 %':>8} {'<= 20 %':>8} {'networks':>8} {'<= 10 %':>8} {'<= 20 %':>8} "
        f"{'mean':>7}"
    )
    with Store(args.store) as store:
        for engine in args.engines:
            target = Target(engine=engine)
            context = target_context(target)
            graphs, networks = {}, {}
            for name in args.models:
                build, shape = MODELS[name]
                model, x = build().eval(), torch.randn(*shape)
                graphs[name] = trace(model, x)
                build_tables(model, graphs[name], x, target, store=store)
                networks[name] = store.networks(context, network_fingerprint(list(graphs[name].kernels.values()), x, target))
            for name in args.models:
                known = [sample for other in args.models if other != name for sample in networks[other]]
                predictor = train_predictor(context, known)
                timer = timer_overhead(networks[name])
                level = float(np.median([sample.reference_ms for sample in networks[name]]))
                kernels, skipped = [], 0
                for sample in networks[name]:
                    for kernel in sample.kernels:
                        spent = max(kernel.ms - timer * kernel.steps, 0.25 * kernel.ms) * level / sample.reference_ms
                        # Kernels of a few microseconds are below what a profile can tell apart.
                        if family_of(kernel.signature) not in predictor.forests or spent < 0.002:
                            skipped += 1
                            continue
                        kernels.append(predictor.kernel(kernel.signature, kernel.sizes).ms / spent - 1)
                wholes = []
                if all(family_of(kernel.signature) in predictor.forests for kernel in networks[name][0].kernels):
                    for sample in networks[name]:
                        assert sample.ms is not None
                        found = predictor.network(graphs[name].kernels.values(), sample.widths, sample.removed).ms
                        wholes.append(found / (sample.ms * level / sample.reference_ms) - 1)
                row = {
                    "engine": engine,
                    "engine_version": context.version,
                    "never_saw": name,
                    "trained_on": [other for other in args.models if other != name],
                    "kernels": shares(kernels),
                    "kernels_skipped": skipped,
                    "networks": shares(wholes) if wholes else None,
                }
                rows.append(row)
                part, whole = row["kernels"], row["networks"]
                text = (
                    f"{whole['count']:>8} {whole['within_10']:>8.0%} {whole['within_20']:>8.0%} {whole['mean_absolute']:>7.1%}"
                    if whole
                    else "   (a family of its kernels was in no other model)"
                )
                print(
                    f"{engine:12} {name:13} {part['count']:>8} {part['within_10']:>8.0%} {part['within_20']:>8.0%} {text}",
                    flush=True,
                )
    if args.output:
        document = {"benchmark": "latency-predictor", "machine": machine_name(), "rows": rows}
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
