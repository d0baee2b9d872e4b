"""The registry that engines, methods, solvers, criteria and rules share."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest

from latprune.errors import InvalidArgumentError, PluginError
from latprune.registry import ClassRegistry, Registry, offer


def _registry(**options: object) -> Registry[object]:
    return Registry("colour", group="latprune_tests.colours", **options)  # type: ignore[arg-type]


def _offer(monkeypatch: pytest.MonkeyPatch, **points: object) -> list[str]:
    """Entry points of the group, each of which refers to one attribute of a module; the answer notes which are imported."""
    imported: list[str] = []

    class Offered(ModuleType):
        def __getattr__(self, name: str) -> object:
            if name not in points:
                raise AttributeError(name)
            imported.append(name)
            value = points[name]
            return value() if name.startswith("run_") and callable(value) else value

    monkeypatch.setitem(sys.modules, "latprune_offered", Offered("latprune_offered"))
    found = metadata.EntryPoints(
        metadata.EntryPoint(name=name.removeprefix("run_"), value=f"latprune_offered:{name}", group="latprune_tests.colours")
        for name in points
    )

    def entry_points(**wanted: str) -> metadata.EntryPoints:
        return found.select(**wanted)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    return imported


class Colour:
    name = ""


def test_classes_by_name_are_made_with_options() -> None:
    colours = ClassRegistry[Colour](Colour, "colour", group="latprune_tests.colours", hint="add one with add_colour")

    @colours.add
    @dataclass(frozen=True)
    class Red(Colour):
        name = "red"
        light: float = 0.5

    assert colours.get("red") is Red and colours.make("red", {"light": 0.7}) == Red(0.7)
    given = Red(0.1)
    assert colours.make(given, {}) is given
    with pytest.raises(InvalidArgumentError, match=r"^options \['light'\] cannot be combined with a colour object; set them on .*Red"):
        colours.make(given, {"light": 0.7})
    with pytest.raises(InvalidArgumentError, match=r"^colour \(=3\) must be a colour's name, or a Colour$"):
        colours.make(3, {})  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match=r"^colour \(='blue'\) must be one of red; add one with add_colour$"):
        colours.make("blue", {})
    with pytest.raises(InvalidArgumentError, match=r"^colour 'red' has no option 'size'; it has light$"):
        colours.make("red", {"size": 2})


def test_entries_by_name() -> None:
    colours = _registry(hint="add one with add_colour")
    assert colours.register("red", 1) == 1
    colours.register("blue", 2)
    assert colours.get("red") == 1
    assert colours.names() == tuple(colours) == ("blue", "red")
    assert "red" in colours and "green" not in colours
    assert colours.find("green", "blue", "red") == 2
    assert colours.find("green") is None
    with pytest.raises(InvalidArgumentError, match=r"^colour \(='green'\) must be one of blue, red; add one with add_colour$"):
        colours.get("green")


def test_a_name_is_given_once() -> None:
    colours = _registry()
    colours.register("red", 1)
    with pytest.raises(InvalidArgumentError, match=r"colour name \(='red'\) is already registered; choose another name"):
        colours.register("red", 2)
    assert colours.get("red") == 1
    colours.register("red", 2, replace=True)
    assert colours.get("red") == 2
    colours.remove("red")
    colours.remove("red")
    colours.register("red", 3)
    assert colours.get("red") == 3


def test_the_same_definition_may_run_again() -> None:
    """A cell of a notebook that registers a class is run twice."""
    cell = "class Red:\n    pass\n"
    first: dict[str, type] = {"__name__": "notebook"}  # type: ignore[dict-item]
    second = dict(first)
    exec(cell, first)
    exec(cell, second)
    colours = _registry()
    colours.register("red", first["Red"])
    colours.register("red", second["Red"])
    assert colours.get("red") is second["Red"]
    with pytest.raises(InvalidArgumentError, match="already registered"):
        colours.register("red", lambda: None)


@dataclass(frozen=True)
class Config:
    """A configuration."""


@dataclass(frozen=True)
class FinerConfig(Config):
    """A configuration of the same entry."""


def test_entries_by_type_of_configuration() -> None:
    colours = _registry()
    colours.register("red", 1, config_type=Config)
    colours.register("plain", 2)
    assert colours.of(Config()) == colours.of(FinerConfig()) == 1
    assert colours.config_type("red") is Config and colours.config_type("plain") is None
    assert colours.config_types() == (Config,)
    with pytest.raises(InvalidArgumentError, match=r"config \(=3\) must be the configuration of a registered colour: Config"):
        colours.of(3)
    with pytest.raises(InvalidArgumentError, match=r"config_type \(=Config\) already belongs to the colour 'red'"):
        colours.register("blue", 2, config_type=Config)
    assert "blue" not in colours
    colours.register("blue", 3, config_type=FinerConfig)
    assert colours.of(FinerConfig()) == 3
    colours.remove("blue")
    assert colours.of(FinerConfig()) == 1
    colours.register("red", 4, replace=True)
    with pytest.raises(InvalidArgumentError, match="must be the configuration"):
        colours.of(Config())


def test_entry_points_are_imported_when_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = _offer(monkeypatch, green="#0f0", yellow="#ff0")
    colours = _registry()
    colours.register("red", "#f00")
    assert colours.names() == ("green", "red", "yellow")
    assert colours.get("red") == "#f00"
    assert imported == []
    assert colours.get("green") == colours.get("green") == "#0f0"
    assert imported == ["green"]
    with pytest.raises(InvalidArgumentError, match="must be one of green, red, yellow"):
        colours.get("blue")


def test_an_entry_point_may_register_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = _registry()
    _offer(monkeypatch, run_green=lambda: colours.register("green", "#0f0"))
    assert colours.get("green") == "#0f0"


def test_modules_that_register_what_they_like(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = _registry(named=False)

    def rules() -> object:
        assert colours.find("violet") is None  # a look-up in the middle of the import does not import again
        colours.register("green", "#0f0", config_type=Config)
        return colours.register("yellow", "#ff0")

    imported = _offer(monkeypatch, run_rules=rules)
    assert colours.find("green") == "#0f0"
    assert colours.find("black") is None
    assert colours.names() == ("green", "yellow")
    assert colours.of(Config()) == "#0f0"
    assert imported == ["run_rules"]


def test_a_type_of_another_package_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    colours = _registry()
    _offer(monkeypatch, run_green=lambda: colours.register("green", "#0f0", config_type=Config))
    assert colours.of(FinerConfig()) == "#0f0"


def test_what_the_package_itself_offers_needs_no_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = _offer(monkeypatch, green="#0f0", yellow="#ff0")
    offer("latprune_tests.own", "leaf", "latprune_offered:green")
    colours = Registry[object]("colour", group="latprune_tests.own")
    assert colours.names() == ("leaf",)
    with monkeypatch.context() as patch:
        patch.delattr(metadata, "entry_points")
        assert colours.get("leaf") == "#0f0"
    assert imported == ["green"]


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> object:
        raise ImportError("no module named paint")

    _offer(monkeypatch, run_green=fail)
    for colours in (_registry(), _registry(named=False)):
        for _ in range(2):
            with pytest.raises(PluginError, match=r"'green' \(=latprune_offered:run_green\).*ImportError: no module named paint; repair"):
                colours.get("green")


PLUGIN = """
from dataclasses import dataclass
from typing import ClassVar

