"""explore, prune --pick and frontier as a user types them."""

import itertools
import json
import shlex
from pathlib import Path

import pytest

from latprune.cli import main
from latprune.export import ExplorationRecord, ResultRecord, export_onnx
from latprune.problem import Problem
from latprune.pruning import Pruner
from latprune.solve.many_limits import ManyLimits
from support.explored import X, exploration, made_up_tables, network

NETS = """
from support.explored import batches, network as net
"""
MODEL = ["--model", "nets.py:net", "--input", "1x1x32x32", "--criterion", "magnitude", "--engine", "onnxruntime"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "tables.json").write_text(json.dumps(made_up_tables().to_dict()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_explore_then_prune_as_the_page_says(folder, capsys):
    assert main(["explore", *MODEL, "--resource", "flops", "--points", "12", "--keep", "layer1.1.*", "--quiet", "-o", "run/see.html"]) == 0
    said = capsys.readouterr().out
    assert "12 networks, 12 proven" in said or "proven" in said
    record = ExplorationRecord.read("run/see.json")
    assert (folder / "run" / "see.html").stat().st_size < 500_000
    assert list(record.command) == [*MODEL[:4], *MODEL[6:], *MODEL[4:6], "--keep", "layer1.1.*"]
    # What is printed, and what the page copies: the recorded arguments, the file and a budget.
    words = shlex.split(said.partition("take one with: ")[2])
    assert words == ["latprune", "prune", *record.command, "--explore", "run/see.json", "--pick", "50%", "-o", "pruned"]
    assert main([*words[1:], "--predict-only", "--quiet"]) == 0
    result = ResultRecord.read("pruned/result/result.json")
    point = [point for point in record.points if point.value <= 0.5 * record.dense.value][-1]
    assert result.pruned.macs == point.macs and result.pruned.parameters == point.parameters
    assert result.budget.text == "flops=50%"


def test_explore_by_tables_of_a_device_that_is_not_here(capsys):
    arguments = ["--tables", "tables.json", "--predict-only", "--points", "8", "--quiet"]
    assert main(["explore", *MODEL, *arguments, "-o", "see.html"]) == 0
    record = ExplorationRecord.read("see.json")
    assert record.resource == "latency" and record.points[0].low is not None
    assert "--tables" in record.command and "--predict-only" in record.command


@pytest.mark.parametrize("during", ["solving", "measuring"])
def test_what_was_proven_is_kept_where_the_user_stops(during, folder, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    solve, count = ManyLimits.solve, itertools.count()
    if during == "solving":
        monkeypatch.setattr(ManyLimits, "solve", lambda *args: solve(*args) if next(count) < 6 else stop())
    else:
        monkeypatch.setattr(Pruner, "trial", stop)
    arguments = ["--resource", "flops", "--points", "8", "--measure", "1", "--quiet", "-o", "run/see.html"]
    assert main(["explore", *MODEL, *arguments]) == 130
    said = capsys.readouterr()
    assert "see.json" in said.err and "interrupted" in said.err and not said.out
    record = ExplorationRecord.read("run/see.json")
    assert (folder / "run" / "see.html").stat().st_size > 10_000 and record.dense.latency is None
    assert all(point.proven for point in record.points)
    if during == "solving":
        assert 1 < len(record.points) <= 6 and any("interrupted" in note for note in record.notes)
    else:
        assert len(record.points) >= 8
    words = [*MODEL, "--explore", "run/see.json", "--pick", f"flops={record.points[0].limit:g}", "-o", "pruned"]
    assert main(["prune", *words, "--predict-only", "--quiet"]) == 0


def test_nothing_is_written_where_the_user_stops_before_any_network(folder, monkeypatch, capsys):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(ManyLimits, "solve", stop)
    assert main(["explore", *MODEL, "--resource", "flops", "--points", "8", "--quiet", "-o", "see.html"]) == 130
    assert capsys.readouterr().err == "latprune: interrupted\n" and not (folder / "see.json").exists()


def test_an_onnx_file_is_explored_and_picked_from():
    export_onnx(network(), X, "net.onnx")
    options = ["--criterion", "magnitude", "--engine", "onnxruntime"]
    assert main(["explore", "net.onnx", *options, "--resource", "flops", "--points", "4", "--quiet", "-o", "see.html"]) == 0
    record = ExplorationRecord.read("see.json")
    assert record.model.name == "net" and record.command[0] == "net.onnx" and "--input" not in record.command
    words = shlex.split(shlex.join(record.command)) + ["--explore", "see.json", "--pick", "60%", "-o", "pruned"]
    assert main(["prune", *words, "--predict-only", "--quiet"]) == 0
    point = [point for point in record.points if point.value <= 0.6 * record.dense.value][-1]
    assert ResultRecord.read("pruned/result/result.json").pruned.macs == point.macs
    assert main(["frontier", "net.onnx", *options, "--resource", "params", "--points", "3", "-o", "f.json"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore", *MODEL, "--resource", "flops", "-o", "see.pdf"], "must end in .html"),
        (["explore", *MODEL, "--resource", "flops", "--method", "uniform", "-o", "see.html"], "solves no problem"),
        (["prune", *MODEL, "-o", "pruned"], "--budget is missing"),
        (["prune", *MODEL, "--pick", "50%", "-o", "pruned"], "go together"),
        (["prune", *MODEL, "--explore", "none.json", "--pick", "50%", "-o", "pruned"], "cannot be read"),
        (["prune", *MODEL, "--explore", "tables.json", "--pick", "50%", "-o", "pruned"], "not an exploration"),
        (["explore", "--resource", "flops", "-o", "see.html"], "there is no model"),
        (["explore", *MODEL, "--images", "photos", "--data", "nets.py:batches", "-o", "see.html"], "leave one of them out"),
        (["explore", *MODEL, "--mean", "0.5", "-o", "see.html"], "there are none"),
        (["frontier"], "SOURCE is missing"),
        (["frontier", "tables.json"], "not what they are worth"),
        (["frontier", "explorer.json"], "holds networks"),
        (["frontier", "tables.json", *MODEL, "--tables", "tables.json"], "give one"),
        (["frontier", *MODEL, "--gap", "0.1"], "belong to a problem file"),
        (["frontier", *MODEL, "--resource", "energy"], "must be one of"),
    ],
)
def test_refusals(folder, arguments, message, capsys):
    exploration().save(folder / "explorer.json")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_frontier_of_a_model_writes_the_problem_that_it_solved(capsys):
    arguments = ["--resource", "flops", "--points", "6", "-o", "f.json", "--write-problem", "problem.json"]
    assert main(["frontier", *MODEL, *arguments]) == 0
    of_model = json.loads(Path("f.json").read_text())["solutions"]
    assert [entry["status"] for entry in of_model] == ["optimal"] * 6
    assert Problem.read("problem.json").costs[0].name == "flops"
    assert main(["frontier", "problem.json", "--points", "6", "-o", "again.json"]) == 0
    again = json.loads(Path("again.json").read_text())["solutions"]
    assert [entry["gain"] for entry in again] == pytest.approx([entry["gain"] for entry in of_model])
    assert main(["solve", "problem.json", "-o", "solution.json"]) == 0


def test_frontier_of_tables_and_their_model():
    assert main(["frontier", "tables.json", *MODEL, "--predict-only", "--points", "5", "-o", "f.json"]) == 0
    found = json.loads(Path("f.json").read_text())
    assert found["resource"] == "latency" and len(found["solutions"]) == 5


def test_frontier_of_a_saved_result(capsys):
    assert main(["prune", *MODEL, "--budget", "flops=50%", "--predict-only", "--quiet", "--multiple-of", "4", "-o", "pruned"]) == 0
    for source in ("pruned/result", "pruned/result/result.json"):
        assert main(["frontier", source, "--points", "5", "-o", "f.json"]) == 0
        assert [entry["status"] for entry in json.loads(Path("f.json").read_text())["solutions"]] == ["optimal"] * 5
    exploration().save("explorer.json")
    assert main(["prune", *MODEL, "--explore", "explorer.json", "--pick", "50%", "--predict-only", "--quiet", "-o", "picked"]) == 0
    capsys.readouterr()
    assert main(["frontier", "picked/result"]) == 2
    assert "no problem was solved" in capsys.readouterr().err
