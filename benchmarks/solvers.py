"""The solvers side by side on the problems of known networks: proof, gain, CPU seconds, memory.

    python benchmarks/solvers.py -o benchmarks/results/solvers.json

Every solve runs in a process of its own with one thread, one after another, the solvers of one problem in turn. CPU seconds are those of
the solve (child processes included, loading excluded), memory is the peak of that process without its children. Every answer is
re-evaluated from the raw tables. ``--only main,frontier`` picks sections; sections that are not run keep their rows in the output file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FRACTIONS = (0.7, 0.5, 0.3, 0.15)
SECTIONS = ("main", "jobs", "rivals", "knapsacks", "limits", "frontier")
EVERY = ("exact", "highs", "mindtpy", "group-knapsack", "knapsack", "greedy", "uniform")
Row = dict[str, Any]


def cpu_seconds() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


def peak_kilobytes() -> int:
    """Peak memory of this process. ``ru_maxrss`` would count the parent that it was started from."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM:"))


def solve_file(path: str, solver: str, time_limit: float | None, points: int | None) -> Row:
    """One solve (or frontier) in this process."""
    from latprune.errors import LatpruneError
    from latprune.problem import Problem
    from latprune.solve import GroupKnapsack, SolverError, solve, solve_frontier, solver_named

    problem = Problem.read(path)
    problem.evaluate({v.name: v.choices[-1] for v in problem.variables})
    chosen = GroupKnapsack(units=20_000) if solver == "group-knapsack-20000" else solver_named(solver)
    start = cpu_seconds()
    try:
        if points is not None:
            found = solve_frontier(problem, problem.costs[0].name, points=points, solver=chosen)
            row: Row = {"status": [p.solution.status for p in found.points].count("optimal"), "points": points}
            gains = [p.solution.gain for p in found.points]
            row["monotone"] = all(a <= b for a, b in zip(gains, gains[1:], strict=False))
        else:
            solution = solve(problem, chosen, time_limit=time_limit)
            row = {"status": solution.status, "gain": solution.gain, "bound": solution.bound, "gap": solution.gap, "by": solution.solver}
            row["costs"] = dict(solution.costs or {})
            row["notes"] = list(solution.notes)
            if solution.assignment is not None:
                row["checked"] = problem.evaluate(solution.assignment).satisfied
    except SolverError as error:
        row = {"status": "failed", "error": str(error)[:200]}
    except LatpruneError as error:
        row = {"status": "not applicable", "error": str(error)[:200]}
    row["cpu_seconds"] = round(cpu_seconds() - start, 4)
    row["peak_mb"] = round(peak_kilobytes() / 1024, 1)
    return row


def run(path: Path, solver: str, *, time_limit: float | None = None, points: int | None = None) -> Row:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--file", str(path), "--solver", solver]
    command += ["--time-limit", str(time_limit)] if time_limit is not None else []
    command += ["--points", str(points)] if points is not None else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


class Problems:
    """Problem files, made once per network from its traced graph."""

    def __init__(self, folder: Path, given: dict[str, Any]) -> None:
        self.folder = folder
        self.given = given
        self.graphs: dict[str, Any] = {}

    def graph(self, network: str) -> Any:
        from solver_problems import traced

        if network not in self.graphs:
            self.graphs[network] = traced(network)
        return self.graphs[network]

    def __call__(self, network: str, step: int, fraction: float, seed: int = 0) -> Any:
        from solver_problems import build

        return build(self.graph(network), step, fraction, seed)

    def file(self, problem: Any) -> Path:
        path = self.folder / "problem.json"
        problem.write(path)
        return path


def main_rows(problems: Problems, limit: float) -> Iterator[Row]:
    """The structure solver on everything."""
    from solver_problems import NETWORKS

    for network in NETWORKS:
        for step in (32, 16, 8):
            for seed in range(3 if step == 8 else 1):
                for fraction in FRACTIONS:
                    path = problems.file(problems(network, step, fraction, seed))
                    yield {"network": network, "step": step, "fraction": fraction, "seed": seed, "solver": "exact", **run(path, "exact")}


