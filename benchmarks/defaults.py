"""What every method keeps without any training: accuracy after the cut and fresh norm statistics, by network, budget and method.

    python benchmarks/defaults.py --data DATA --cache CACHE -o benchmarks/results/defaults.json
    python benchmarks/defaults.py ... --networks mobilenet_v2 --methods mdp sp_lamp --budgets flops=80% flops=60%

DATA holds the image sets and the pretrained weights; CACHE keeps decoded images and measured latencies. Budgets are shares of the
multiply-adds, counted, or (``80%``) of the latency measured on one thread of the engine, which wants a quiet machine. Rows that the output
file has already are not run again; every row is written as it is done. The vision transformer's weights are those of
``benchmarks/train_vit.py`` (``--vit``).
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import LatpruneError
from latprune.importance import HessianConfig, MagnitudeConfig, SpLampConfig, TaylorConfig, get_criterion
from latprune.latency import machine_name
from latprune.methods import HALP, MDP, SPLAMP, GlobalThreshold, Lamp, Method, RandomChoice, Uniform
from latprune.pruning import scoring, training_threads
from latprune.storage import decode_tensors, replacing, write_atomic
from latprune.train import evaluate, recalibrate_batch_norm
from latprune.zoo import IMAGENET_NORMALISATION, ImageLoader, cifar_resnet, cifar_vit, mobilenet_v2, resnet50
from latprune.zoo.images import load_image_set
from train_vit import WEIGHTS, WIDTH

Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A trained network, and how many images it is calibrated and evaluated with."""

    build: Callable[[], nn.Module]
    weights: str
    size: int
    calibration: int
    evaluation: int

    @property
    def sets(self) -> tuple[str, str]:
        """Names of the training and the evaluation images."""
        return ("cifar10_train", "cifar10_test") if self.size == 32 else ("imagenet_train_sample", "imagenet_eval_nips17")


NETWORKS = {
    "resnet20": Network(build=lambda: cifar_resnet(20), weights="cifar10_resnet20", size=32, calibration=1024, evaluation=10000),
    "resnet56": Network(build=lambda: cifar_resnet(56), weights="cifar10_resnet56", size=32, calibration=1024, evaluation=10000),
    "cifar_vit": Network(build=lambda: cifar_vit(width=WIDTH), weights="", size=32, calibration=1024, evaluation=10000),
    "mobilenet_v2": Network(build=mobilenet_v2, weights="imagenet_mobilenet_v2_fp16", size=224, calibration=200, evaluation=1000),
    "resnet50": Network(
        build=lambda: resnet50(stride_on_first=True), weights="imagenet_resnet50_v1_fp16", size=224, calibration=100, evaluation=1000
    ),
}
METHODS: dict[str, Callable[[], Method]] = {
    "mdp": MDP,
    "sp_lamp": lambda: SPLAMP(stages=1),
    "uniform": Uniform,
    "mdp, SP-LAMP's score": lambda: MDP(score=SpLampConfig()),
    "mdp, Taylor": lambda: MDP(score=TaylorConfig()),
    "mdp, Hessian": lambda: MDP(score=HessianConfig()),
    "mdp, magnitude": lambda: MDP(score=MagnitudeConfig()),
    "halp, 1 step": lambda: HALP(stages=1),
    "lamp": Lamp,
    "global, L2": lambda: GlobalThreshold(score=MagnitudeConfig(), normalise="mean"),
    "global, Taylor": lambda: GlobalThreshold(score=TaylorConfig()),
    "global, FPGM": lambda: GlobalThreshold(score=get_criterion("fpgm"), normalise="mean"),
    "random": RandomChoice,
}
BUDGETS = ("flops=80%", "flops=60%", "80%", "60%")


def images(data: Path, cache: Path, name: str, size: int, count: int, batch: int) -> Batches:
    """``count`` images of a set, the same on every call, in the memory format in which convolutions run quickest here."""
    file = cache / f"{name}-{size}.npy"
    if not file.exists():
        pixels, labels = load_image_set(data / f"{name}.npz")
        edge = (pixels.shape[1] - size) // 2
        cache.mkdir(parents=True, exist_ok=True)
        # The pixels last: they mark the pair as complete.
        for path, array in ((cache / f"{name}-labels.npy", labels), (file, pixels[:, edge : edge + size, edge : edge + size])):
            with replacing(path) as staged, staged.open("wb") as stream:
                np.save(stream, np.ascontiguousarray(array))
    pixels, labels = np.load(file, mmap_mode="r"), np.load(cache / f"{name}-labels.npy")
    chosen = np.sort(np.random.default_rng(0).permutation(len(pixels))[:count])
    order = np.random.default_rng(1).permutation(count)
    loader = ImageLoader(pixels[chosen][order], labels[chosen][order], batch_size=batch, normalisation=IMAGENET_NORMALISATION)
    return [(x.contiguous(memory_format=torch.channels_last), y) for x, y in loader]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--vit", type=Path, default=WEIGHTS, help="weights that benchmarks/train_vit.py wrote")
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, help="all by default")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="all by default")
    parser.add_argument("--budgets", nargs="*", default=BUDGETS)
    parser.add_argument("--engine", default="openvino")
    parser.add_argument("--recover", type=int, default=0, metavar="IMAGES", help="recover on so many images too (0: norms alone)")
    parser.add_argument("--threads", type=int, default=1, help="threads of scoring and evaluation")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = json.loads(args.output.read_text()) if args.output.exists() else {"benchmark": "defaults", "dense": {}, "rows": []}

    def write() -> None:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.output, json.dumps(results, indent=1) + "\n")

    with latprune.Store(args.cache / "defaults.sqlite") as store:
        for name in args.networks or NETWORKS:
            run = Runner(args, name, store)
            for method in args.methods or METHODS:
                for budget in args.budgets:
                    if any((row["network"], row["budget"], row["method"]) == (name, budget, method) for row in results["rows"]):
                        continue
                    results["dense"].setdefault(name, {}) or results["dense"].update({name: run.dense()})
                    row = {"network": name, "budget": budget, "method": method, "machine": machine_name(), **run.row(method, budget)}
                    results["rows"].append(row)
                    write()
                    said = f"{100 * row['top1']:.2f}" if "top1" in row else f"refused: {row['refused'][:120]}"
                    recovered = f", recovered {100 * row['recovered']:.2f}" if "recovered" in row else ""
                    print(f"{name} {budget} {method}: {said}{recovered}", flush=True)
    table(results)


