"""The command line: ``latprune COMMAND ...``, each command a thin layer over one public function.

Only :mod:`argparse` and the command modules (which import nothing else at their top) are loaded to answer ``--help``; a command imports
what it needs when it runs. Errors that latprune raises on purpose become one message on stderr and the error's exit code.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from latprune import __version__
from latprune.cli import (
    compare,
    demo,
    doctor,
    explore,
    export,
    frontier,
    inspect,
    listing,
    measure,
    predictor,
    prune,
    report,
    solve,
    sweep,
    table,
    time,
    verify,
)
from latprune.cli.progress import shown
from latprune.errors import LatpruneError

__all__ = ["build_parser", "main"]

COMMANDS = (
    prune,
    explore,
    sweep,
    inspect,
    verify,
    compare,
    export,
    report,
    time,
    listing,
    measure,
    table,
    predictor,
    solve,
    frontier,
    doctor,
    demo,
)
INTERRUPTED = 130
BAD_FILE = 2

_DESCRIPTION = "Prune a PyTorch model to a latency budget on the engine that will run it."
_EPILOG = """\
examples:
  latprune demo
  latprune inspect --model mypackage.models:net --input 1x3x224x224
  latprune prune --model mypackage.models:net --weights net.safetensors --input 1x3x224x224 --budget 50% --engine openvino -o pruned
  latprune verify pruned/result --model mypackage.models:net

exit codes: 0 done, 1 internal error, 2 bad file or arguments, 3 budget infeasible, 4 stopped by a limit, 5 not applicable or an extra is
missing, 6 measured over budget, 130 interrupted
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="latprune", description=_DESCRIPTION, epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="store_true", help="print the version, with --verbose what a bug report needs, and end")
    parser.add_argument("--verbose", action="store_true", help=argparse.SUPPRESS)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add_parser(subparsers)
    for subparser in subparsers.choices.values():
        subparser.add_argument("--debug", action="store_true", help="on an error, print the Python traceback")
    return parser


def _version(*, verbose: bool) -> int:
    if verbose:
        from latprune.cli.versions import described

        print(described())
    else:
        print(f"latprune {__version__}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: Arguments without the program's name; None takes the process's own.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.version:
        return _version(verbose=args.verbose)
    if args.command is None:
        parser.error("the following arguments are required: COMMAND")
    try:
        with shown(args):
            return int(args.run(args))
    except KeyboardInterrupt:
        if args.debug:
            raise
        print("latprune: interrupted", file=sys.stderr)
        return INTERRUPTED
    except LatpruneError as error:
        if args.debug:
            raise
        print(f"latprune: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output went away (`latprune ... | head`); close stdout so that the interpreter does not complain at its end.
        sys.stderr.close()
        return 0
    except OSError as error:
        if args.debug:
            raise
        # A folder that is not there or not ours, a full disk, a host that does not answer: nothing that a traceback would help with.
        print(f"latprune: error: {error}", file=sys.stderr)
        return BAD_FILE
    except Exception as error:
        if args.debug:
            raise
        print(f"latprune: internal error: {type(error).__name__}: {error}\nrun again with --debug for the traceback", file=sys.stderr)
        return 1
