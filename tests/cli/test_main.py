from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from latprune import __version__, cli
from latprune.cli import build_parser, main
from latprune.errors import BudgetInfeasibleError, CheckpointError, LatpruneError, MissingExtraError, OverBudgetError


def commands() -> dict[str, argparse.ArgumentParser]:
    (action,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(action.choices)


def test_help_is_quick_and_loads_neither_torch_nor_numpy() -> None:
    code = (
        "import sys\nfrom latprune.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich'} & set(sys.modules)\nassert not heavy, heavy"
    )
    seconds = []
    for _ in range(3):
        before = os.times()
        process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        after = os.times()
        # Processor time: what else runs on the machine must not decide.
        seconds.append(after.children_user + after.children_system - before.children_user - before.children_system)
        assert process.returncode == 0, process.stderr
    assert "prune a model to a budget" in process.stdout
    assert min(seconds) < 0.5


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, latprune; assert not {'torch', 'numpy', 'pydantic'} & set(sys.modules); assert latprune.Target().threads == 1"
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == 0, process.stderr


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_shows_an_example_of_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and f"latprune {name}" in text.partition("example")[2] and "--debug" in text


def test_the_promised_commands_are_there() -> None:
    assert {"prune", "measure", "solve", "frontier", "verify", "inspect", "export", "report", "demo"} <= set(commands())


def test_the_version_is_the_packages(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"latprune {__version__}"


@pytest.mark.parametrize("arguments", [[], ["prunes"], ["prune", "--budget"]])
def test_wrong_arguments_exit_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2 and "usage: latprune" in capsys.readouterr().err


class Command(ModuleType):
    """A command module that does what the test says."""

    def __init__(self, outcome: BaseException | int) -> None:
        super().__init__("command")
        self.outcome = outcome

    def add_parser(self, subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
        subparsers.add_parser("try").set_defaults(run=self.run)

    def run(self, args: argparse.Namespace) -> int:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome


@pytest.mark.parametrize(
    ("outcome", "code", "words"),
    [
        (0, 0, ""),
        (6, 6, ""),
        (LatpruneError("broken"), 1, "latprune: error: broken"),
        (CheckpointError("not this model"), 2, "latprune: error: not this model"),
        (BudgetInfeasibleError("too low", limit={"latency": 1.0}, floor={"latency": 2.0}), 3, "error: too low"),
        (MissingExtraError("onnx", "onnx"), 5, "pip install 'latprune[onnx]'"),
        (OverBudgetError("over", budget_ms=1.0, measured_ms=2.0), 6, "error: over"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(28, "No space left on device", "x.json"), 2, "latprune: error: [Errno 28] No space left on device: 'x.json'"),
        (ZeroDivisionError("a bug"), 1, "internal error: ZeroDivisionError: a bug\nrun again with --debug"),
    ],
)
def test_every_outcome_has_its_exit_code_and_one_message(
    outcome: BaseException | int, code: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (Command(outcome),))
    assert main(["try"]) == code
    found = capsys.readouterr()
    assert found.out == "" and words in found.err and "Traceback" not in found.err


def test_debug_lets_the_traceback_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "COMMANDS", (Command(LatpruneError("broken")),))
    with pytest.raises(LatpruneError, match="broken"):
        main(["try", "--debug"])


@pytest.mark.parametrize("module", ["latprune", "latprune.cli"])
def test_python_dash_m_runs_it_too(module: str) -> None:
    process = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert process.returncode == 0 and process.stdout.strip() == f"latprune {__version__}"
    process = subprocess.run([sys.executable, "-m", module, "prunes"], capture_output=True, text=True)
    assert process.returncode == 2 and "usage: latprune" in process.stderr


def test_the_fewest_networks_that_help_texts_name_are_those_that_tables_need() -> None:
    from latprune.cli import measure
    from latprune.latency.tabulating.table_builder import fewest_networks

    assert measure._LEAST == fewest_networks() < measure._IN_KIT < measure._MOST


@pytest.mark.parametrize("kind", ["spectral_norm", "weight_norm"])
def test_inspect_folds_weights_that_are_computed_of_others(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "normed.py").write_text(
        "from torch import nn\n"
        f"from torch.nn.utils.parametrizations import {kind}\n"
        "def net():\n"
        f"    return nn.Sequential({kind}(nn.Linear(4, 12)), nn.ReLU(), nn.Linear(12, 2))\n"
    )
    arguments = ["inspect", "--model", f"{tmp_path / 'normed.py'}:net", "--input", "1x4"]
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    # A weight norm is pruned through, unasked.
    assert ("0  [12, channels]" in shown) == ("pruned through their weight norms\n  0 (WeightNorm)" in shown) == (kind == "weight_norm")
    assert main([*arguments, "--fold"]) == 0
    shown = capsys.readouterr().out
    name = "WeightNorm" if kind == "weight_norm" else "SpectralNorm"
    assert "0  [12, channels]" in shown and f"0 ({name})" in shown.split("folded into plain weights")[1]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--budget", "60%@torch"], ["engine: torch", "'torch' on 'nowhere'"]),
        (
            ["--budget", "60%@torch", "--engine", "openvino"],
            ["is on torch, and the target on openvino: give target='torch' (--engine torch)"],
        ),
        (["--budget", "60%@torch", "--budget", "70%"], ["'openvino' on 'nowhere'"]),
    ],
)
def test_the_engine_that_a_budget_names_is_the_target_unless_another_is_given(given, words, tmp_path, monkeypatch, capsys) -> None:
    from latprune.errors import InvalidArgumentError
    from latprune.pruning import pruner

    def refuse(options, *, placed, **_):
        raise InvalidArgumentError(f"{placed.target.engine!r} on {placed.target.device!r}")

    monkeypatch.setattr(pruner, "check_together", refuse)
    model = ["--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "--device", "nowhere"]
    assert main(["prune", *model, *given, "-o", str(tmp_path / "pruned")]) == 2
    told = "".join(capsys.readouterr())
    assert all(word in told for word in words) and ("engine: torch" in told) == ("engine: torch" in words)
