"""How methods go to their budget: SP-LAMP's widths stage by stage, MDP in 1, 10 and 30 steps, and SMCP's masks while it trains.

    python benchmarks/trajectories.py --data DATA --output benchmarks/results/trajectories.json --picture docs/images/trajectories.svg

- ``sp_lamp``: ResNet-56 in ten stages (the paper's figure 3): each stage's limit and widths, and the accuracy with norms measured again.
- ``mdp``: ResNet-20 with blocks in 1, 10 and 30 steps on the same score: widths, blocks, accuracy as cut and with norms measured again.
- ``smcp``: ResNet-20, masks that are solved for again while it trains on a part of an epoch: how many channels went and how many came back
  at each solution. That training keeps checkpoints in ``--work``.

Half of the multiply-adds, counted, so that no machine decides anything; ``--budget 50% --engine onnxruntime`` goes by measured latency, and
``--predictor FILE`` reads contributions from a kernel predictor. Without training SP-LAMP and MDP show what is chosen, not what accuracy
the papers reach. Each row is written as it ends, and a row that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import latprune
from latprune.graph.narrowing import without_blocks
from latprune.importance import TaylorConfig
from latprune.latency import KernelPredictor, Store, machine_name
from latprune.methods import MDP, SMCP, SPLAMP, Method, SoftMasks
from latprune.pruning import driver_of
from latprune.report import new_figure, save_figure
from latprune.report.figures import ACCENT, INK, KEPT, SOFT
from latprune.storage import decode_tensors, write_atomic
from latprune.train import Recipe, evaluate, finetune, recalibrate_batch_norm
from latprune.train.batches import FirstBatches
from latprune.zoo import cifar10_test, cifar10_train, cifar_resnet

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ROWS: dict[str, tuple[int, Method]] = {
    "sp_lamp, 10 stages": (56, SPLAMP(stages=10)),
    "mdp, 1 step": (20, MDP(score=TaylorConfig())),
    "mdp, 10 steps": (20, MDP(score=TaylorConfig(), stages=10)),
    "mdp, 30 steps": (20, MDP(score=TaylorConfig(), stages=30)),
    "smcp": (20, SMCP(masks=SoftMasks(every=5))),
}
BATCH = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder with cifar10_train.npz, cifar10_test.npz and weights/")
    parser.add_argument("--budget", default="flops=50%", help="default: %(default)s; 50%% is of the measured latency")
    parser.add_argument("--engine", default="onnxruntime", help="engine of a budget on latency (default: %(default)s)")
    parser.add_argument("--predictor", help="kernel predictor of that engine, in place of tables")
    parser.add_argument("--row", action="append", choices=list(ROWS), help="rows to run (default: all); may be repeated")
    parser.add_argument("--score-batches", type=int, default=8, help=f"batches of {BATCH} to score with (default: %(default)s)")
    parser.add_argument("--norm-batches", type=int, default=8, help="batches to measure norms again with (default: %(default)s)")
    parser.add_argument(
        "--stage-images", type=int, default=2000, help="test images after each stage; the end sees all (default: %(default)s)"
    )
    parser.add_argument("--train-batches", type=int, default=100, help="batches that SMCP trains for (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", default="runs/trajectories", help="folder of checkpoints and of the latency store (default: %(default)s)")
    parser.add_argument("--output", type=Path, default="benchmarks/results/trajectories.json")
    parser.add_argument("--picture", type=Path, help="where to draw them (.svg, .png, .pdf)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows: list[dict[str, Any]] = json.loads(args.output.read_text(encoding="utf-8"))["rows"] if args.output.exists() else []
    for name in args.row or ROWS:
        if not any(row["name"] == name and row["budget"] == args.budget for row in rows):
            rows.append(run(args, name))
            args.output.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.output, json.dumps({"benchmark": "trajectories", "rows": rows}, indent=1) + "\n")
    rows = [row for row in rows if row["budget"] == args.budget]
    for row in rows:
        print("\n".join(lines(row)), flush=True)
    if args.picture:
        print(f"wrote {draw(rows, args.picture)}")


def run(args: argparse.Namespace, name: str) -> dict[str, Any]:
    """One row: a method on its way."""
    depth, method = ROWS[name]
    model = cifar_resnet(depth)
    weights = Path(args.data) / "weights" / f"cifar10_resnet{depth}.safetensors"
    model.load_state_dict(decode_tensors(weights.read_bytes(), source=str(weights)))
    train, test = cifar10_train(args.data, batch_size=BATCH), cifar10_test(args.data)
    start, cpu = time.perf_counter(), time.process_time()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    with Store(Path(args.work) / "latency.sqlite") as store:
        pruner = latprune.Pruner(
            model.eval(),
            torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)),
            budget=args.budget,
            target=args.engine,
            method=method,
            predictor=KernelPredictor.load(args.predictor) if args.predictor else None,
            store=store,
            seed=0,
        )
        dense = pruner.limits.dense
        row: dict[str, Any] = {
            "name": name,
            "network": f"resnet{depth}",
            "budget": args.budget,
            "machine": machine_name(),
            "groups": {group.name: {"units": group.units, "dense": group.columns} for group in pruner.graph.groups.values()},
        }
        if isinstance(method.schedule, SoftMasks):
            row |= {"training": trained(args, pruner, train), "batch": BATCH, "train_batches": args.train_batches}
        stages = []
        try:
            while not pruner.done:
                pruner.step(train, batches=args.score_batches)
                stages.append(stage(args, pruner, dense, train, test))
                print(f"{name}: stage {pruner.stage} of {pruner.stages}", flush=True)
        finally:
            pruner.close()
    row |= {"stages": stages, "cut": evaluate(model.eval(), test)}
    recalibrate_batch_norm(model, train, batches=args.norm_batches)
    return row | {
        "norms": evaluate(model.eval(), test),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
    }


def stage(args: argparse.Namespace, pruner: latprune.Pruner, dense: float, train: Any, test: Any) -> dict[str, Any]:
    """What a stage left: its limit as a share of dense, the network, and for SP-LAMP its accuracy with norms measured again."""
    report, model = pruner.reports[-1], pruner.model
    found: dict[str, Any] = {
        "limit": report.limit / dense,
        "predicted": report.predicted / dense,
        "macs": pruner.graph.macs(pruner.widths, tuple(pruner.selection.removed_blocks)) / pruner.graph.macs(pruner.graph.dense_widths()),
        "widths": {group: pruner.widths[group] for group in without_blocks(pruner.graph, pruner.selection.removed_blocks).groups},
        "removed_blocks": sorted(pruner.selection.removed_blocks),
    }
    if isinstance(pruner.method, SPLAMP):
        before = {name: value.clone() for name, value in model.state_dict().items()}
        recalibrate_batch_norm(model, train, batches=args.norm_batches)
        some = FirstBatches(test, -(-args.stage_images // test.batch_size))
        found |= {"accuracy": evaluate(model.eval(), some), "images": min(len(some) * test.batch_size, 10_000)}
        model.load_state_dict(before)
    return found


def trained(args: argparse.Namespace, pruner: latprune.Pruner, train: Any) -> list[dict[str, Any]]:
    """Train under masks that move, and tell what each solution masked and brought back."""
    drivers: list[Any] = []

    def attach(optimizer: torch.optim.Optimizer, steps: int) -> Any:
        drivers.append(driver_of(pruner, optimizer, steps))
        return drivers[-1]

    finetune(
        pruner.model,
        FirstBatches(train, args.train_batches),
        Recipe(epochs=1, learning_rate=0.01, weight_decay=5e-4),
        driver=attach,
        checkpoint_dir=Path(args.work) / f"smcp-{args.budget.strip('%').replace('=', '-')}-{args.train_batches}",
    )
    found, masked = [], 0
    for change in drivers[-1].changes:
        found.append(
            {
                "step": change.step,
                "limit": change.limit / pruner.limits.dense,
                "masked": change.masked,
                "went": change.masked - masked + change.returned,
                "returned": change.returned,
            }
        )
        masked = change.masked
    return found


def kept(row: dict[str, Any], stage: dict[str, Any]) -> dict[str, float]:
    """Group -> share of its channels that a stage kept; 0 where its block is gone."""
    return {name: stage["widths"].get(name, 0) / group["dense"] for name, group in row["groups"].items()}


def lines(row: dict[str, Any]) -> list[str]:
    """A row as text."""
    found = [
        f"{row['name']} on {row['network']}, {row['budget']}: cut {100 * row['cut']:.2f} %, norms measured again "
        f"{100 * row['norms']:.2f} %, {row['parameters'] / 1e3:.0f}K parameters, {row['cpu_seconds']:.0f} CPU seconds"
    ]
    for update in row.get("training", ()):
        found.append(
            f"  step {update['step']:4d}: limit {100 * update['limit']:5.1f} %, {update['went']:3d} went, "
            f"{update['returned']:3d} came back, {update['masked']:3d} masked"
        )
    for number, left in enumerate(row["stages"], 1):
        accuracy = f", accuracy {100 * left['accuracy']:.2f} %" if "accuracy" in left else ""
        found.append(
            f"  stage {number:2d}: limit {100 * left['limit']:5.1f} %, multiply-adds {100 * left['macs']:5.1f} %, "
            f"{sum(left['widths'].values())} channels, {len(left['removed_blocks'])} blocks gone{accuracy}"
        )
    widths = " ".join(f"{name}:{width}" for name, width in row["stages"][-1]["widths"].items())
    return [*found, f"  widths at the end: {widths}"]


def draw(rows: list[dict[str, Any]], path: Path) -> Path:
    """Left: SP-LAMP's widths by stage. Middle: MDP's by number of steps (a dash: its block is gone). Right: SMCP's masks in training."""
    by_name = {row["name"]: row for row in rows}
    figure = new_figure(13.5, 5.2)
    left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1.1))
    staged = by_name["sp_lamp, 10 stages"]
    dense = [dict.fromkeys(staged["groups"], 1.0)]
    columns = dense + [kept(staged, entry) for entry in staged["stages"]]
    shares(columns, ["dense", *map(str, range(1, len(columns)))], left)
    left.set_xlabel("stage", fontsize=8)
    left.set_title("SP-LAMP on ResNet-56: share of channels kept, by stage", fontsize=9, loc="left")
    steps = [row for row in rows if row["name"].startswith("mdp")]
    ends = [kept(row, row["stages"][-1]) for row in steps]
    shares(ends, [f"{row['name'].removeprefix('mdp, ')}\n{100 * row['norms']:.1f} %" for row in steps], middle)
    middle.set_xlabel("steps; accuracy with norms measured again", fontsize=8)
    middle.set_title("MDP on ResNet-20: share of channels kept, at the end", fontsize=9, loc="left")
    updates = by_name["smcp"]["training"]
    places = [update["step"] for update in updates]
    right.bar(places, [update["went"] for update in updates], width=3.4, color=KEPT, label="went")
    right.bar(places, [-update["returned"] for update in updates], width=3.4, color=ACCENT, label="came back")
    right.plot(places, [update["masked"] for update in updates], color=SOFT, linewidth=1.2, label="masked in all")
    right.axhline(0, color=SOFT, linewidth=0.6)
    right.legend(fontsize=7, frameon=False)
    right.set_xlabel("optimizer step", fontsize=8)
    right.tick_params(labelsize=7)
    right.set_title("SMCP on ResNet-20: channels at each solution", fontsize=9, loc="left")
    for side in ("top", "right"):
        right.spines[side].set_visible(False)
    return save_figure(figure, path)


def shares(columns: list[dict[str, float]], labels: list[str], axes: Axes) -> None:
    """A table of shares, the more the darker: a row for each group, a column for each network."""
    names = list(columns[0])
    axes.pcolormesh([[column[name] for column in columns] for name in names], cmap="Blues", vmin=0.0, vmax=1.25)
    for y, name in enumerate(names):
        for x, column in enumerate(columns):
            text = f"{100 * column[name]:.0f}" if column[name] else "–"
            color = "white" if column[name] > 0.55 else INK
            axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=5.5, color=color)
    axes.set_xticks([x + 0.5 for x in range(len(columns))], labels, fontsize=7)
    axes.set_yticks([y + 0.5 for y in range(len(names))], names, fontsize=6, family="monospace")
    axes.invert_yaxis()
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


if __name__ == "__main__":
    main()
