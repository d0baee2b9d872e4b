"""``latprune measure``: build or extend the latency tables of a model on a target."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from latprune.cli.arguments import add_model_arguments, add_target_arguments
from latprune.cli.option_rules import note_given
from latprune.cli.progress import add_progress_arguments

if TYPE_CHECKING:
    from torch import nn

    from latprune.graph import ExampleInputs, ModelGraph
    from latprune.latency import LatencyTables, Store, Target

__all__ = ["add_parser", "run"]

_MOST, _IN_KIT, _LEAST = 128, 64, 48
"""Networks measured at most, networks of a kit (each is a model of its own in it), and the fewest that tables are made of."""

_IGNORED = {
    "ray": ("time_limit", "extend", "output"),
    "plan": ("time_limit", "extend", "output"),
    "context": ("time_limit", "extend", "engine", "device", "threads", "batch", "precision", "max_networks", "seed"),
}
"""Options that do nothing beside another one."""

_EPILOG = """\
examples:
  latprune measure --model latprune.zoo:cifar_resnet --model-arg depth=56 --input 1x3x32x32 --engine openvino
  latprune measure --model nets.py:net --input 1x3x224x224 --engine onnxruntime --threads 2 -o tables.json
  latprune measure --model nets.py:net --input 1x3x224x224 --extend --max-networks 200
  latprune measure --model nets.py:net --input 1x3x224x224 --ray auto --label board
  latprune measure --model nets.py:net --input 1x3x224x224 --engine onnxruntime --plan kit.zip
    (on the device: unzip kit.zip run.py && python run.py kit.zip results.json)
  latprune measure --model nets.py:net --input 1x3x224x224 --engine onnxruntime --plan kit.zip --results results.json
  latprune measure --model nets.py:net --input 1x3x224x224 --engine onnxruntime --plan kit.zip --results results.json --again kit2.zip
    (runs on the device as the first did; --plan kit2.zip --results results2.json takes its results in)
  latprune measure --model nets.py:net --input 1x3x224x224 --context 2 -o board.json
    (tables of another device, from the store alone)
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "measure",
        help="build or extend the latency tables of a model on an engine",
        description="Measure width-varied copies of a model on the target and fit latency tables to them. What is measured goes into the "
        "store, from where later runs take it; an interrupted run goes on where it stopped.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    note_given(parser)
    add_model_arguments(parser)
    add_target_arguments(parser)
    group = parser.add_argument_group("measuring")
    group.add_argument("--store", metavar="FILE", help="latency store (default: the user's cache folder)")
    group.add_argument(
        "--time-limit",
        type=float,
        metavar="SECONDS",
        help="stop measuring after this long; the 48 networks that tables need are measured anyway",
    )
    group.add_argument(
        "--max-networks",
        type=int,
        metavar="N",
        help=f"width-varied networks at most (default: {_MOST}, in a kit {_IN_KIT}); tables need {_LEAST}",
    )
    group.add_argument("--extend", action="store_true", help="measure up to --max-networks even where the tables are good already")
    group.add_argument("--seed", type=int, default=0, help="seed of the choice of networks (default: %(default)s)")
    group.add_argument("-o", "--output", metavar="FILE", help="also write the tables as JSON")
    group.add_argument(
        "--context",
        type=int,
        metavar="N",
        help="measure nothing: tables from what the store holds under these conditions (numbered by `latprune table ls`), whatever device "
        "they are of",
    )
    rack = parser.add_argument_group("many devices", "nodes of a Ray cluster, each measuring one network at a time")
    rack.add_argument("--ray", metavar="ADDRESS", help="measure on a cluster (ray://HOST:PORT, HOST:PORT or auto) instead of here")
    rack.add_argument("--label", metavar="NAME", help="custom resource that the devices' nodes offer")
    kit = parser.add_argument_group("another device", "one that runs neither PyTorch nor latprune")
    kit.add_argument("--plan", metavar="KIT.zip", help="write the networks and a one-file runner instead of measuring")
    kit.add_argument("--results", metavar="FILE", help="add what the runner of --plan wrote to the store instead of measuring")
    kit.add_argument("--again", metavar="KIT.zip", help="with --results: write a second kit, of the networks that are far off or doubtful")
    add_progress_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from latprune.cli.loading import example_inputs, load_model, target_from
    from latprune.graph import trace
    from latprune.latency import Store, build_tables
    from latprune.latency.measuring.held_types import settled_target, type_note

    _check(args)
    if args.context is not None:
        return _stored(args)
    target = target_from(args)
    model = load_model(args.model, args.model_arg, args.weights)
    inputs = example_inputs(args.input, batch=args.batch, seed=args.seed, model=model)
    if note := type_note(model, target):
        print(f"note: {note}")
    target = settled_target(model, target)
    if args.plan or args.results or args.again:
        return _kit(args, model, inputs, target)
    if args.ray:
        return _cluster(args, model, inputs, target)

    with Store(args.store) as store:
        tables = build_tables(
            model,
            trace(model, inputs),
            inputs,
            target,
            store=store,
            seed=args.seed,
            time_limit=args.time_limit,
            max_networks=_most(args),
            extend=args.extend,
        )
        place = store.path
    _show(tables)
    print(f"stored in {place}")
    _write(tables, args.output)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse what would be ignored, and files that could not be written once all is measured."""
    from pathlib import Path

    from latprune.cli.option_rules import check_numbers, output_file, refuse_ignored, refuse_losing
    from latprune.errors import InvalidArgumentError

    modes = [name for name in ("ray", "plan", "context") if getattr(args, name) is not None]
    if len(modes) > 1:
        raise InvalidArgumentError(f"--{modes[0]} and --{modes[1]} exclude each other")
    if args.label and not args.ray:
        raise InvalidArgumentError("--label needs --ray, the cluster whose nodes offer it")
    if modes:
        refuse_ignored(args, _IGNORED[modes[0]], beside=f"--{modes[0]}")
    if args.plan and args.results:
        refuse_ignored(args, ("device", "threads", "precision", "max_networks", "seed"), beside="--results, whose kit has its own")
        if args.engine != "onnxruntime" and "engine" in args.given:
            raise InvalidArgumentError(
                f"--engine (={args.engine!r}) must be 'onnxruntime' with --results: no other runs a kit; leave it out"
            )
    check_numbers(args)
    for name in ("plan", "results"):
        if args.again and getattr(args, name) and Path(args.again).resolve() == Path(getattr(args, name)).resolve():
            raise InvalidArgumentError(f"--again (={args.again!r}) is the file of --{name}, which is still needed; choose another name")
    if args.plan and not args.results and not args.again and Path(args.plan).exists():
        raise InvalidArgumentError(
            f"--plan (={args.plan!r}) exists; choose another name, or give --results if that kit was run: results fit their own kit alone"
        )
    for name in ("output", "again") if args.results else ("output", "plan"):
        if getattr(args, name):
            refuse_losing(args, getattr(args, name), argument=f"--{name}")
            output_file(getattr(args, name), argument=f"--{name}")


def _write(tables: LatencyTables, output: str | None) -> None:
    import json

    from latprune.storage import write_atomic

    if output:
        write_atomic(output, json.dumps(tables.to_dict()))
        print(f"tables written to {output}")


def _stored(args: argparse.Namespace) -> int:
    """Tables of conditions in the store, which may be another device's."""
    from latprune.cli.loading import example_inputs, load_model
    from latprune.cli.option_rules import conditions, existing_store
    from latprune.graph import trace
    from latprune.latency import Store, stored_tables

    with Store(existing_store(args.store), reading=True) as store:
        context = conditions(store, args.context)
        model = load_model(args.model, args.model_arg, args.weights)
        inputs = example_inputs(args.input, batch=context.target.batch, seed=args.seed, model=model)
        tables = stored_tables(trace(model, inputs), inputs, context, store)
    _show(tables, stored=True)
    _write(tables, args.output)
    return 0


