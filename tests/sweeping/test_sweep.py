"""Sweeps: each cell is one run, what is done stays done, and the table says what nothing beats."""

from __future__ import annotations

import errno
import json
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import latprune
from latprune.cli import main
from latprune.errors import CheckpointError, FileFormatError, InvalidArgumentError
from latprune.methods import Uniform
from latprune.pruning import lock
from latprune.report.trade_off import TradeOff, plot_trade_offs, trade_off_text
from latprune.sweeping import Cell, SweepRow, grid, read_sweep, summarise, sweep_with, write_parquet
from latprune.train import Recipe
from latprune.zoo import digits_resnet

X = torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def build() -> torch.nn.Module:
    torch.manual_seed(0)
    return digits_resnet(blocks=2, widths=(8, 16, 16)).eval()


def counted(folder: Path, **options):
    arguments = {"budgets": ["flops=70%", "flops=50%"], "methods": ["sp_lamp", "uniform"], **options}
    return latprune.sweep(build, X, folder=folder, measure_latency=False, **arguments)


def row(accuracy: float | None, ratio: float | None, **values) -> SweepRow:
    given = {"budget": "50%", "method": "mdp", "engine": "openvino", "seed": 0, **values}
    return SweepRow(answer="pruned", accuracy=accuracy, ratio=ratio, macs=0.5, **given)


def test_every_cell_is_a_run_of_its_own(tmp_path):
    found = counted(tmp_path, seeds=[0, 1], evaluate=lambda model: 0.5)
    assert len(found.rows) == len(found.cells) == 8 and not found.failed
    for entry in found.rows:
        assert entry.answer == "pruned" and entry.accuracy == 0.5 and entry.macs <= float(entry.budget[6:-1]) / 100
        record = latprune.load_result(tmp_path / entry.cell.folder / "result").record
        assert (record.method.name, record.budget.text) == (entry.method, entry.budget)
    assert found.rows[0].macs == pytest.approx(found.rows[4].macs)  # the same but for the seed
    assert "flops=50%" in str(found) and [point.seeds for point in found.summary()] == [2, 2, 2, 2]


def test_methods_with_options_and_joint_budgets(tmp_path):
    whole = {"whole stem": Uniform(), "by eights": "uniform"}
    found = counted(tmp_path, methods=whole, budgets=["flops=60%+params=40%"])
    for entry in found.rows:
        assert entry.macs <= 0.6 and entry.parameters <= 0.4
    assert [entry.method for entry in found.rows] == list(whole)


def test_a_sweep_that_was_stopped_goes_on_where_it_was(tmp_path):
    ran: list[Cell] = []

    def job(cell: Cell, folder: Path):
        ran.append(cell)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return latprune.prune(build(), X, budget=cell.budgets, method=cell.method, folder=folder, measure_latency=False)

    cells = grid(budgets=["flops=70%", "flops=50%"], methods=["sp_lamp", "uniform"], engines=["openvino"], seeds=[0])
    with pytest.raises(KeyboardInterrupt):
        sweep_with(job, cells, folder=tmp_path)
    half = read_sweep(tmp_path)
    assert len(half.rows) == 2 and "2 of 4 runs are still to come" in str(half)
    found = sweep_with(job, cells, folder=tmp_path)
    assert ran == [*cells[:3], *cells[2:]] and len(found.rows) == 4
    more = [*cells, Cell(budget="flops=60%", method="uniform", engine="openvino")]
    assert len(sweep_with(job, more, folder=tmp_path).rows) == 5 and len(ran) == 6
    with pytest.raises(CheckpointError, match="other runs"):
        sweep_with(job, cells, folder=tmp_path)


