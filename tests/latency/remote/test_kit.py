from __future__ import annotations

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from latprune.cli import measure
from latprune.errors import EngineError, FileFormatError, InvalidArgumentError, TableError
from latprune.graph import ModelGraph, trace
from latprune.latency import ContextInfo, NetworkSample, Store, Target, import_kit_results, kit_runner, machine_name, write_kit
from latprune.latency.engines.onnx_graph import export_onnx
from latprune.latency.remote import kit as kit_module
from latprune.latency.tabulating.repeats import REPEAT, with_repeats

X = torch.zeros(1, 3, 24, 24)
TARGET = Target(engine="onnxruntime")


class Small(nn.Module):
    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

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
    assert context.machine == machine_name(), "what this machine measures itself must be of the same conditions"
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kit": "0" * 32}, "another kit"),
        ({"engine_version": "1.0"}, "another engine_version"),
        ({"machine": "a board"}, "another machine"),
        ({"networks": None}, "holds no results"),
    ],
)
def test_a_runner_neither_mixes_nor_overwrites_other_results(
    kit: Path, results: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    other = {**json.loads(results.read_text()), **change}
    if change == {"networks": None}:
        del other["networks"]
    (tmp_path / "results.json").write_text(json.dumps(other))
    command = [sys.executable, str(results.parent / "run.py"), str(kit), "results.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert json.loads((tmp_path / "results.json").read_text()) == other


def test_a_runner_without_its_kit_says_so(results: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(results.parent / "run.py"), "kit.zip", "results.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("kit.zip is not there")


def said(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """What the runner says, in one line, of what keeps it from measuring."""
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    assert done.returncode == 1 and done.stdout == "" and len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_runner_says_before_it_measures_where_results_cannot_be_written(kit: Path, results: Path, tmp_path: Path) -> None:
    runner = results.parent / "run.py"
    assert said(runner, kit, "nowhere/r.json", cwd=tmp_path).startswith("nowhere/r.json cannot be written ([Errno 2]")
    (tmp_path / "r.json").mkdir()
    assert said(runner, kit, "r.json", cwd=tmp_path).startswith("r.json is there, but cannot be read ([Errno 21]")
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"notes.txt": "a"}, "no latprune kit"),
        ({"plan.json": "{"}, "no latprune kit"),
        ({"plan.json": "[]"}, "no latprune kit"),
        ({"plan.json": '{"format": "latprune/latency-plan"}'}, "no latprune kit"),
        ({"plan.json": '{"format": "latprune/latency-kit", "networks": [], "inputs": []}'}, "damaged .*models/0.onnx.*copy the kit again"),
    ],
)
def test_a_zip_file_that_is_no_kit_is_said_so(results: Path, tmp_path: Path, files: dict[str, str], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        for name, text in files.items():
            file.writestr(name, text)
    found = said(results.parent / "run.py", "other.zip", "r.json", cwd=tmp_path)
    assert re.match(f"other.zip is {message}", found), found


@pytest.mark.parametrize("missing", ["numpy", "onnxruntime"])
def test_a_runner_names_the_package_that_is_missing(kit: Path, results: Path, tmp_path: Path, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{missing}'\")")
    (tmp_path / "run.py").write_text((results.parent / "run.py").read_text())
    found = said("run.py", kit, "r.json", cwd=tmp_path)
    assert f"No module named '{missing}'" in found and "python -m pip install numpy onnxruntime" in found


def test_a_full_disk_leaves_the_results_before(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    path = tmp_path / "r.json"
    kit_runner.save(str(path), {"networks": []})
    before = path.read_text()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(SystemExit, match=r"r.json cannot be written \(.*what it held is still there"):
            kit_runner.save(str(path), {"networks": ["x" * 5000]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert path.read_text() == before and list(tmp_path.iterdir()) == [path]


def test_results_are_on_the_disk_before_they_replace_those_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    sync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda handle: (calls.append("fsync"), sync(handle)))
    monkeypatch.setattr("os.replace", lambda source, target: (calls.append("replace"), replace(source, target)))
    kit_runner.save(str(tmp_path / "r.json"), {"networks": []})
    assert calls == ["fsync", "replace"] and json.loads((tmp_path / "r.json").read_text()) == {"networks": []}


def test_a_profile_that_cannot_be_read_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_runner, "open_session", lambda ort, data, plan, prefix: GpuSession(prefix))
    monkeypatch.setattr(GpuSession, "end_profiling", lambda self: self.prefix)
    with pytest.raises(SystemExit, match=r"cannot be read .*set TMPDIR"):
        kit_runner.step_runs(PLACES, b"", gpu_plan("cuda"), {"x": 0}, 10)


def test_the_runner_is_python_3_8() -> None:
    ast.parse(Path(kit_runner.__file__).read_text(), feature_version=(3, 8))


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
        ({**good, "networks": [*good["networks"], good["networks"][2]]}, "networks.5.index: network 2 is there twice"),
        ({**good, "networks": [*good["networks"][:2], {**good["networks"][2], "steps": []}]}, "networks.2.steps: no step"),
        ({**good, "networks": [{**good["networks"][0], "ms": 1e300}]}, r"networks.0.ms"),
        ({**good, "networks": [{**good["networks"][0], "created": float("nan")}]}, r"networks.0.created"),
        ({**good, "networks": [{**good["networks"][0], "runs": 10**30}]}, r"networks.0.runs"),
    ]
    with Store(tmp_path / "s.sqlite") as store:
        for content, message in cases:
            (tmp_path / "bad.json").write_text(json.dumps(content))
            with pytest.raises(FileFormatError, match=message):
                import_kit_results(store, kit, tmp_path / "bad.json", graph)
        other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).eval()
        with pytest.raises(InvalidArgumentError, match="kit's model"):
            import_kit_results(store, kit, results, trace(other, X))
        # The same names of groups, and other sizes.
        for wider, x in ((Small(64), X), (Small(), torch.zeros(1, 3, 16, 16))):
            with pytest.raises(InvalidArgumentError, match="kit's model"):
                import_kit_results(store, kit, results, trace(wider.eval(), x))
        assert store.networks() == []
    (tmp_path / "no.zip").write_text("nothing")
    with Store(":memory:") as store, pytest.raises(FileFormatError, match="no measuring kit"):
        import_kit_results(store, tmp_path / "no.zip", results, graph)


def test_the_devices_clock_is_kept(kit: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_runner, "CLOCK", str(tmp_path))
    assert kit_runner.clock_information() == {}
    (tmp_path / "scaling_governor").write_text("performance\n")
    (tmp_path / "scaling_cur_freq").write_text("1800000\n")
    clock = kit_runner.clock_information()
    assert clock == {"scaling_governor": "performance", "scaling_cur_freq": 1800000}
    found = json.loads(results.read_text())
    found["networks"] = [{**item, "clock": clock} for item in found["networks"]]
    (tmp_path / "r.json").write_text(json.dumps(found))
    with Store(":memory:") as store:
        import_kit_results(store, kit, tmp_path / "r.json", trace(network(), X))
        assert all(clock.items() <= sample.extra.items() for sample in store.networks())


def test_results_of_the_first_version_are_read(kit: Path, results: Path, tmp_path: Path) -> None:
    old = json.loads(results.read_text())
    old["version"] = 1
    for item in old["networks"]:
        del item["looks"], item["steady"], item["clock"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    with Store(":memory:") as store:
        assert import_kit_results(store, kit, tmp_path / "old.json", trace(network(), X)) == 4
    (tmp_path / "new.json").write_text(json.dumps({**old, "version": 3}))
    with Store(":memory:") as store, pytest.raises(FileFormatError, match="version 3"):
        import_kit_results(store, kit, tmp_path / "new.json", trace(network(), X))


def look(ratio: float, level: float = 2.0) -> dict[str, Any]:
    return {"ratio": ratio, "level": level, "spread": 0.01, "runs": 10}


@pytest.mark.parametrize(
    ("ratios", "looks", "expected", "steady"),
    [
        ([0.5, 0.51], 2, 0.505, True),
        # Interrupted at one end: a third time decides.
        ([0.9, 0.5, 0.51], 3, 0.51, True),
        ([0.5, 0.9, 0.51], 3, 0.51, True),
        # No two agree: the middle one, with a mark.
        ([0.5, 0.7, 0.9], 3, 0.7, False),
    ],
)
def test_the_runner_times_a_network_again_where_its_times_disagree(
    monkeypatch: pytest.MonkeyPatch, ratios: list[float], looks: int, expected: float, steady: bool
) -> None:
    coming = iter(ratios)
    profiles: list[int] = []

    def profile(*args: Any) -> tuple[list[dict[str, Any]], bool]:
        profiles.append(1)
        return [{"name": "c", "op": "Conv", "ms": 0.1 * len(profiles)}], True

    monkeypatch.setattr(kit_runner, "open_session", lambda *args: None)
    monkeypatch.setattr(kit_runner, "runner", lambda *args: None)
    monkeypatch.setattr(kit_runner, "look", lambda *args: look(next(coming)))
    monkeypatch.setattr(kit_runner, "profile", profile)
    found = kit_runner.measured(None, b"", {}, {}, None)
    assert (found["looks"], found["steady"]) == (looks, steady)
    assert found["ms"] == pytest.approx(2.0 * expected) and found["reference_ms"] == 2.0
    # The profile beside the last time counts.
    assert found["steps"][0]["ms"] == pytest.approx(0.1 * (looks - 1))


def test_the_runner_lets_a_network_settle_in_its_turn() -> None:
    """As the protocol does: what its results are compared with was timed so."""
    assert [kit_runner.settling(ms) for ms in (0.4, 5.0, 12.0, 80.0)] == [6, 5, 2, 0]
    turns: list[str] = []

    def run(name: str) -> Callable[[], None]:
        return lambda: turns.append(name)

    found = kit_runner.look(run("dense"), run("pruned"))
    assert found["runs"] == 6 * 2 * (6 + 30)
    assert turns[:4] == ["dense"] * 4 and turns[4:10] == ["pruned"] * 6
    assert "".join(name[0] for name in turns[10:]) == ("d" * 36 + "p" * 36) * 6


def test_the_runner_takes_a_profile_again_whose_halves_disagree(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = {"conv": [100.0] * 20, "small": [1.0, 3.0] * 10}
    slowed = {"conv": [100.0] * 10 + [150.0] * 10, "small": [1.0] * 20}
    # Single interrupted runs are left out of the mean, and are no drift.
    hit = {"conv": [100.0] * 19 + [900.0], "small": [1.0] * 20}
    assert not kit_runner.drifts(quiet) and kit_runner.drifts(slowed) and not kit_runner.drifts(hit)
    coming = iter([slowed, hit])
    monkeypatch.setattr(kit_runner, "step_runs", lambda *args: (next(coming), {"conv": "Conv", "small": "Relu"}))
    steps, steady = kit_runner.profile(None, b"", {}, {}, 20)
    assert steady and steps[0] == {"name": "conv", "op": "Conv", "ms": pytest.approx(0.1)}
    monkeypatch.setattr(kit_runner, "step_runs", lambda *args: (slowed, {"conv": "Conv", "small": "Relu"}))
    assert not kit_runner.profile(None, b"", {}, {}, 20)[1]


def test_a_second_kit_measures_again_what_is_far_off(
    kit: Path, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    measure.add_parser(parser.add_subparsers())
    second = tmp_path / "kit2.zip"
    base = ["measure", "--model", f"{__file__}:network", "--input", "1x3x24x24", "--engine", "onnxruntime"]
    base += ["--store", str(tmp_path / "s.sqlite")]

    def run(*arguments: str) -> str:
        args = parser.parse_args([*base, *arguments])
        assert args.run(args) == 0
        return capsys.readouterr().out

    # Four networks cannot say what is far off, and none of them is doubtful by itself, however busy this machine was.
    calm = json.loads(results.read_text())
    calm["networks"] = [{**item, "steady": True} for item in calm["networks"]]
    results = tmp_path / "r1.json"
    results.write_text(json.dumps(calm))
    assert "no second kit" in run("--plan", str(kit), "--results", str(results), "--again", str(second))
    assert not second.exists()
    seen: list[int] = []

    def due(graph: ModelGraph, context: ContextInfo, samples: list[NetworkSample]) -> list[NetworkSample]:
        seen.append(len(samples))
        return [samples[2]]

    monkeypatch.setattr(kit_module, "due_again", due)
    assert "1 networks to measure again" in run("--plan", str(kit), "--results", str(results), "--again", str(second))
    with zipfile.ZipFile(second) as file:
        file.extract("run.py", tmp_path)
    done = subprocess.run([sys.executable, "run.py", str(second), "r2.json"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 2, done.stderr
    with pytest.raises(FileFormatError, match="another kit"):
        run("--plan", str(kit), "--results", str(tmp_path / "r2.json"))
    assert "1 networks added" in run("--plan", str(second), "--results", str(tmp_path / "r2.json"))
    with Store(tmp_path / "s.sqlite") as store:
        samples = store.networks()
    assert seen == [4] and len(samples) == 5 and len(with_repeats(samples)) == 4
    assert samples[4].extra[REPEAT] == samples[2].created
    assert (samples[4].widths, samples[4].removed) == (samples[2].widths, samples[2].removed)
    third = tmp_path / "kit3.zip"
    run("--plan", str(second), "--results", str(tmp_path / "r2.json"), "--again", str(third))
    identities = []
    for path in (kit, second, third):
        with zipfile.ZipFile(path) as file:
            identities.append(json.loads(file.read("plan.json"))["kit"])
    assert len(set(identities)) == 3, "the same network twice is not the same measurement"


def test_again_needs_what_was_measured(tmp_path: Path) -> None:
    parser = argparse.ArgumentParser()
    measure.add_parser(parser.add_subparsers())
    base = ["measure", "--model", f"{__file__}:network", "--input", "1x3x24x24", "--engine", "onnxruntime", "--again", "kit2.zip"]
    for more, missing in [([], "--plan"), (["--plan", "kit.zip"], "--results")]:
        args = parser.parse_args([*base, *more])
        with pytest.raises(InvalidArgumentError, match=missing):
            args.run(args)


def test_a_kit_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kit.zip"
    path.write_text("the one before")
    made = iter(range(2))

    def export(*args: Any) -> Any:
        next(made)
        return export_onnx(*args)

    monkeypatch.setattr(kit_module, "export_onnx", export)
    with pytest.raises(StopIteration):
        write_kit(path, network(), trace(network(), X), X, TARGET, networks=4)
    assert path.read_text() == "the one before" and list(tmp_path.iterdir()) == [path]


def test_only_onnxruntime_can_be_planned(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="onnxruntime"):
        write_kit(tmp_path / "k.zip", network(), trace(network(), X), X, Target(engine="openvino"))


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"precision": "tf32"}, r"precision \(='tf32'\) needs the CUDA"),
        ({"precision": "tf32", "device": "tensorrt"}, r"precision \(='tf32'\) needs the CUDA"),
        ({"precision": "bf16"}, r"precision \(='bf16'\) is not available"),
        ({"device": "cuda:first"}, r"device \(='cuda:first'\) must end in the number"),
    ],
)
def test_what_the_engine_cannot_do_is_not_planned(tmp_path: Path, conditions: dict[str, str], message: str) -> None:
    with pytest.raises(EngineError, match=message):
        write_kit(tmp_path / "k.zip", network(), trace(network(), X), X, Target(engine="onnxruntime", **conditions), networks=2)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


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
    assert args.run(args) == 0 and "of 2 networks" in capsys.readouterr().out
    with zipfile.ZipFile(tmp_path / "new.zip") as file:
        stored = {item.filename for item in file.infolist() if item.compress_type == zipfile.ZIP_STORED}
    assert stored == {f"models/{index}.onnx" for index in range(3)}, "packing weights takes longer than exporting them, for nothing"
    args = parser.parse_args([*base, "--plan", str(kit), "--results", str(results)])
    assert args.run(args) == 0
    said = capsys.readouterr().out
    assert "4 networks added" in said and "their tables: --context 1" in said
    # The stored conditions name their engine.
    args = parser.parse_args([item for item in base if item not in ("--engine", "onnxruntime")] + ["--context", "1"])
    with pytest.raises(TableError, match="holds 4 networks"):
        args.run(args)
    args = parser.parse_args([*base, "--results", str(results)])
    with pytest.raises(InvalidArgumentError, match="--plan"):
        args.run(args)


class GpuSession:
    """A session that says it runs on CUDA, and writes the profile that a build with or without CUDA profiling would."""

    kernels: bool = True

    def __init__(self, prefix: str) -> None:
        self.prefix, self.bound = prefix, 0
        self.places: list[tuple[str, int]] = []

    def get_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def get_outputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="y")]

    def io_binding(self) -> SimpleNamespace:
        return SimpleNamespace(
            bind_ortvalue_input=lambda name, value: self.places.append(value),
            bind_output=lambda name, kind, index: self.places.append((kind, index)),
            synchronize_outputs=lambda: None,
        )

    def run_with_iobinding(self, binding: Any) -> None:
        self.bound += 1

    def end_profiling(self) -> str:
        launch = {"cat": "Node", "name": "conv_kernel_time", "dur": 500.0, "args": {"op_name": "Conv"}}
        kernels = [{"cat": "Kernel", "name": "sm90", "dur": 20.0}, {"cat": "Kernel", "name": "sm90", "dur": 5.0}]
        Path(self.prefix).write_text(json.dumps([launch, *(kernels if self.kernels else [])] * self.bound))
        return self.prefix


