"""One shape of registry, for everything that third parties may add: engines, methods, solvers, criteria, rules of operations.

An entry is registered by name when its module is imported. What other packages offer is found through their entry points, so that the
command line reaches it too; they are looked for when a name is not registered, and never at import.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from latprune.errors import InvalidArgumentError, PluginError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = ["ClassRegistry", "Registry", "configured", "offer"]

T = TypeVar("T")
C = TypeVar("C", bound=type)

_OWN: dict[str, dict[str, str]] = {}


def offer(group: str, name: str, reference: str) -> None:
    """An entry point of this package itself: ``name`` in ``group`` is ``reference`` (``module:attribute``), imported when asked for.

    It lets a lower package reach a higher one that it must not import; the top of the package says which.
    """
    _OWN.setdefault(group, {})[name] = reference


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry(Generic[T]):
    value: T
    config_type: type | None
    definition: object


class Registry(Generic[T]):
    """Entries by name, and where wanted by the type of their configuration.

    Entry points of ``group`` are read in one of two ways:

    * ``named``: an entry point has the name of its entry and refers to it; it is imported when that name is asked for.
    * otherwise: an entry point refers to a module (or anything in it) that registers entries when it is imported; all are imported when a
      name is asked for that nothing registered.

    Reading is safe from several threads; registering is done at import.

    Args:
        argument: What an entry is called in errors: the name of the argument that takes its name (``engine``).
        group: Group of entry points (``latprune.engines``).
        named: How entry points are read, see above.
        hint: How to add an entry; ends the error of :meth:`get`.
        taken: What to do where a name is taken; ends the error of :meth:`register`.

    Example:
        >>> colours = Registry[str]("colour", group="example.colours", hint="add one with colours.register")
        >>> colours.register("red", "#f00")
        '#f00'
        >>> colours.get("red"), colours.names()
        ('#f00', ('red',))
        >>> colours.get("blue")
        Traceback (most recent call last):
        ...
        latprune.errors.InvalidArgumentError: colour (='blue') must be one of red; add one with colours.register
    """

    def __init__(self, argument: str, *, group: str, named: bool = True, hint: str = "", taken: str = "choose another name") -> None:
        self.argument = argument
        self.group = group
        self._named = named
        self._hint = hint
        self._taken = taken
        self._entries: dict[str, _Entry[T]] = {}
        self._types: dict[type, str] = {}
        self._imported = False

    def register(self, name: str, value: T, *, config_type: type | None = None, definition: object = None, replace: bool = False) -> T:
        """Make ``value`` known as ``name``.

        Args:
            name: Its name.
            value: The entry.
            config_type: Type of its configurations, for :meth:`of`.
            definition: The class or function that the entry was made from; None: ``value`` itself. The same definition run anew (a cell
                of a notebook, a reloaded module) takes the place of the earlier one.
            replace: Whether another entry of that name may be replaced.

        Returns:
            ``value``.

        Raises:
            InvalidArgumentError: The name, or the configuration's type, is taken.
        """
        definition = value if definition is None else definition
        before = self._entries.get(name)
        if before is not None and not replace and not _same(before.definition, definition):
            raise InvalidArgumentError(f"{self.argument} name (={name!r}) is already registered; {self._taken}")
        if config_type is not None and self._types.get(config_type, name) != name:
            raise InvalidArgumentError(
                f"config_type (={config_type.__name__}) already belongs to the {self.argument} {self._types[config_type]!r}; "
                "make a type of its own"
            )
        if before is not None and before.config_type is not None:
            del self._types[before.config_type]
        self._entries[name] = _Entry(value=value, config_type=config_type, definition=definition)
        if config_type is not None:
            self._types[config_type] = name
        return value

    def remove(self, name: str) -> None:
        """Forget the entry called ``name``; nothing happens where there is none."""
        entry = self._entries.pop(name, None)
        if entry is not None and entry.config_type is not None:
            del self._types[entry.config_type]

    def get(self, name: str) -> T:
        """The entry called ``name``.

        Raises:
            InvalidArgumentError: There is none; the message names those that there are.
            PluginError: Another package's entry point cannot be imported.
        """
        found = self._find(name)
        if found is None:
            hint = f"; {self._hint}" if self._hint else ""
            raise InvalidArgumentError(f"{self.argument} (={name!r}) must be one of {', '.join(self.names())}{hint}")
        return found.value

    def find(self, *names: str) -> T | None:
        """The entry of the first of ``names`` that is registered, or None."""
        found = self._find(*names)
        return None if found is None else found.value

    def names(self) -> tuple[str, ...]:
        """All names, sorted: those registered and those that other packages offer."""
        if not self._named:
            self._import_all()
            return tuple(sorted(self._entries))
        return tuple(sorted({*self._entries, *(point.name for point in self._entry_points())}))

    def __contains__(self, name: str) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def of(self, config: object) -> T:
        """The entry whose configuration ``config`` is: that of its type, or of the nearest base class that has one.

        Raises:
            InvalidArgumentError: There is none; the message names the types that there are.
            PluginError: Another package's entry point cannot be imported.
        """
        for attempt in range(2):
            for config_type in type(config).__mro__:
                if config_type in self._types:
                    return self._entries[self._types[config_type]].value
            if attempt == 0:
                self._import_all()
        known = ", ".join(sorted(t.__name__ for t in self._types))
        raise InvalidArgumentError(f"config (={config!r}) must be the configuration of a registered {self.argument}: {known}")

    def config_type(self, name: str) -> type | None:
        """Type of the configurations of the entry called ``name``; None where it has none. Raises as :meth:`get` does."""
        self.get(name)
        return self._entries[name].config_type

    def config_types(self) -> tuple[type, ...]:
        """The types that have an entry, in the order of the entries' names."""
        self._import_all()
        return tuple(t for t, _ in sorted(self._types.items(), key=lambda item: item[1]))

    # -- entry points ----------------------------------------------------------------------------------------------

    def _find(self, *names: str) -> _Entry[T] | None:
        for name in names:
            if name in self._entries:
                return self._entries[name]
        if self._named:
            own = any(name in _OWN.get(self.group, {}) for name in names)
            offered = {point.name: point for point in (self._own() if own else self._entry_points())}
            wanted = next((name for name in names if name in offered), None)
            if wanted is not None:
                self._import(offered[wanted])
        else:
            self._import_all()
        return next((self._entries[name] for name in names if name in self._entries), None)

    def _own(self) -> list[EntryPoint]:
        from importlib.metadata import EntryPoint

        return [EntryPoint(name=name, value=value, group=self.group) for name, value in _OWN.get(self.group, {}).items()]

    def _entry_points(self) -> list[EntryPoint]:
        from importlib import metadata  # reads the metadata of every installed package: only where a name is not known

        return self._own() + sorted(metadata.entry_points(group=self.group), key=lambda point: (point.name, point.value))

    def _import_all(self) -> None:
        if self._imported:
            return
        self._imported = True  # before the loop: an import may look something up
        try:
            for point in self._entry_points():
                if not (self._named and point.name in self._entries):
                    self._import(point)
        except BaseException:
            self._imported = False
            raise

    def _import(self, point: EntryPoint) -> None:
        """Import what an entry point refers to, and register it unless the import did."""
        try:
            value: Any = point.load()
        except Exception as error:
            package = f" of package '{point.dist.name}'" if point.dist is not None else ""
            raise PluginError(
                f"entry point '{point.name}' (={point.value}){package} in group '{self.group}' cannot be imported: "
                f"{type(error).__name__}: {error}; repair that package or uninstall it"
            ) from error
        if self._named and point.name not in self._entries:
            self.register(point.name, value)