def rival_rows(problems: Problems, limit: float) -> Iterator[Row]:
    """HiGHS and MindtPy in turn with the structure solver, where they have a chance."""
    cases = [("resnet50", 32, f) for f in FRACTIONS] + [("mobilenet_v2", 32, f) for f in FRACTIONS]
    cases += [
        ("resnet101", 32, 0.5),
        ("resnet152", 32, 0.5),
        ("densenet121", 32, 0.5),
        ("vit_b_16", 32, 0.5),
        ("resnet50", 16, 0.5),
        ("resnet50", 8, 0.5),
    ]
    for network, step, fraction in cases:
        path = problems.file(problems(network, step, fraction))
        for solver in ("exact", "highs", "mindtpy", "greedy", "uniform"):
            row = run(path, solver, time_limit=None if solver == "exact" else limit)
            yield {"network": network, "step": step, "fraction": fraction, "seed": 0, "solver": solver, **row}


def job_rows(problems: Problems, limit: float) -> Iterator[Row]:
    """The networks of the main job by every solver; and measured problems given on the command line."""
    cases = [("resnet56", 4, f, problems("resnet56", 4, f)) for f in (0.5, 0.3)]
    cases += [(name, None, None, problem) for name, problem in problems.given.items()]
    for network, step, fraction, problem in cases:
        path = problems.file(problem)
        for solver in EVERY:
            row = run(path, solver, time_limit=None if solver == "exact" else limit)
            yield {"network": network, "step": step, "fraction": fraction, "seed": 0, "solver": solver, **row}


def knapsack_rows(problems: Problems, limit: float) -> Iterator[Row]:
    """Unary problems (input widths frozen, as HALP has them), where the knapsacks apply."""
    from solver_problems import linearised

    for network in ("resnet50", "mobilenet_v2"):
        for fraction in (0.5, 0.3):
            path = problems.file(linearised(problems(network, 8, 1.0), fraction))
            for solver in ("exact", "group-knapsack", "group-knapsack-20000", "knapsack", "highs", "greedy"):
                yield {
                    "network": f"{network} linearised",
                    "step": 8,
                    "fraction": fraction,
                    "seed": 0,
                    "solver": solver,
                    **run(path, solver, time_limit=limit),
                }


def limit_rows(problems: Problems, limit: float) -> Iterator[Row]:
    """Two engines with a limit each."""
    from solver_problems import with_second_engine

    for network, step, fraction in (("resnet50", 32, 0.5), ("resnet50", 8, 0.5), ("mobilenet_v2", 8, 0.4), ("vit_b_16", 32, 0.5)):
        first = problems(network, step, fraction)
        # The second limit is set where both bind: slightly under what the first alone would use.
        path = problems.file(with_second_engine(first, 1.0))
        alone = run(path, "exact")["costs"]["second"]
        both = with_second_engine(first, 1.0).replace_limits({"second": 0.985 * alone})
        path = problems.file(both)
        for solver in ("exact", "highs") if step == 32 else ("exact",):
            row = run(path, solver, time_limit=limit)
            yield {"network": f"{network}, two engines", "step": step, "fraction": fraction, "seed": 0, "solver": solver, **row}


def frontier_rows(problems: Problems, limit: float) -> Iterator[Row]:
    """Fifty limits at once."""
    for network in ("resnet50", "mobilenet_v2", "vit_b_16"):
        path = problems.file(problems(network, 8, 1.0))
        yield {
            "network": f"{network}, frontier",
            "step": 8,
            "fraction": None,
            "seed": 0,
            "solver": "exact",
            **run(path, "exact", points=50),
        }


def show(row: Row) -> None:
    """One line of the table."""
    gain = f"{row['gain']:.6f}" if row.get("gain") is not None else "-"
    gap = f"{row['gap']:.1e}" if row.get("gap") is not None else "-"
    fraction = "-" if row["fraction"] is None else f"{row['fraction']:.0%}"
    print(
        f"{row['network']:31} {row['step'] or '-':>3} {fraction:>5} {row['seed']} {row['solver']:21} {row['status']!s:15} "
        f"{gain:>14} {gap:>8} {row['cpu_seconds']:9.3f} s {row['peak_mb']:7.0f} MB",
        flush=True,
    )