def _name_conditions(store: Store, graph: ModelGraph, inputs: ExampleInputs) -> None:
    """Say under which numbers the store holds networks of this model: their tables are a command away, on any machine."""
    from latprune.latency import network_fingerprint

    for number, (context, _) in enumerate(store.contexts(), start=1):
        count = store.digest(context, network_fingerprint(list(graph.kernels.values()), inputs, context.target)).networks
        if count:
            print(f"{count} networks of this model on {context.machine}, version {context.version}; their tables: --context {number}")


def _cluster(args: argparse.Namespace, model: nn.Module, inputs: ExampleInputs, target: Target) -> int:
    from itertools import islice

    from latprune.errors import InvalidArgumentError
    from latprune.graph import trace
    from latprune.latency import FanoutProgress, Store, design_points, sample_on_cluster
    from latprune.progress import say, stretch

    if not args.label:
        raise InvalidArgumentError("--ray needs --label, the custom resource that the devices' nodes offer")
    if _most(args) < 1:
        raise InvalidArgumentError(f"--max-networks (={args.max_networks}) must be at least 1 with --ray")
    graph = trace(model, inputs)
    points = list(islice(design_points(list(graph.groups.values()), list(graph.blocks.values()), seed=args.seed), _most(args)))
    again = stored = 0

    def progress(state: FanoutProgress) -> None:
        nonlocal again, stored
        again, stored = state.again, state.stored
        work.reached(state.done, state.jobs, again=state.again, devices=state.devices, lost=state.lost)

    with Store(args.store) as store, stretch("measuring on the cluster", unit="networks", timed=True) as work:
        done = sample_on_cluster(
            model,
            graph,
            inputs,
            target,
            points,
            store,
            label=args.label,
            address=args.ray,
            progress=progress,
            report=say,
        )
        print(f"{done} networks added to {store.path}, which held {stored} already; {again} repetitions of networks that were far off")
        _name_conditions(store, graph, inputs)
    return 0