PLACES = SimpleNamespace(OrtValue=SimpleNamespace(ortvalue_from_numpy=lambda array, kind, index: (kind, index)))


def gpu_plan(device: str) -> dict[str, Any]:
    return {"target": {"threads": 1, "device": device, "precision": "fp32"}}


@pytest.mark.parametrize(("device", "index"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("tensorrt:2", 2)])
def test_the_runner_keeps_inputs_and_outputs_on_the_plans_gpu(device: str, index: int) -> None:
    session = GpuSession("")
    kit_runner.runner(PLACES, session, gpu_plan(device), {"x": 0})()
    assert session.places == [("cuda", index)] * 2


def test_the_runner_reads_kernels_on_a_gpu_and_not_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_runner, "open_session", lambda ort, data, plan, prefix: GpuSession(prefix))
    found, ops = kit_runner.step_runs(PLACES, b"", gpu_plan("cuda"), {"x": 0}, 10)
    assert found == {"conv": [25.0] * 10} and ops == {"conv": "Conv"}
    monkeypatch.setattr(GpuSession, "kernels", False)
    with pytest.raises(SystemExit, match="without CUDA profiling"):
        kit_runner.step_runs(PLACES, b"", gpu_plan("cuda"), {"x": 0}, 10)


@pytest.mark.parametrize(
    ("device", "given"),
    [
        ("cuda", ("CUDAExecutionProvider", {"use_tf32": 0})),
        ("cuda:1", ("CUDAExecutionProvider", {"device_id": 1, "use_tf32": 0})),
        ("tensorrt:1", ("TensorrtExecutionProvider", {"device_id": 1})),
    ],
)
def test_the_runner_asks_for_the_plans_gpu_and_does_not_fall_back_to_the_processor(device: str, given: tuple[str, dict[str, int]]) -> None:
    import onnxruntime

    asked: list[Any] = []

    def session(data: bytes, options: Any, providers: list[Any]) -> SimpleNamespace:
        asked.extend(providers)
        return SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])

    names = ("SessionOptions", "ExecutionMode", "GraphOptimizationLevel")
    ort = SimpleNamespace(InferenceSession=session, **{name: getattr(onnxruntime, name) for name in names})
    with pytest.raises(SystemExit, match=f"could not start {given[0]}"):
        kit_runner.open_session(ort, b"", gpu_plan(device))
    assert asked == [given]


