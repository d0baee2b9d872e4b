"""Networks from anywhere beside each other, and saved results measured again: by the made-up engine's clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import latprune
from latprune.cli import main
from latprune.errors import CaptureError, InvalidArgumentError
from latprune.latency import Target, get_engine
from latprune.pruning.comparison import compare
from latprune.zoo import digits_resnet

X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.usefixtures("made_up_engine")


@pytest.fixture(scope="module")
def results(made_up_engine: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs' folders, as the command line leaves them."""
    folder = tmp_path_factory.mktemp("results")
    for name, budget in (("half", "flops=50%"), ("third", "flops=30%")):
        torch.manual_seed(0)
        constructor = "latprune.zoo:digits_resnet"
        options = {"measure_latency": False, "target": Target(engine="made-up"), "constructor": constructor, "folder": folder / name}
        latprune.prune(digits_resnet(), X, budget=budget, method="uniform", **options)
    return folder


def test_two_results_and_the_dense_model(results, capsys):
    half, third = str(results / "half"), str(results / "third" / "result")
    assert main(["compare", "latprune.zoo:digits_resnet", half, third, "--max-seconds", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["target"]["engine"] == "made-up"
    dense, first, second = found["networks"]
    assert [each["name"] for each in found["networks"]] == ["latprune.zoo:digits_resnet", half, third]
    assert first["macs"] / dense["macs"] <= 0.5 and second["macs"] / dense["macs"] <= 0.3
    assert dense["parameters"] > first["parameters"] > second["parameters"]
    assert second["latency"]["ratio"] < 0.9 and dense["accuracy"] is None
    assert main(["compare", half, third, "--max-seconds", "1"]) == 0
    said = capsys.readouterr().out
    assert "of the first" in said and "target" in said


def test_accuracy_beside_them(results, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import torch\n\ndef batches(count):\n    return [(torch.zeros(count, 1, 32, 32), torch.zeros(count).long())]\n"
    (tmp_path / "compare_data.py").write_text(code)
    command = ["compare", str(results / "half"), str(results / "third"), "--max-seconds", "1", "--json", "--data-arg", "count=3"]
    assert main([*command, "--test-data", "compare_data.py:batches"]) == 0
    assert all(each["accuracy"] in (0.0, 1.0) for each in json.loads(capsys.readouterr().out)["networks"])


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        (["latprune.zoo:digits_resnet", "latprune.zoo:cifar_resnet"], "give --input"),
        (["HALF"], "at least two"),
        (["latprune.zoo:digits_resnet"], "at least two"),
        (["HALF", "HALF"], "named twice"),
        (["HALF", "no/such/result"], "module"),
    ],
)
def test_what_cannot_be_compared(results, capsys, networks, words):
    assert main(["compare", *(name.replace("HALF", str(results / "half")) for name in networks)]) == 2
    assert words in capsys.readouterr().err


def test_a_network_that_cannot_be_traced_has_no_multiply_adds():
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.from_numpy(x.numpy() * 2.0)

    one, other = compare({"linear": nn.Linear(4, 4), "odd": Odd()}, torch.randn(2, 4), Target(engine="torch"), max_seconds=0.2)
    assert one.macs == 32.0 and one.parameters == 20 and other.parameters == 0
    with pytest.raises(InvalidArgumentError, match="two"):
        compare({"one": nn.Linear(4, 4)}, torch.randn(2, 4), Target(engine="torch"))
    with pytest.raises(InvalidArgumentError, match="return 0.934 for 93.4 %"):  # before anything is measured
        compare({"one": Odd(), "other": nn.Identity()}, None, Target(engine="torch"), evaluate=lambda network: 93.4)


@pytest.mark.parametrize(("kinds", "precision"), [(("float", "half"), "fp32"), (("half", "half"), "fp16"), (("bfloat16", "half"), "fp32")])
def test_all_networks_run_in_one_type(monkeypatch, kinds, precision):
    asked = []
    engine = type(get_engine("torch"))
    plain = engine.compile
    monkeypatch.setattr(engine, "compile", lambda self, model, x, target: asked.append(target.precision) or plain(self, model, x, target))
    networks = {f"{place}": getattr(nn.Linear(4, 4), kind)() for place, kind in enumerate(kinds)}
    compare(networks, torch.randn(2, 4), Target(engine="torch"), max_seconds=0.2)
    assert asked == [precision] * 2


def test_verify_finds_the_result_in_a_runs_folder(results, capsys):
    assert main(["verify", str(results / "half"), "--no-save"]) == 0
    assert "budget   flops=50%: met" in capsys.readouterr().out
    assert latprune.load_result(results / "half").path == results / "half" / "result"


def test_the_hint_to_verify_can_be_pasted(tmp_path, capsys, monkeypatch):
    import shlex

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my nets.py").write_text("import latprune.zoo\n\ndef net(blocks):\n    return latprune.zoo.digits_resnet(blocks=blocks)\n")
    command = ["prune", "--model", "my nets.py:net", "--model-arg", "blocks=2", "--input", "1x1x32x32", "--budget", "flops=50%"]
    assert main([*command, "--method", "uniform", "--engine", "made-up", "-o", "my run"]) == 0
    hint = capsys.readouterr().out.rpartition("verify with: ")[2].strip()
    words = shlex.split(hint)
    assert words[:2] == ["latprune", "verify"] and main([*words[1:], "--no-save"]) == 0
    assert main(["verify", "my run"]) == 2
    told = capsys.readouterr().err.partition("give ")[2].partition(" if that")[0]
    assert main(["verify", "my run", *shlex.split(told), "--no-save"]) == 0


class _Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> None:
        self.linear(x)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (nn.Linear(3, 4), torch.randn(2, 4), "network 'other': the model does not run on the example inputs: RuntimeError: "),
        (nn.Linear(4, 4), {"z": torch.randn(2, 4)}, "network 'one': the model does not run on the example inputs: TypeError: "),
        (_Silent(), torch.randn(2, 4), r"network 'other': the model returns no tensor on the example inputs \(but a NoneType\)"),
    ],
)
def test_networks_that_do_not_run_are_named_before_anything_is_measured(monkeypatch, model, inputs, words):
    monkeypatch.setattr(type(get_engine("torch")), "compile", lambda *_: pytest.fail("was compiled"))
    with pytest.raises(CaptureError, match=words):
        compare({"one": nn.Linear(4, 4), "other": model}, inputs, Target(engine="torch"))
