"""``latprune table``: look into latency stores, and carry their contents between machines."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latprune.latency import NetworkSample

__all__ = ["add_parser", "run"]

_EPILOG = """\
examples:
  latprune table ls
  latprune table show 1
  latprune table export board.parquet --context 1
  latprune table import board.parquet
  latprune table merge other.sqlite another.sqlite
  latprune table check
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = subparsers.add_parser(
        "table",
        help="list, show, export, import and merge measured latency tables",
        description="Work with latency stores. Conditions (engine and version, device, threads, batch, precision, machine) are numbered as "
        "`table ls` lists them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    where = "latency store (default: the user's cache folder)"
    parser.add_argument("--store", metavar="FILE", help=where)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    actions.add_parser("ls", help="list the conditions and how much was measured under each")
    show = actions.add_parser("show", help="show the networks measured under one condition")
    show.add_argument("context", type=int, metavar="N", help="number of the conditions")
    export = actions.add_parser("export", help="write samples to a Parquet file")
    export.add_argument("file", metavar="FILE", help="Parquet file to write")
    export.add_argument("--context", type=int, action="append", metavar="N", help="only these conditions; may be repeated")
    importer = actions.add_parser("import", help="add the samples of Parquet files, all of them or, where one cannot be read, none")
    importer.add_argument("files", nargs="+", metavar="FILE", help="Parquet files")
    merge = actions.add_parser("merge", help="add the samples of other stores, all of them or, where one cannot be read, none")
    merge.add_argument("stores", nargs="+", metavar="STORE", help="stores to read")
    actions.add_parser("check", help="verify the store's integrity")
    for action in actions.choices.values():
        # Behind the action too, where the other commands have it; absent there, it must not hide the one before it.
        action.add_argument("--store", metavar="FILE", default=argparse.SUPPRESS, help=where)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    from latprune.cli.option_rules import conditions, existing_store, output_file, refuse_overwriting
    from latprune.errors import InvalidArgumentError
    from latprune.latency import Store, export_samples
    from latprune.latency.samples import SWEEP
    from latprune.latency.storing.exchange import add_samples, read_samples, read_store

    if args.action in ("import", "merge"):
        # All is read before the store is touched, or made: a file that cannot be read must not leave half of the others in it.
        read = [read_samples(file) for file in args.files] if args.action == "import" else [read_store(path) for path in args.stores]
        with Store(args.store) as store:
            print(f"{_count(sum(add_samples(store, pairs) for pairs in read), 'network')} added to {store.path}")
        return 0
    with Store(existing_store(args.store), reading=True) as store:
        if args.action == "ls":
            contexts = store.contexts()
            print(f"{store.path}: {_count(len(contexts), 'set')} of conditions")
            for number, (context, counts) in enumerate(contexts, start=1):
                print(
                    f"{number:3}  {context.target}, version {context.version}, on {context.machine}: "
                    f"{_count(counts['networks'], 'network')} of {_count(counts['structures'], 'structure')}"
                    + (f", and {counts['sweep']} random ones for the predictor" if counts["sweep"] else "")
                )
        elif args.action == "show":
            context = conditions(store, args.context)
            print(f"{context.target}, version {context.version}, on {context.machine}")
            for network in store.networks(context):
                whole = f"{network.ms:9.3f} ms" if network.ms is not None else "   not timed"
                # A random network is nobody's model: what it was timed beside is the sweep's reference.
                name, beside = ("random  ", "beside") if SWEEP in network.extra else (network.fingerprint[:8], "dense ")
                print(
                    f"{name}  {whole}  {beside} {network.reference_ms:9.3f} ms  {len(network.kernels):4} kernels  "
                    f"{len(network.removed):3} blocks gone  {network.runs:4} runs  spread {network.spread:.1%}  {_circumstances(network)}"
                )
        elif args.action == "export":
            chosen = [conditions(store, number) for number in args.context] if args.context else None
            if not args.file.endswith(".parquet"):
                raise InvalidArgumentError(f"FILE (={args.file!r}) must end in .parquet: it is written as Parquet")
            refuse_overwriting(args.file, store.path, argument="FILE")
            file = output_file(args.file, argument="FILE")
            print(f"{export_samples(store, file, contexts=chosen)} networks written to {file}")
        else:
            store.check()
            print(f"{store.path}: sound" + ("" if store.contexts() else ", but empty: latprune measure fills it"))
    return 0


def _circumstances(network: NetworkSample) -> str:
    """When a network was measured, and how the processor was clocked where the machine shows that."""
    from datetime import UTC, datetime

    try:
        when = f"{datetime.fromtimestamp(network.created, UTC):%Y-%m-%d %H:%M}Z"
    except (OverflowError, ValueError, OSError):
        # Only a device whose clock is out of order tells such a time.
        when = f"{network.created:g} s"
    governor, now, most = (network.extra.get(f"scaling_{name}") for name in ("governor", "cur_freq", "max_freq"))
    frequencies = [f"{kilohertz / 1e6:.2f}" for kilohertz in (now, most) if isinstance(kilohertz, int)]
    clock = [str(governor)] * (governor is not None) + [f"{' of '.join(frequencies)} GHz"] * bool(frequencies)
    return "  ".join([when, *clock])


def _count(number: int, name: str) -> str:
    return f"{number} {name}" + ("" if number == 1 else "s")
