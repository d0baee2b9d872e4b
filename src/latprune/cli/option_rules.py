"""Rules of options beyond what argparse checks: files to write, stores to read, numbers, options that would do nothing."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latprune.argument_rules import check_whole
from latprune.errors import InvalidArgumentError

if TYPE_CHECKING:
    from latprune.latency.samples import ContextInfo
    from latprune.latency.storing.store import Store

__all__ = [
    "check_numbers",
    "check_seed",
    "check_threads",
    "conditions",
    "existing_store",
    "note_given",
    "output_file",
    "refuse_alone",
    "refuse_ignored",
    "refuse_losing",
    "refuse_overwriting",
    "refuse_shared",
    "refuse_twice",
]

_READ = ("file", "source", "weights", "tables", "predictor", "explore", "results")
"""Destinations of options that name a file which a command reads."""
_CODE = ("model", "data", "test_data", "evaluate", "fit")
"""Destinations of options that name a callable, which may lie in a file of the user's."""


def output_file(text: str, *, argument: str) -> Path:
    """The file that a command will write, its folder made and tried: asked for before anything is measured, not after.

    Raises:
        InvalidArgumentError: It is a folder, its folder can neither be found nor made, or no file can be written there.
    """
    from latprune.storage import check_writable

    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidArgumentError(f"{argument} (={text!r}): its folder cannot be made: {error}") from error
    if path.is_dir() or not path.name:
        raise InvalidArgumentError(f"{argument} (={text!r}) is a folder; it must be a file")
    try:
        check_writable(path)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{argument} (={text!r}): {error}") from error
    except OSError as error:
        raise InvalidArgumentError(
            f"{argument} (={text!r}) cannot be written: {error.strerror}; name a file in a folder that can be"
        ) from error
    return path


def refuse_overwriting(path: str | Path | None, source: str | Path | None, *, argument: str) -> None:
    """Refuse to write ``path`` where it is the file ``source`` that the work is made from, by another name or through a link too."""
    if path is None or source is None or not Path(source).is_file():
        return
    written = Path(path)
    if written.resolve() == Path(source).resolve() or (written.exists() and written.samefile(source)):
        raise _lost(path, source, argument)


def _lost(path: str | Path, source: str | Path, argument: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"{argument} (={str(path)!r}) is the file {str(source)!r} itself, which would be lost: name another file")


def refuse_losing(args: argparse.Namespace, path: str | Path | None, *, argument: str) -> None:
    """Refuse to write ``path`` over any file that the command's options name: what it reads, its store, and the user's code.

    Raises:
        InvalidArgumentError: It is one of them, by another name or through a link too; or the store, which the command may yet make.
    """
    from latprune.latency.storing.store_file import default_store_path

    if path is None:
        return
    for name in _READ:
        refuse_overwriting(path, getattr(args, name, None), argument=argument)
    for name in _CODE:
        refuse_overwriting(path, _code_file(getattr(args, name, None)), argument=argument)
    if hasattr(args, "store"):
        store = default_store_path() if args.store is None else Path(args.store)
        for file in (store, *(store.with_name(f"{store.name}-{part}") for part in ("wal", "shm"))):
            if Path(path).resolve() == file.resolve():
                raise _lost(path, file, argument)
            refuse_overwriting(path, file, argument=argument)


def _code_file(spec: str | None) -> Path | None:
    """The file of ``path/to/file.py:callable``, or of ``package.module:callable`` in the current folder, which is searched first."""
    place, separator, _ = (spec or "").rpartition(":")
    if not separator:
        return None
    return Path(place) if place.endswith(".py") else Path(*place.split(".")).with_suffix(".py")


def refuse_shared(files: Mapping[str, str | None]) -> None:
    """Refuse files to write (option -> path, None where it was not given) of which two are one: the second would replace the first."""
    written: dict[Path, str] = {}
    for argument, text in files.items():
        if text is None:
            continue
        other = written.setdefault(Path(text).resolve(), argument)
        if other != argument:
            raise InvalidArgumentError(f"{argument} (={text!r}) is the file of {other}, which would be lost: name another file")


def check_seed(seed: int) -> None:
    """Refuse a ``--seed`` that nothing can be done with, by the name that the user knows."""
    if not 0 <= seed < 2**32:
        raise InvalidArgumentError(f"--seed (={seed}) must be at least 0 and below {2**32}")


def check_threads(args: argparse.Namespace) -> None:
    """Refuse a ``--train-threads`` that nothing can be done with, where the command has it."""
    threads = getattr(args, "train_threads", None)
    if threads is not None:
        check_whole("--train-threads", threads, least=1)


def check_numbers(args: argparse.Namespace) -> None:
    """Refuse a ``--seed`` or ``--time-limit`` that nothing can be done with, by the names that the user knows."""
    check_seed(args.seed)
    if args.time_limit is not None and not args.time_limit >= 0:
        raise InvalidArgumentError(f"--time-limit (={args.time_limit}) must be a number of seconds, not negative")


class _NotedStore(argparse.Action):
    """Stores an option's value, and in ``given`` that it was there: a default that was asked for looks like one that was not."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        if option_string is not None:
            namespace.given |= {self.dest}


def note_given(parser: argparse.ArgumentParser) -> None:
    """Let ``args.given`` hold the destinations of the options with a value that were given; call it before options are added."""
    parser.register("action", None, _NotedStore)
    parser.set_defaults(given=frozenset())


def refuse_ignored(args: argparse.Namespace, names: Iterable[str], *, beside: str) -> None:
    """Refuse options, by their destinations, that were given and would do nothing ``beside`` another one (see :func:`note_given`)."""
    for name in names:
        if _was_given(args, name):
            raise InvalidArgumentError(f"--{name.replace('_', '-')} does nothing with {beside}; leave it out")


def refuse_alone(args: argparse.Namespace, names: Iterable[str], *, needed: str) -> None:
    """Refuse options, by their destinations, that were given and would do nothing without what is ``needed``."""
    for name in names:
        if _was_given(args, name):
            raise InvalidArgumentError(f"--{name.replace('_', '-')} does nothing without {needed}; give one, or leave it out")


def refuse_twice(told: Iterable[str], name: str, *, argument: str, beside: str) -> None:
    """Refuse a value of an option ``argument`` of several (``KEY=VALUE``) that an option ``beside`` says too."""
    if name in told:
        raise InvalidArgumentError(f"{argument} {name} does nothing with {beside}, which decides it; leave one of them out")


def _was_given(args: argparse.Namespace, name: str) -> bool:
    """Whether an option was given; switches hold no value and are off by default, and options that may be repeated have a list."""
    value = getattr(args, name)
    return name in args.given or value is True or (isinstance(value, list) and bool(value))


def existing_store(text: str | None) -> str | None:
    """The store of ``--store`` for a command that only reads: named as an argument where it was mistyped."""
    if text is not None and not Path(text).is_file():
        raise InvalidArgumentError(f"--store (={text!r}): there is no such file")
    return text


def conditions(store: Store, number: int) -> ContextInfo:
    """The conditions that ``latprune table ls`` lists under ``number``."""
    contexts = store.contexts()
    if not contexts:
        raise InvalidArgumentError(f"N (={number}): {store.path} holds nothing yet; latprune measure fills it")
    if not 1 <= number <= len(contexts):
        raise InvalidArgumentError(f"N (={number}) must lie between 1 and {len(contexts)}; see latprune table ls")
    return contexts[number - 1][0]