def test_sweeps_on_one_machine_take_turns(tmp_path, monkeypatch):
    """A second sweep's run begins when the first one's has ended, and its listener hears why it waits."""
    monkeypatch.setenv("LATPRUNE_CACHE", str(tmp_path / "cache"))
    events: list[str] = []
    inside, waits = threading.Event(), threading.Event()

    def job(name: str):
        def run(cell: Cell, folder: Path):
            events.append(f"{name} begins")
            if name == "first":
                inside.set()
                assert waits.wait(60)
            events.append(f"{name} ends")
            return latprune.prune(build(), X, budget=cell.budgets, method=cell.method, folder=folder, measure_latency=False)

        return run

    def hear(line: str) -> None:
        if "another sweep" in line:
            waits.set()

    cells = grid(budgets=["flops=70%"], methods=["uniform"], engines=["openvino"], seeds=[0])
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(sweep_with, job("first"), cells, folder=tmp_path / "first")
        assert inside.wait(60)
        second = pool.submit(sweep_with, job("second"), cells, folder=tmp_path / "second", progress=hear)
        found = [first.result(), second.result()]
    assert events == ["first begins", "first ends", "second begins", "second ends"]
    assert [len(sweep.rows) for sweep in found] == [1, 1] and not any(sweep.failed for sweep in found)


def test_sweeps_run_without_turns_where_the_cache_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATPRUNE_CACHE", str(tmp_path / "file" / "cache"))
    said: list[str] = []
    found = counted(tmp_path / "sweep", methods=["uniform"], budgets=["flops=70%"], progress=said.append)
    assert not found.failed and any("cannot wait for each other" in line for line in said)


def test_a_folder_that_cannot_be_locked_is_not_waited_for(tmp_path, monkeypatch):
    """A file system without locks: every try fails, and none of them because another process has the lock."""

    def none(descriptor: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock, "_lock", none)
    waits: list[str] = []
    with pytest.raises(InvalidArgumentError, match="cannot be locked"), lock.locked(tmp_path, waiting=lambda: waits.append("")):
        pass
    assert not waits


def test_rows_of_other_settings_are_not_mixed(tmp_path):
    first = {"methods": {"mine": "uniform"}, "budgets": ["flops=50%"]}
    counted(tmp_path, **first)
    with pytest.raises(CheckpointError, match="slack was None, is 0.1"):
        counted(tmp_path, slack=0.1, **first)
    with pytest.raises(CheckpointError, match="method mine"):
        counted(tmp_path, **{**first, "methods": {"mine": "sp_lamp"}})
    assert len(counted(tmp_path, **{**first, "methods": {"mine": "uniform", "yours": "sp_lamp"}}).rows) == 2


def test_what_cannot_be_is_a_row_and_the_sweep_goes_on(tmp_path):
    calls = []

    def evaluate(model) -> float:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("the disk is full")
        return 0.5

    found = counted(tmp_path, methods=["uniform"], budgets=["flops=70%", "flops=0.01%"], evaluate=evaluate)
    assert [entry.answer for entry in found.rows] == ["failed", "refused"]
    assert "the disk is full" in found.rows[0].message and "the disk is full" in str(found)
    again = counted(tmp_path, methods=["uniform"], budgets=["flops=70%", "flops=0.01%"], evaluate=evaluate)
    assert [entry.answer for entry in again.rows] == ["pruned", "refused"] and again.rows[0].accuracy == 0.5


def test_the_front_is_what_nothing_of_the_same_engine_beats():
    rows = [
        row(0.90, 0.5, method="a"),
        row(0.92, 0.5, method="a", seed=1),
        row(0.90, 0.5, method="b"),
        row(0.85, 0.3, method="b", budget="30%"),
        row(0.99, 0.1, method="c", engine="onnxruntime"),
        row(None, 0.4, method="d"),
    ]
    points = {(point.method, point.budget): point for point in summarise(rows)}
    assert points["a", "50%"].accuracy == pytest.approx(0.91) and points["a", "50%"].spread == pytest.approx(0.0141421, rel=1e-4)
    assert {key for key, point in points.items() if point.best} == {("a", "50%"), ("b", "30%"), ("c", "50%")}
    text = trade_off_text(list(points.values()))
    assert "91.00 ± 1.41 %" in text and "no other of its engine" in text