from latprune.graph import register_rule
from latprune.latency.engines import TorchEngine
from latprune.methods import Uniform
from latprune.solve import Greedy


class Mine(TorchEngine):
    name = "mine"


class Solver(Greedy):
    name = "mine"


@dataclass(frozen=True, slots=True, kw_only=True)
class Method(Uniform):
    name: ClassVar[str] = "mine"


@register_rule("mine::twice")
def twice(step):
    return step.elementwise()
"""

ENTRY_POINTS = """
[latprune.engines]
mine = latprune_mine:Mine
[latprune.solvers]
mine = latprune_mine:Solver
[latprune.methods]
mine = latprune_mine:Method
[latprune.operations]
mine = latprune_mine
"""

ASKING = """
import importlib.metadata as metadata
import sys

read = metadata.entry_points

def refused(**wanted):
    assert not wanted.get("group", "").startswith("latprune"), wanted
    return read(**wanted)

metadata.entry_points = refused
import latprune, latprune.methods, latprune.solve, latprune.latency, latprune.surgery
latprune.latency.get_engine("torch"), latprune.solve.solver_named("exact"), latprune.methods.get_method("mdp")
metadata.entry_points = read
assert "latprune_mine" not in sys.modules
from latprune.graph.rules import has_rule
print(latprune.latency.get_engine("mine").name, latprune.solve.solver_named("mine").name, latprune.methods.get_method("mine").name)
print(has_rule("mine::twice"), "mine" in latprune.methods.registered_methods(), "mine" in latprune.latency.available_engines())
"""


def test_an_installed_package_reaches_every_registry(tmp_path: Path) -> None:
    """A distribution as pip leaves it behind, on the path of a fresh process; nothing reads entry points for what is built in."""
    (tmp_path / "latprune_mine.py").write_text(PLUGIN)
    record = tmp_path / "latprune_mine-1.0.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: latprune-mine\nVersion: 1.0\n")
    (record / "entry_points.txt").write_text(ENTRY_POINTS)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    found = subprocess.run([sys.executable, "-c", ASKING], capture_output=True, text=True, env=environment, timeout=120)
    assert found.returncode == 0, found.stderr
    assert found.stdout.split("\n")[:2] == ["mine mine mine", "True True True"]
