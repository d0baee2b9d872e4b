from __future__ import annotations

import argparse
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latprune.cli.loading import (
    InputSpec,
    example_inputs,
    load_batches,
    load_callable,
    load_model,
    load_tables,
    load_weights,
    parse_arguments,
    parse_input,
    recorded_constructor,
    recorded_inputs,
    target_from,
)
from latprune.errors import CheckpointError, FileFormatError, InvalidArgumentError
from support.sample_record import sample_dict, sample_record


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, with a file of constructors."""
    (tmp_path / "my_nets.py").write_text(
        "import torch\n"
        "def net(width=4, bias=True):\n    return torch.nn.Linear(3, width, bias=bias)\n"
        "def no_net():\n    return 3\n"
        "def broken():\n    raise TypeError('from inside')\n"
        "class Holder:\n    make = staticmethod(net)\n"
        "value = 3\n"
    )
    (tmp_path / "needs_more.py").write_text("import a_module_that_is_not_there\n")
    (tmp_path / "fails_itself.py").write_text("{}['key']\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("my_nets", "needs_more", "fails_itself"):
        sys.modules.pop(name, None)
    sys.path[:] = [entry for entry in sys.path if entry != str(tmp_path)]


@pytest.mark.parametrize("spec", ["my_nets:net", "my_nets.py:net", "./my_nets.py:net", "my_nets:Holder.make"])
def test_a_model_is_built_from_a_module_or_a_file(nets: Path, spec: str) -> None:
    model = load_model(spec, ["width=7", "bias=false"])
    assert isinstance(model, nn.Linear) and model.out_features == 7 and model.bias is None and not model.training


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("my_nets", "must have the form package.module:callable"),
        (":net", "must have the form"),
        ("my_nets:", "must have the form"),
        ("my_nets:nets", "'my_nets' has no 'nets'"),
        ("my_nets:value", "is a int; it must be callable"),
        ("no_such_module:net", "there is no module 'no_such_module'"),
        ("latprune.no_such:net", "there is no module 'latprune.no_such'"),
        ("no_such.py:net", "there is no file 'no_such.py'"),
        ("needs_more:net", "needs the module 'a_module_that_is_not_there'"),
        ("fails_itself:net", "cannot be imported: KeyError: 'key'"),
        ("fails_itself.py:net", "cannot be imported: KeyError: 'key'"),
    ],
)
def test_what_cannot_be_loaded_is_named(nets: Path, spec: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        load_callable(spec)


def test_a_constructor_that_refuses_or_builds_something_else_is_named(nets: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"cannot be called with the arguments \{'depth': 3\}"):
        load_model("my_nets:net", ["depth=3"])
    with pytest.raises(InvalidArgumentError, match="returned a int; it must return a torch.nn.Module"):
        load_model("my_nets:no_net")
    with pytest.raises(InvalidArgumentError, match=r"--model \(='my_nets:broken'\) fails: TypeError: from inside"):
        load_model("my_nets:broken")


def test_data_that_fails_or_is_none_is_named(nets: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--data \(='my_nets:broken'\) fails: TypeError: from inside; run it in Python"):
        load_batches("my_nets:broken", {}, argument="--data")
    with pytest.raises(InvalidArgumentError, match=r"--test-data \(='my_nets:broken'\) cannot be called with the arguments \{'size': 3\}"):
        load_batches("my_nets:broken", {"size": 3}, argument="--test-data")
    with pytest.raises(InvalidArgumentError, match="returned a int; it must return batches"):
        load_batches("my_nets:no_net", {}, argument="--data")


def test_arguments_are_json_or_text() -> None:
    found = parse_arguments(["depth=56", "shortcut=A", "widths=[1, 2]", "flag=true", "name=a=b", 'quoted="3"', "none=null"])
    assert found == {"depth": 56, "shortcut": "A", "widths": [1, 2], "flag": True, "name": "a=b", "quoted": "3", "none": None}
    python = parse_arguments(["a=True", "b=False", "c=None", 'd="None"', "e=no"])
    assert python == {"a": True, "b": False, "c": None, "d": "None", "e": "no"}
    for wrong in ("depth", "=3", "a-b=1"):
        with pytest.raises(InvalidArgumentError, match="must have the form KEY=VALUE"):
            parse_arguments([wrong])
    with pytest.raises(InvalidArgumentError, match="'a' was given twice"):
        parse_arguments(["a=1", "a=2"])


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("1x3x224x224", InputSpec(shape=(1, 3, 224, 224))),
        ("8", InputSpec(shape=(8,))),
        ("ids=2x128:int64:30522", InputSpec(shape=(2, 128), dtype="int64", high=30522, name="ids")),
        ("mask=2x4:bool", InputSpec(shape=(2, 4), dtype="bool", name="mask")),
    ],
)
def test_inputs_are_read(text: str, spec: InputSpec) -> None:
    assert parse_input(text) == spec


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x", "must have the form"),
        ("3,3", "must have the form"),
        ("1x0x3", "at least 1"),
        ("1x3:complex64", "dtype"),
        ("1:int64:0", "at least 1"),
    ],
)
def test_wrong_inputs_are_named(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        parse_input(text)


def test_example_inputs_are_a_tensor_a_tuple_or_keywords() -> None:
    one = example_inputs(["2x3"])
    assert isinstance(one, torch.Tensor) and torch.equal(one, example_inputs(["2x3"]))  # type: ignore[arg-type]
    two = example_inputs(["2x3", "2x5:int64:7"], batch=4)
    assert isinstance(two, tuple) and two[0].shape == (4, 3) and two[1].dtype == torch.int64 and int(two[1].max()) < 7
    named = example_inputs(["a=1x2", "b=1x3:float64"])
    assert isinstance(named, dict) and list(named) == ["a", "b"] and named["b"].dtype == torch.float64
    for wrong, message in ((["a=1x2", "1x2"], "name all inputs"), (["a=1", "a=2"], "given twice"), ([], "--input is missing")):
        with pytest.raises(InvalidArgumentError, match=message):
            example_inputs(wrong)


def test_weights_are_loaded_from_safetensors_alone(tmp_path: Path) -> None:
    source, model = nn.Linear(3, 4), nn.Linear(3, 4)
    save_file(source.state_dict(), tmp_path / "net.safetensors")
    load_weights(model, tmp_path / "net.safetensors")
    assert torch.equal(model.weight, source.weight)
    with pytest.raises(CheckpointError, match="do not fit the model"):
        load_weights(nn.Linear(3, 5), tmp_path / "net.safetensors")
    with pytest.raises(InvalidArgumentError, match="there is no such file"):
        load_weights(model, tmp_path / "other.safetensors")
    torch.save(source.state_dict(), tmp_path / "net.pth")
    with pytest.raises(InvalidArgumentError, match=r"pickled checkpoint.*weights_only=True"):
        load_weights(model, tmp_path / "net.pth")
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        load_weights(model, tmp_path / "bad.safetensors")


def test_the_target_takes_its_batch_from_the_input() -> None:
    args = argparse.Namespace(engine="torch", device="cpu", threads=2, batch=None, precision="fp32", input=["8x3x32x32"])
    assert target_from(args).batch == 8
    args.batch = 16
    assert target_from(args).batch == 16
    args.threads = 0
    with pytest.raises(InvalidArgumentError, match="threads"):
        target_from(args)


def test_a_saved_result_does_not_choose_the_code_that_runs(nets: Path) -> None:
    record = sample_record()
    assert isinstance(recorded_constructor(record, None, [])(), nn.Module)  # one of the library's own
    model = sample_dict()["model"]
    for constructor in ("my_nets:net", "os:system", "latprune.zoo:cifar10", "latprune.zoo.cifar_resnet:torch.hub.load"):
        foreign = sample_record(model=model | {"constructor": constructor, "arguments": {}})
        with pytest.raises(InvalidArgumentError, match=rf"names '{constructor}'.*--trust-recorded-model"):
            recorded_constructor(foreign, None, [])
    foreign = sample_record(model=model | {"constructor": "my_nets:net", "arguments": {"width": 9}})
    assert recorded_constructor(foreign, None, [], trust=True)().out_features == 9
    assert recorded_constructor(foreign, None, ["width=5"], trust=True)().out_features == 5
    assert recorded_constructor(foreign, "my_nets.py:net", [])().out_features == 4
    with pytest.raises(InvalidArgumentError, match="does not record how to build"):
        recorded_constructor(sample_record(model=model | {"constructor": None}), None, [])


def test_recorded_inputs_have_the_recorded_shape() -> None:
    assert recorded_inputs(sample_record(), []).shape == (1, 3, 32, 32)  # type: ignore[union-attr]
    assert recorded_inputs(sample_record(), ["2x3x8x8"]).shape == (2, 3, 8, 8)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("content", "says"), [(None, "cannot be read"), ("{", "cannot be read"), ("[]", "JSON object, not a list"), ("{}", "format")]
)
def test_files_that_hold_no_tables_are_named(tmp_path: Path, content: str | None, says: str) -> None:
    path = tmp_path / "tables.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FileFormatError, match=says):
        load_tables(str(path))
