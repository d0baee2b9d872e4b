"""``latprune list``: what is registered, of this package and of others, with its options."""

from __future__ import annotations

import argparse
from typing import Any

__all__ = ["add_parser", "run"]

KINDS = ("methods", "criteria", "schedules", "solvers", "strategies", "engines", "recipes")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "list",
        help="name the methods, criteria, schedules, solvers, strategies of recovery, engines and recipes",
        description="Name what --method, --criterion, --schedule, --solver, --recover, --engine and --recipe take, and their options.",
        epilog="examples:\n  latprune list\n  latprune list methods\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("kind", nargs="?", choices=KINDS, help="one kind only")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    for kind in [args.kind] if args.kind else KINDS:
        print(f"{kind}:")
        for name, summary, options in _entries(kind):
            print(f"  {name:<16} {summary}")
            if options:
                print(f"  {'':<16}   {', '.join(options)}")
    return 0


def _entries(kind: str) -> list[tuple[str, str, list[str]]]:
    """``(name, first line of the documentation, options as NAME=DEFAULT)``."""
    if kind == "methods":
        from latprune.methods import method_type, registered_methods

        return [_described(name, method_type(name)) for name in registered_methods()]
    if kind == "criteria":
        from latprune.importance import criterion_type, registered_criteria

        return [_described(name, criterion_type(name)) for name in registered_criteria()]
    if kind == "schedules":
        from latprune.methods import registered_schedules, schedule_type

        return [_described(name, schedule_type(name)) for name in registered_schedules()]
    if kind == "strategies":
        from latprune.recovery import strategies, strategy_type

        return [_described(name, strategy_type(name)) for name in strategies()]
    if kind == "solvers":
        from latprune.solve import solver_named, solver_names

        return [_described(name, type(solver_named(name))) for name in solver_names()]
    if kind == "recipes":
        from latprune.train import RECIPES

        return [(name, f"{RECIPES[name].epochs} epochs, learning rate {RECIPES[name].learning_rate:g}", []) for name in RECIPES]
    from latprune.latency import available_engines, engine_problems

    problems = engine_problems()
    return [(name, version or problems.get(name, "not installed"), []) for name, version in available_engines().items()]


def _described(name: str, kind: type) -> tuple[str, str, list[str]]:
    from dataclasses import MISSING, fields, is_dataclass

    summary = (kind.__doc__ or "").strip().splitlines()[0] if kind.__doc__ else ""
    options = []
    for entry in fields(kind) if is_dataclass(kind) else ():
        made = entry.default_factory() if entry.default_factory is not MISSING else "..."
        default: Any = entry.default if entry.default is not MISSING else made
        options.append(f"{entry.name}={default}")
    return name, summary, options