class ClassRegistry(Registry[type[T]]):
    """Classes by their ``name``, whose instances are made by name and options: methods, schedules, strategies, solvers.

    Args:
        base: The class that all entries extend.
        argument, group, hint: As :class:`Registry` has them.

    Example:
        >>> class Colour:
        ...     name = ""
        >>> colours = ClassRegistry[Colour](Colour, "colour", group="example.colours", hint="add one with colours.add")
        >>> @colours.add
        ... @dataclass(frozen=True)
        ... class Red(Colour):
        ...     name = "red"
        ...     light: float = 0.5
        >>> colours.make("red", {"light": 0.7})
        Red(light=0.7)
    """

    def __init__(self, base: type[Any], argument: str, *, group: str, hint: str) -> None:
        super().__init__(argument, group=group, hint=hint)
        self._base = base

    def add(self, cls: C) -> C:
        """Class decorator: make a class available by its ``name``; :meth:`Registry.register` says what it refuses."""
        self.register(cls.name, cls)  # type: ignore[attr-defined]
        return cls

    def make(self, given: str | T, options: Mapping[str, Any]) -> T:
        """The instance called ``given`` with ``options``, or ``given`` itself if it is one.

        Raises:
            InvalidArgumentError: There is none of that name, it has no such option, or options come with an instance.
            PluginError: Another package's entry point cannot be imported.
        """
        if isinstance(given, str):
            return configured(self.argument, given, self.get(given), options)
        if not isinstance(given, self._base):
            raise InvalidArgumentError(f"{self.argument} (={given!r}) must be a {self.argument}'s name, or a {self._base.__name__}")
        if options:
            raise InvalidArgumentError(f"options {sorted(options)} cannot be combined with a {self.argument} object; set them on {given!r}")
        return cast("T", given)


def configured(argument: str, name: str, kind: type[T], options: Mapping[str, Any]) -> T:
    """An instance of a registered class with options by name, as a command line has them.

    Args:
        argument: What it is called in errors (``solver``).
        name: Its name.
        kind: Its class.
        options: Keyword arguments.

    Raises:
        InvalidArgumentError: It has no such option; the message names those that it has.
    """
    if is_dataclass(kind):
        known = [entry.name for entry in fields(kind) if entry.init]
        wrong = [option for option in options if option not in known]
        if wrong:
            raise InvalidArgumentError(f"{argument} {name!r} has no option {wrong[0]!r}; it has {', '.join(known) or 'none'}")
    try:
        return kind(**options)
    except TypeError as error:
        raise InvalidArgumentError(f"{argument} {name!r}: {error}") from error


def _same(one: object, other: object) -> bool:
    """Whether two classes or functions are one definition that ran twice."""
    places = [(getattr(entry, "__module__", None), getattr(entry, "__qualname__", "<")) for entry in (one, other)]
    return places[0] == places[1] and "<" not in places[0][1]
