"""The explorer: how many budgets are proven, how long that takes, how large the page is, and how quickly it moves in a browser.

Each row explores a network with random weights, scored by magnitude: by multiply-adds, and by latency where tables are given
(``--tables NAME=FILE``, from ``latprune measure -o``). Times are wall-clock seconds of this process on one thread, and milliseconds per
move of the slider in headless Chromium, layout included; both need a quiet machine.

Run: ``python benchmarks/explorer.py [--only resnet50 vit_b_16] [--tables resnet50=tables.json] [--no-times]``
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import latprune
from latprune.importance import MagnitudeConfig
from latprune.latency import LatencyTables, machine_name
from latprune.report import write_explorer
from latprune.storage import write_atomic
from latprune.zoo import VisionTransformer, cifar_resnet, resnet50

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
from chromium import Page, browser_path, open_page  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "explorer.json"
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "resnet20": (lambda: cifar_resnet(20), (1, 3, 32, 32)),
    "resnet50": (resnet50, (1, 3, 224, 224)),
    "vit_b_16": (
        lambda: VisionTransformer(patch=16, width=768, layers=12, heads=12, hidden=3072, image=224, num_classes=1000),
        (1, 3, 224, 224),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--tables", nargs="+", default=[], metavar="NAME=FILE", help="latency tables of a network")
    parser.add_argument("--points", type=int, default=120)
    parser.add_argument("--no-times", action="store_true", help="leave times out of the results: the machine is shared")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tables = dict(entry.split("=", 1) for entry in args.tables)
    found: dict[str, Any] = json.loads(args.output.read_text(encoding="utf-8")) if args.output.exists() else {}
    print(f"{'network':10} {'resource':8} {'networks':>8} {'proven':>6} {'budgets':>7} {'kB':>8} {'solving, s':>10} {'a move, ms':>10}")
    for name in args.only:
        for resource in ("flops", *(("latency",) if name in tables else ())):
            row = explored(name, resource, args.points, tables.get(name))
            shown = f"{row['solving']:10.1f} {row['move_ms'] if row['move_ms'] is not None else float('nan'):10.1f}"
            print(f"{name:10} {resource:8} {row['networks']:8} {row['proven']:6} {row['budgets']:7} {row['page_bytes'] / 1e3:8.1f} {shown}")
            if args.no_times:
                row = {key: value for key, value in row.items() if key not in ("solving", "move_ms")}
            found[f"{name} | {resource}"] = row
            write_atomic(args.output, json.dumps(found, indent=1) + "\n")


def explored(name: str, resource: str, points: int, tables: str | None) -> dict[str, Any]:
    """One row."""
    build, shape = NETWORKS[name]
    torch.manual_seed(0)
    given = LatencyTables.from_dict(json.loads(Path(tables).read_text(encoding="utf-8"))) if resource == "latency" and tables else None
    budgets = 0

    def count(text: str) -> None:
        nonlocal budgets
        if text.startswith("frontier: "):
            budgets = int(text.split(" at ")[1].split()[0])

    found = latprune.explore(
        build().eval(),
        torch.randn(shape),
        resource="latency" if given is not None else "flops",
        points=points,
        method=latprune.MDP(score=MagnitudeConfig()),
        tables=given,
        measure_latency=False,
        time_limit=None,
        name=name,
        progress=count,
    )
    with tempfile.TemporaryDirectory() as folder:
        page = write_explorer(found.record, Path(folder) / "explorer.html")
        return {
            "networks": len(found.record.points),
            "proven": sum(point.proven for point in found.record.points),
            "budgets": budgets,
            "groups": len(found.record.groups),
            "page_bytes": page.stat().st_size,
            "solving": next(stage.seconds for stage in found.record.seconds if stage.name == "solve"),
            "move_ms": moved(page),
            "machine": machine_name(),
        }


def moved(file: Path) -> float | None:
    """Milliseconds per move, the mean over all networks; None without a browser."""
    if browser_path() is None:
        return None
    with open_page() as page:
        page.size(1280, 900)
        page.go(file)
        last = int(page.run("document.getElementById('slider').max"))
        _round(page, last)  # compiles the script
        return _round(page, last)


def _round(page: Page, last: int) -> float:
    return float(
        page.run(
            "(() => { const slider = document.getElementById('slider'); const start = performance.now();"
            f" for (let index = 0; index <= {last}; index++) {{ slider.value = index; slider.dispatchEvent(new Event('input'));"
            " document.body.getBoundingClientRect(); }"
            f" return (performance.now() - start) / {last + 1}; }})()"
        )
    )


if __name__ == "__main__":
    main()