class Runner:
    """Prunes one network again and again; scores of one criterion are computed once."""

    def __init__(self, args: argparse.Namespace, name: str, store: latprune.Store) -> None:
        self.args, self.spec, self.store = args, NETWORKS[name], store
        self.model = self.spec.build()
        weights = args.vit if name == "cifar_vit" else args.data / "weights" / f"{self.spec.weights}.safetensors"
        self.model.load_state_dict(decode_tensors(weights.read_bytes(), source=str(weights)))
        self.model = self.model.eval().to(memory_format=torch.channels_last)
        batch = 50 if self.spec.size > 64 else 250
        train, test = self.spec.sets
        self.calibration = images(args.data, args.cache, train, self.spec.size, self.spec.calibration, batch)
        self.test = images(args.data, args.cache, test, self.spec.size, self.spec.evaluation, batch)
        self.inputs = torch.randn(1, 3, self.spec.size, self.spec.size, generator=torch.Generator().manual_seed(0))
        self.scored: dict[str, Any] = {}

    def dense(self) -> dict[str, Any]:
        """The dense network's accuracy."""
        with training_threads(self.args.threads):
            top1 = evaluate(self.model, self.test)
        return {"top1": top1, "images": self.spec.evaluation, "calibration_images": self.spec.calibration}

    def row(self, method: str, budget: str) -> dict[str, Any]:
        """One row of the table."""
        model, said = copy.deepcopy(self.model), list[str]()
        start = time.process_time()
        measured = not budget.startswith(("flops", "params"))
        try:
            with remembered(self.scored), training_threads(self.args.threads):
                pruner = latprune.Pruner(
                    model,
                    self.inputs,
                    budget=budget,
                    target=self.args.engine,
                    method=METHODS[method](),
                    store=self.store,
                    measure_latency=measured,
                    recover=False,  # nothing but the norms comes after the cut
                    progress=said.append,
                )
                try:
                    while not pruner.done:
                        pruner.step(self.calibration)
                    seconds = time.process_time() - start
                    recalibrate_batch_norm(model, self.calibration, batches=len(self.calibration))
                    kept = {"top1": evaluate(model, self.test)}
                    if self.args.recover and pruner.method.keeps_weights:
                        pruner.recover(self.calibration, images=self.args.recover)
                        kept |= {"recovered": evaluate(model, self.test), "recovery_images": self.args.recover}
                finally:
                    pruner.close()
                report = pruner.reports[-1]
                return {
                    **kept,
                    "delivered": report.measured.ratio if report.measured else self.share(pruner, report.widths),
                    "removed_blocks": sorted(pruner.cut_to.removed_blocks),
                    "status": report.solution["status"] if report.solution else "",
                    "readings": [text for text in said if text.startswith("divergence of the networks")],
                    "cpu_seconds": seconds,
                    "widths": dict(report.widths),
                }
        except LatpruneError as error:
            return {"refused": str(error)}

    def share(self, pruner: latprune.Pruner, widths: Mapping[str, int]) -> float:
        """Multiply-adds that are left, as a share."""
        return pruner.graph.macs(widths, pruner.cut_to.removed_blocks) / pruner.graph.macs(pruner.graph.dense_widths())


class remembered:  # noqa: N801
    """While open, scores of the unchanged network are taken from a dictionary where it has them."""

    def __init__(self, kept: dict[str, Any]) -> None:
        self.kept, self.plain = kept, (scoring.read, scoring.score_importance)

    def __enter__(self) -> None:
        def once(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
            def call(model: nn.Module, graph: Any, config: object, data: Any, *, loss: Any) -> Any:
                key = f"{kind} {config!r}"
                if key not in self.kept:
                    self.kept[key] = function(copy.deepcopy(model), graph, config, data, loss=loss)  # the pruner cuts its own
                return self.kept[key]

            return call

        scoring.read, scoring.score_importance = (once(k, f) for k, f in zip(("read", "score"), self.plain, strict=True))

    def __exit__(self, *_: object) -> None:
        scoring.read, scoring.score_importance = self.plain


def table(results: Mapping[str, Any]) -> None:
    """Print top-1 by network and budget (columns) and method (rows), in percent."""
    for name, dense in results["dense"].items():
        rows = [row for row in results["rows"] if row["network"] == name]
        budgets = list(dict.fromkeys(row["budget"] for row in rows))
        print(f"\n{name}, dense {100 * dense['top1']:.2f} on {dense['images']} images\n{'':24}" + "".join(f"{b:>12}" for b in budgets))
        for method in METHODS:
            found = {row["budget"]: row for row in rows if row["method"] == method}
            if found:
                cells = (f"{100 * found[b]['top1']:12.2f}" if "top1" in found.get(b, {}) else f"{'–':>12}" for b in budgets)
                print(f"{method:24}{''.join(cells)}")


if __name__ == "__main__":
    main()