def test_the_runner_names_the_plans_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit_runner, "gpu_name", lambda number: f"GPU {number}")
    assert kit_runner.machine(gpu_plan("cpu")) == machine_name()
    assert kit_runner.machine(gpu_plan("cuda")) == f"GPU 0, {machine_name()}"
    assert kit_runner.machine(gpu_plan("tensorrt:3")) == f"GPU 3, {machine_name()}"
    monkeypatch.setattr(kit_runner, "gpu_name", lambda number: None)
    assert kit_runner.machine(gpu_plan("cuda")) == machine_name()

    def unknown(number: int) -> str:
        raise ValueError(f"which is {number}?")

    monkeypatch.setattr(kit_runner, "gpu_name", unknown)
    with pytest.raises(SystemExit, match=r"which is 1\?"):
        kit_runner.machine(gpu_plan("cuda:1"))


@pytest.mark.parametrize(
    ("cpuinfo", "board", "expected"),
    [
        (
            "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 17\nmodel name\t: AMD EPYC\nstepping\t: 1\n\nprocessor\t: 1\nmodel\t\t: 18\n",
            None,
            "AMD EPYC (family 25, model 17, stepping 1)",
        ),
        ("processor\t: 0\nBogoMIPS\t: 108.00\n\nHardware\t: BCM2835\n", "Raspberry Pi 4 Model B\0", "Raspberry Pi 4 Model B"),
        # Windows and macOS have neither file.
        (None, None, "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel"),
    ],
)
def test_the_runner_and_latprune_name_a_machine_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cpuinfo: str | None, board: str | None, expected: str
) -> None:
    for name, text in (("CPUINFO", cpuinfo), ("BOARD", board)):
        monkeypatch.setattr(kit_runner, name, str(tmp_path / name))
        if text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr("platform.processor", lambda: "Intel64 Family 6 Model 158 Stepping 10, GenuineIntel")
    assert kit_runner.processor_name() == machine_name.__wrapped__() == expected
