"""What a command will write, and with which options, is checked before it works."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import latprune
from latprune.cli import build_parser, main
from latprune.errors import InvalidArgumentError
from latprune.importance import MagnitudeConfig
from latprune.pruning import exploring

METHOD = latprune.MDP(score=MagnitudeConfig())


def _net(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))


def _explored(width: int, resource: str, **options: object) -> latprune.Exploration:
    return latprune.explore(_net(width), torch.randn(2, 8), resource=resource, points=4, method=METHOD, measure_latency=False, **options)


@pytest.mark.parametrize(
    ("width", "resource", "words"), [(16, "params", "explore both by the same resource"), (24, "flops", "another model")]
)
def test_what_cannot_be_shown_beside_an_exploration_is_told_before_it(
    monkeypatch: pytest.MonkeyPatch, width: int, resource: str, words: str
) -> None:
    other = _explored(width, resource)
    monkeypatch.setattr(exploring, "explored_stage", lambda *_, **__: pytest.fail("was scored"))
    with pytest.raises(InvalidArgumentError, match=words):
        _explored(16, "flops", beside=[other])


def test_a_limit_on_what_is_explored_is_told_as_it_was_written() -> None:
    with pytest.raises(InvalidArgumentError, match=r"budget \(=\['flops=50%'\]\) limits flops, which is explored at every limit"):
        _explored(16, "flops", budget="flops=50%")
    with pytest.raises(InvalidArgumentError, match=r"budget \(=\['flops=50%', 'flops=40%'\]\) limits flops twice"):
        latprune.Budget.parse_all(["flops=50%", "flops=40%"])


def test_a_picture_of_another_kind_is_told_before_anything_is_solved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["frontier", str(tmp_path / "none.json"), "--plot", "f.xyz"]) == 2
    assert "--plot (='f.xyz') must end in .svg, .png or .pdf" in capsys.readouterr().err


def test_a_report_is_a_page(tmp_path: Path) -> None:
    found = latprune.prune(_net(16), torch.randn(2, 8), budget="params=60%", method="uniform", measure_latency=False)
    with pytest.raises(InvalidArgumentError, match=r"report\.docx'\) must end in \.html"):
        found.report(tmp_path / "report.docx")
    found.report(tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_samples_are_written_as_parquet_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latprune.latency.Store(tmp_path / "store.sqlite").close()
    assert main(["table", "--store", str(tmp_path / "store.sqlite"), "export", str(tmp_path / "x.csv")]) == 2
    assert "must end in .parquet" in capsys.readouterr().err and not (tmp_path / "x.csv").exists()


def test_help_and_numbers_say_what_holds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser().parse_args(["compare", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "default: None" not in told and told.count("(default: as the first result records)") >= 4
    with pytest.raises(SystemExit) as ended:
        build_parser().parse_args(["explore", "--importance-batches", "-1", "-o", "x.html"])
    assert ended.value.code == 2 and "at least 1, or 0 for all" in capsys.readouterr().err


def test_no_command_writes_over_the_file_that_it_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _explored(16, "flops").save(tmp_path / "first.json")
    problem = tmp_path / "problem.json"
    problem.write_text("{}")
    before = (tmp_path / "first.json").read_bytes()
    model = ["--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "--resource", "flops", "--predict-only"]
    beside = ["--beside", str(tmp_path / "first.json"), "-o", str(tmp_path / "first.html")]
    tables = ["frontier", "--model", "latprune.zoo:digits_resnet", "--input", "1x1x32x32", "--tables", str(problem)]
    latprune.latency.Store(tmp_path / "store.parquet").close()
    store = ["--store", str(tmp_path / "store.parquet")]
    for words in (
        ["explore", *model, *beside],
        ["explore", *model, "--tables", str(problem), "-o", str(tmp_path / "problem.html")],
        ["solve", str(problem), "-o", str(problem)],
        [*tables, "-o", str(problem)],
        [*tables, "--write-problem", str(problem)],
        ["predictor", "train", "1", *store, "-o", str(tmp_path / "store.parquet")],
        ["table", *store, "export", str(tmp_path / "store.parquet")],
    ):
        assert main(words) == 2
        assert "itself, which would be lost" in capsys.readouterr().err
    assert (tmp_path / "first.json").read_bytes() == before and problem.read_text() == "{}"
    latprune.latency.Store(tmp_path / "store.parquet", reading=True).check()
