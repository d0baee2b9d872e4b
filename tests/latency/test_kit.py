from __future__ import annotations

import argparse
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from latprune.cli import measure
from latprune.errors import FileFormatError, InvalidArgumentError
from latprune.graph import trace
from latprune.latency import Store, Target, import_kit_results, write_kit

X = torch.zeros(1, 3, 24, 24)
TARGET = Target(engine="onnxruntime")


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.conv1 = nn.Conv2d(32, 32, 3, padding=1)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return torch.relu(x + self.conv2(torch.relu(self.conv1(x)))).mean(dim=(2, 3))


def network() -> Small:
    torch.manual_seed(0)
    return Small().eval()


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("kit") / "kit.zip"
    write_kit(path, network(), trace(network(), X), X, TARGET, networks=4)
    return path


@pytest.fixture(scope="module")
def results(kit: Path) -> Path:
    folder = kit.parent / "device"
    folder.mkdir()
    with zipfile.ZipFile(kit) as file:
        file.extract("run.py", folder)
    # An empty search path shows that the runner needs nothing of latprune.
    command = [sys.executable, "run.py", str(kit), "results.json"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "latprune" not in (folder / "run.py").read_text().split("import", 1)[1].split("def ")[0]
    return folder / "results.json"


def test_a_devices_results_become_samples(kit: Path, results: Path, tmp_path: Path) -> None:
    graph = trace(network(), X)
    with Store(tmp_path / "s.sqlite") as store:
        assert import_kit_results(store, kit, results, graph) == 4
        assert import_kit_results(store, kit, results, graph) == 0
        samples = store.networks()
        ((context, _),) = store.contexts()
    assert context.target == TARGET
    for sample in samples:
        names = {kernel.kernel for kernel in sample.kernels}
        expected = {"stem", "conv1", "conv2"} if not sample.removed else {"stem"}
        assert expected <= names
        assert sample.ms is not None and sample.ms > 0


def test_a_runner_goes_on_where_it_stopped(kit: Path, results: Path, tmp_path: Path) -> None:
    partial = json.loads(results.read_text())
    created = [item["created"] for item in partial["networks"]]
    partial["networks"] = partial["networks"][:3]
    (tmp_path / "results.json").write_text(json.dumps(partial))
    with zipfile.ZipFile(kit) as file:
        file.extract("run.py", tmp_path)
    done = subprocess.run([sys.executable, "run.py", str(kit), "results.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2
    again = json.loads((tmp_path / "results.json").read_text())["networks"]
    assert [item["created"] for item in again][:3] == created[:3] and len(again) == 5


def test_results_of_another_kit_and_broken_ones_are_refused(kit: Path, results: Path, tmp_path: Path) -> None:
    graph = trace(network(), X)
    good = json.loads(results.read_text())
    cases = [
        ({**good, "kit": "other"}, "another kit"),
        ({**good, "format": "x"}, "format"),
        ({**good, "networks": good["networks"][1:]}, "dense"),
        ({**good, "networks": [{**good["networks"][0], "ms": -1}]}, r"networks.0.ms"),
        ({**good, "networks": [*good["networks"], {**good["networks"][0], "index": 99}]}, "does not have"),
        ({**good, "surprise": 1}, "surprise"),
    ]
    with Store(tmp_path / "s.sqlite") as store:
        for content, message in cases:
            (tmp_path / "bad.json").write_text(json.dumps(content))
            with pytest.raises(FileFormatError, match=message):
                import_kit_results(store, kit, tmp_path / "bad.json", graph)
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
        with pytest.raises(InvalidArgumentError, match="kit's model"):
            import_kit_results(store, kit, results, trace(other, X))
        assert store.networks() == []
    (tmp_path / "no.zip").write_text("nothing")
    with Store(":memory:") as store, pytest.raises(FileFormatError, match="no measuring kit"):
        import_kit_results(store, tmp_path / "no.zip", results, graph)


def test_only_onnxruntime_can_be_planned(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="onnxruntime"):
        write_kit(tmp_path / "k.zip", network(), trace(network(), X), X, Target(engine="openvino"))


def test_command(results: Path, kit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    measure.add_parser(parser.add_subparsers())
    base = [
        "measure",
        "--model",
        f"{__file__}:network",
        "--input",
        "1x3x24x24",
        "--engine",
        "onnxruntime",
        "--store",
        str(tmp_path / "s.sqlite"),
    ]
    args = parser.parse_args([*base, "--plan", str(tmp_path / "new.zip"), "--max-networks", "2"])
    assert args.run(args) == 0 and (tmp_path / "new.zip").is_file()
    args = parser.parse_args([*base, "--plan", str(kit), "--results", str(results)])
    assert args.run(args) == 0
    assert "4 networks added" in capsys.readouterr().out
    args = parser.parse_args([*base, "--results", str(results)])
    with pytest.raises(InvalidArgumentError, match="--plan"):
        args.run(args)