def judged(rows: list[Row]) -> Row:
    """The figures that the rows are held against."""
    mine = [r for r in rows if r["section"] == "main" and r["step"] == 8]

    def of(network: str) -> list[float]:
        return [r["cpu_seconds"] for r in mine if r["network"] == network]

    summary: Row = {"networks_at_step_8": {}}
    for network in dict.fromkeys(r["network"] for r in mine):
        proven = sum(r["status"] == "optimal" and bool(r["checked"]) for r in mine if r["network"] == network)
        summary["networks_at_step_8"][network] = {
            "proven": f"{proven} of {len(of(network))}",
            "median_cpu_seconds": statistics.median(of(network)),
            "max_cpu_seconds": max(of(network)),
            "peak_mb": max(r["peak_mb"] for r in mine if r["network"] == network),
        }
    ratios, lower = [], 0
    for row in rows:
        if row["section"] == "rivals" and row["solver"] == "mindtpy" and row.get("gain") is not None:
            exact = next(r for r in rows if r["section"] == "rivals" and r["solver"] == "exact" and same(r, row))
            ratios.append(row["cpu_seconds"] / exact["cpu_seconds"])
            lower += exact["gain"] < row["gain"] - 1e-9 * abs(row["gain"])
    if ratios:
        summary["mindtpy"] = {"least_cpu_ratio": min(ratios), "median_cpu_ratio": statistics.median(ratios), "exact_lower": lower}
    agree = [
        abs(r["gain"] - e["gain"]) / abs(e["gain"])
        for r in rows
        if r["solver"] == "highs" and r["status"] == "optimal"
        for e in rows
        if e["solver"] == "exact" and e["section"] == r["section"] and same(e, r)
    ]
    if agree:
        summary["highs"] = {"proven": len(agree), "largest_difference": max(agree)}
    return summary


def same(a: Row, b: Row) -> bool:
    return all(a[k] == b[k] for k in ("network", "step", "fraction", "seed"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--time-limit", type=float, help="seconds for a rival (default: 120)")
    parser.add_argument(
        "--given", action="append", default=[], metavar="NAME=FILE", help="a problem file, or the result.json of a pruning run"
    )
    parser.add_argument("-o", "--output", type=Path)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--solver", help=argparse.SUPPRESS)
    parser.add_argument("--points", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.file is not None:
        print(json.dumps(solve_file(args.file, args.solver, args.time_limit, args.points)))
        return
    sections = {
        "main": main_rows,
        "jobs": job_rows,
        "rivals": rival_rows,
        "knapsacks": knapsack_rows,
        "limits": limit_rows,
        "frontier": frontier_rows,
    }
    chosen = args.only.split(",")
    rows: list[Row] = []
    if args.output is not None and args.output.exists():
        rows = [r for r in json.loads(args.output.read_text())["rows"] if r["section"] not in chosen]
    with tempfile.TemporaryDirectory() as folder:
        problems = Problems(Path(folder), dict(given(text) for text in args.given))
        for section in chosen:
            for row in sections[section](problems, args.time_limit or 120.0):
                rows.append({"section": section, **row})
                show(row)
                save(args.output, rows)
    print(json.dumps(judged(rows), indent=1))


def given(text: str) -> tuple[str, Any]:
    """``NAME=FILE`` as a name and a problem; with the limit that it was solved at."""
    from latprune.problem import Problem

    name, _, file = text.partition("=")
    value = json.loads(Path(file).read_text())
    return name, Problem.from_json(json.dumps(value.get("problem", value)))


def save(path: Path | None, rows: list[Row]) -> None:
    """Write what is done so far."""
    if path is None:
        return
    from latprune.latency import machine_name
    from latprune.storage import write_atomic

    output = {
        "benchmark": "solvers",
        "machine": {"processor": machine_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "written": time.strftime("%Y-%m-%d"),
        "summary": judged(rows),
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(output, indent=1) + "\n")


if __name__ == "__main__":
    main()