def test_parquet_has_a_column_for_each_field(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [row(None, None), SweepRow.without(Cell(budget="1%", method="m", engine="e"), "refused", "below the floor", seconds=1.0)]
    write_parquet(rows, tmp_path / "rows.parquet")
    table = parquet.read_table(tmp_path / "rows.parquet")
    assert table.column_names == list(SweepRow.model_fields) and table.num_rows == 2
    assert str(table.schema.field("accuracy").type) == "double" and str(table.schema.field("blocks_removed").type) == "int64"
    assert [SweepRow.model_validate(entry) for entry in table.to_pylist()] == rows


def test_the_picture_has_a_panel_for_each_engine(tmp_path):
    pytest.importorskip("matplotlib")
    rows = [row(0.9, 0.5), row(0.8, 0.3, budget="30%"), row(0.7, 0.5, engine="onnxruntime")]
    plot_trade_offs(summarise(rows), tmp_path / "picture.svg")
    assert (tmp_path / "picture.svg").read_text().count('<g id="axes_') == 2
    with pytest.raises(InvalidArgumentError, match="no accuracy"):
        plot_trade_offs([TradeOff(engine="e", method="m", budget="b", seeds=1, latency=0.5, macs=None, accuracy=None)], tmp_path / "no.svg")


@pytest.mark.parametrize(("axis", "values"), [("budgets", []), ("methods", ["uniform", "uniform"]), ("seeds", [])])
def test_axes_without_values_or_with_one_twice(tmp_path, axis, values):
    with pytest.raises(InvalidArgumentError, match=axis):
        counted(tmp_path, **{axis: values})
    assert not list(tmp_path.iterdir())


def test_folders_of_different_cells_differ():
    cells = grid(budgets=["50%", "50 %"], methods=["a:b=1", "a:b=2", "A"], engines=["e"], seeds=[0, 1])
    assert len({cell.folder.lower() for cell in cells}) == len(cells)


def test_a_folder_that_holds_no_sweep_or_a_damaged_one(tmp_path):
    with pytest.raises(FileFormatError, match="no sweep"):
        read_sweep(tmp_path)
    counted(tmp_path, methods=["uniform"], budgets=["flops=50%"])
    (path,) = tmp_path.glob("*/row.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "answer": "perhaps"}))
    with pytest.raises(FileFormatError, match="row.json"):
        read_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text("[]")
    with pytest.raises(FileFormatError, match="sweep.json"):
        read_sweep(tmp_path)


def test_on_the_command_line(tmp_path, capsys):
    command = ["sweep", "--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "--budget", "flops=60%", "--method", "uniform"]
    command += ["--method", "sp_lamp:stages=2", "--predict-only", "-o", str(tmp_path)]
    assert main(command) == 0
    said = capsys.readouterr()
    assert "sp_lamp:stages=2" in said.out and "2 of 2" in said.err
    assert main([*command, "--method", "no_such"]) == 2
    assert "no_such" in capsys.readouterr().err
    assert main([*command, "--budget", "flops=0.001%", "--quiet"]) == 0
    assert "refused" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "foo"], "foo"),
        (["--engine", "torch", "--engine", "torch_compile", "--threads", "4096"], r"threads (=4096) must be at most"),
        (["--seed", "0", "--seed", "-1"], "--seed (=-1) must be at least 0"),
        (["--method", "mdp", "--method", "smcp"], "method 'smcp' solves for masks while the network trains: give --epochs or --recipe"),
        (["-o", "net.onnx"], "--output (='net.onnx') must be a folder"),
        (["-o", ""], "--output (='') must be a folder"),
    ],
)
def test_what_no_run_could_do_is_told_before_the_first(tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("latprune.cli.prune.prune_as_told", lambda told: pytest.fail("was run"))
    command = ["sweep", "--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "--budget", "flops=60%", "-o", "sweep"]
    assert main([*command, *options]) == 2
    assert words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("axis", [{"targets": ["foo"]}, {"seeds": [-1]}])
def test_engines_and_seeds_of_a_sweep_in_python_are_told_before_the_first_run(tmp_path, axis):
    with pytest.raises(InvalidArgumentError, match=r"foo|seeds \(=-1\)"):
        latprune.sweep(build, X, budgets=["flops=60%"], folder=tmp_path / "sweep", **axis)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_names_its_engine_is_run_on_it_unless_another_is_given(tmp_path, monkeypatch):
    budgets = ["60%@torch", "flops=60%", "60%@onnxruntime+flops=60%"]
    cells = grid(budgets=budgets, methods=["mdp"], engines=None, seeds=[0])
    assert [cell.engine for cell in cells] == ["torch", "openvino", "onnxruntime"]
    assert {cell.engine for cell in grid(budgets=budgets, methods=["mdp"], engines=["torch"], seeds=[0])} == {"torch"}
    ran = []

    def prune_as_told(told):
        ran.append((told.budget, told.engine))
        raise InvalidArgumentError("only its arguments are asked for")

    monkeypatch.setattr("latprune.cli.prune.prune_as_told", prune_as_told)
    command = ["sweep", "--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "-o", str(tmp_path / "sweep")]
    assert main([*command, "--budget", "60%@torch", "--budget", "70%"]) == 1
    assert ran == [(["60%@torch"], "torch"), (["70%"], "openvino")]
    monkeypatch.setattr(
        "latprune.sweeping.run.prune", lambda *_, budget, target, **options: prune_as_told(Namespace(budget=budget, engine=target))
    )
    latprune.sweep(build, X, budgets=["60%@torch"], folder=tmp_path / "own")
    assert ran[-1] == (("60%@torch",), "torch")


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ({"fit": Recipe(epochs=1, learning_rate=0.01)}, {"fit": Recipe(epochs=5, learning_rate=0.05)}, "fit was"),
        ({"fit": Recipe(epochs=1, learning_rate=0.01)}, {}, "fit was"),
        ({}, {"keep": ["stem"]}, "keep was None"),
        ({"keep": ("stem",)}, {"keep": ["head"]}, "keep was"),
        ({"min_widths": {"*": 4}}, {"min_widths": {"*": 8}}, "min_widths was"),
        ({"recover": latprune.recovery.Refit()}, {"recover": latprune.recovery.Refit(sweeps=2)}, "recover was"),
        ({"solver": latprune.solve.GroupKnapsack(units=1000)}, {"solver": latprune.solve.GroupKnapsack(units=2000)}, "solver was"),
        ({"widths": latprune.WidthRules(multiple_of=8)}, {"widths": latprune.WidthRules(multiple_of=4)}, "widths was"),
        ({"loss": build}, {"loss": counted}, "loss was"),
    ],
)
def test_rows_of_other_recipes_rules_and_strategies_are_not_mixed(tmp_path, monkeypatch, first, second, words):
    monkeypatch.setattr("latprune.sweeping.run.prune", lambda *_, **options: latprune.zoo.none)  # fails: the plan is what is asked for
    axes = {"methods": ["uniform"], "budgets": ["flops=60%"]}
    counted(tmp_path, **axes, **first)
    assert [entry.answer for entry in counted(tmp_path, **axes, **first).rows] == ["failed"]
    with pytest.raises(CheckpointError, match=words):
        counted(tmp_path, **{**axes, "budgets": ["flops=60%", "flops=40%"]}, **second)


def test_equal_options_are_one_setting_however_they_are_written(tmp_path, monkeypatch):
    seen = []

    def prune(*_, keep, fit, data, **options):
        seen.append((list(keep), len(list(data))))
        raise InvalidArgumentError("only its arguments are asked for")

    monkeypatch.setattr("latprune.sweeping.run.prune", prune)
    axes = {"methods": ["uniform"], "budgets": ["flops=60%", "flops=50%"], "fit": Recipe(epochs=1, learning_rate=0.01)}
    counted(tmp_path, keep=(name for name in ("a", "b")), data=iter([(X, X)]), **axes)
    counted(tmp_path, keep=["a", "b"], data=[(X, X)] * 2, slack=None, **axes)
    assert seen == [(["a", "b"], 1)] * 2 + [(["a", "b"], 2)] * 2


def test_a_plan_of_an_earlier_release_knows_plain_settings_alone(tmp_path):
    axes = {"methods": ["uniform"], "budgets": ["flops=60%"]}
    counted(tmp_path, slack=0.1, keep=["stem"], **axes)
    plan = json.loads((tmp_path / "sweep.json").read_text())
    assert plan["version"] == 2 and plan["settings"].pop("keep") == ["stem"]
    (tmp_path / "sweep.json").write_text(json.dumps({**plan, "version": 1}))
    with pytest.raises(CheckpointError, match="slack was 0.1"):
        counted(tmp_path, keep=["stem"], **axes)
    counted(tmp_path, slack=0.1, keep=["stem"], **axes)
    with pytest.raises(CheckpointError, match="keep was"):
        counted(tmp_path, slack=0.1, **axes)


def test_axes_are_read_once_and_budgets_are_those_of_prune():
    given = {
        "budgets": iter(["flops=60%", 0.5, latprune.Budget.parse("8ms"), ["params=60%", "40%"]]),
        "methods": (name for name in ["mdp"]),
        "engines": iter(["torch"]),
        "seeds": np.arange(2),
    }
    cells = grid(**given)
    assert [cell.budget for cell in cells[:4]] == ["flops=60%", "50%", "8ms", "40%+params=60%"]
    assert [cell.seed for cell in cells] == [0] * 4 + [1] * 4 and type(cells[0].seed) is int
    assert grid(budgets=["50%"], methods=["mdp"], engines=["torch"], seeds=list(np.arange(1)))[0].seed == 0


@pytest.mark.parametrize(
    ("axis", "words"),
    [
        ({"budgets": iter(())}, "budgets .* at least one value"),
        ({"budgets": "50%"}, "budgets"),
        ({"budgets": ["50%", 0.5]}, "budgets has 50% twice"),
        ({"budgets": [1.5]}, "1.5"),
        ({"seeds": 3}, r"seeds \(=3\)"),
        ({"seeds": np.linspace(0, 1, 2)}, "seeds"),
        ({"methods": "mdp"}, r"methods \(='mdp'\)"),
        ({"targets": "torch"}, r"targets \(='torch'\)"),
    ],
)
def test_axes_that_are_none_are_told_in_words(tmp_path, axis, words):
    with pytest.raises(InvalidArgumentError, match=words):
        counted(tmp_path / "sweep", **axis)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("targets", [None, ["torch"]])
def test_a_budget_that_is_none_is_told_before_anything_runs(tmp_path, targets):
    with pytest.raises(InvalidArgumentError, match="bogus"):
        counted(tmp_path / "sweep", budgets=["flops=60%", "bogus"], targets=targets)
    assert not list(tmp_path.iterdir())


def test_a_cell_that_failed_holds_nothing_and_may_be_left_out(tmp_path):
    def job(cell: Cell, folder: Path):
        return latprune.prune(build(), X, budget=cell.budgets, method=cell.method, folder=folder, measure_latency=False)

    good, other, typo = (Cell(budget=budget, method="uniform", engine="openvino") for budget in ("flops=60%", "flops=50%", "bogus"))
    assert [entry.answer for entry in sweep_with(job, [good, typo], folder=tmp_path).rows] == ["pruned", "failed"]
    assert [entry.answer for entry in sweep_with(job, [good, other], folder=tmp_path).rows] == ["pruned", "pruned"]
    with pytest.raises(CheckpointError, match="1 other runs"):
        sweep_with(job, [good, typo], folder=tmp_path)