def _kit(args: argparse.Namespace, model: nn.Module, inputs: ExampleInputs, target: Target) -> int:
    from pathlib import Path

    from latprune.errors import InvalidArgumentError
    from latprune.graph import trace
    from latprune.latency import Store, import_kit_results, write_kit, write_kit_again

    if not args.plan:
        raise InvalidArgumentError("--results and --again need --plan, the kit that was run")
    if args.again and not args.results:
        raise InvalidArgumentError("--again needs --results, what the runner of --plan wrote")
    graph = trace(model, inputs)
    if args.results:
        with Store(args.store) as store:
            print(f"{import_kit_results(store, args.plan, args.results, graph)} networks added to {store.path}")
            if args.again:
                count = write_kit_again(args.again, store, args.plan, args.results, model, graph, inputs)
                if count:
                    print(f"{count} networks to measure again are in {args.again}; on the device: python run.py {args.again} results2.json")
                else:
                    print("no network is far off or doubtful: there is nothing to measure again, and no second kit")
            _name_conditions(store, graph, inputs)
        return 0
    count = args.max_networks if args.max_networks is not None else _IN_KIT
    identity = write_kit(args.plan, model, graph, inputs, target, networks=count, seed=args.seed)
    size = Path(args.plan).stat().st_size / 1e6
    print(
        f"kit {identity} of {count} networks, {size:.0f} MB, written to {args.plan}; "
        f"on the device: unzip {args.plan} run.py && python run.py {args.plan} results.json"
    )
    if count < _LEAST:
        print(f"tables need {_LEAST} networks: these are not enough without others (a kit with another --seed)")
    return 0


def _most(args: argparse.Namespace) -> int:
    return args.max_networks if args.max_networks is not None else _MOST


def _show(tables: LatencyTables, *, stored: bool = False) -> None:
    stats, residual = tables.stats, tables.residual
    print(f"target    {tables.target}, engine {tables.version}")
    print(f"dense     {tables.dense_ms:.3f} ms, of which {tables.constant_ms:.3f} ms that no width changes")
    print(
        f"tables    {stats.kernels} kernels, {stats.surfaces} surfaces, {stats.shared_entries} shared, "
        f"{stats.positions_differing} positions that differ"
    )
    print(
        f"measured  {'no' if stored else stats.measured_networks} networks now, {stats.networks} in all; "
        f"{stats.engine_runs} engine runs, {stats.seconds:.1f} s"
    )
    if stats.priced:
        named = ", ".join(stats.priced[:4]) + (", ..." if stats.priced[4:] else "")
        print(f"priced    {len(stats.priced)} layers without a step of the engine's profile, by their multiply-adds: {named}")
    if tables.cache_effect:
        knee = tables.cache_effect.knee
        low, high = (1.0 - float(tables.cache_effect.factor(0.5 * (knee or 1.0), share)) for share in (0.0, 1.0))
        where = "takes half as long" if knee is None else f"takes {0.5 * knee:.0%} as long (no more from {knee:.0%} on)"
        print(f"caches    in a network that {where}, a kernel takes {low:.1%} (all activations) to {high:.1%} (all weights) less")
    if residual.networks:
        print(
            f"error     {residual.mean_absolute:.1%} mean, {residual.p95:.1%} at 95 %, {residual.within_8:.0%} within 8 % "
            f"({residual.networks} networks that had no part in the fit)"
        )
    print("widths on offer")
    for group, dense in tables.widths.items():
        choices = tables.choices(group)
        shown = " ".join(map(str, choices)) if len(choices) <= 16 else f"{choices[0]} {choices[1]} ... {choices[-1]}"
        print(f"  {group} ({dense}, step {tables.step(group)}): {shown}")
