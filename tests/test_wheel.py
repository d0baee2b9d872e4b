"""The package as `python -m build` makes it: a wheel in an environment of its own, which runs what the README shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
BEFORE = """
import torch
from torch import nn

torch.manual_seed(0)
torch.set_num_threads(1)
layers = []
for inputs, outputs, stride in ((3, 32, 8), (32, 64, 2), (64, 64, 1), (64, 64, 1), (64, 64, 1)):
    layers += [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 4))
train_batches = test_batches = [(torch.randn(8, 3, 224, 224), torch.arange(8) % 4) for _ in range(4)]
"""
"""What the README takes for given: a model, and batches to train and to judge it with."""


def run(*command: str | Path, folder: Path) -> str:
    # What points Python to the working tree must not reach the new environment.
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run([str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("build")
    pytest.importorskip("hatchling")
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, ROOT, folder=folder)
    (found,) = folder.glob("latprune-*.whl")
    return found


@pytest.fixture(scope="module")
def environment(wheel: Path) -> Path:
    """A fresh environment with the wheel, which sees this one's other packages: installing PyTorch anew would take its gigabytes again."""
    place = wheel.parent / "environment"
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-index", wheel, folder=wheel.parent)
    (packages,) = place.glob("lib/python*/site-packages")
    # Files that end in .pth are read in site-packages alone, so this environment's link to the working tree is not followed.
    others = dict.fromkeys(path for path in (sysconfig.get_path("purelib"), *sys.path) if path.endswith("site-packages"))
    (packages / "others.pth").write_text("\n".join(others))
    return place


def test_the_wheel_holds_what_the_package_reads_at_run_time(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    source = {path.relative_to(ROOT / "src").as_posix() for path in (ROOT / "src" / "latprune").rglob("*") if path.is_file()}
    assert {name for name in source if "__pycache__" not in name} <= names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)


def test_the_command_line_is_there(environment: Path) -> None:
    program, folder = environment / "bin" / "latprune", environment.parent
    assert "latprune 0." in run(program, "--version", folder=folder)
    assert str(environment) in run(environment / "bin" / "python", "-c", "import latprune; print(latprune.__file__)", folder=folder)
    assert "torch" in run(program, "--version", "--verbose", folder=folder)
    assert "prune" in run(program, "--help", folder=folder)


def test_the_lines_of_the_readme_run(environment: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    script = tmp_path / "readme.py"
    script.write_text(f"{BEFORE}\n{code}")
    shown = run(environment / "bin" / "python", script, folder=tmp_path)
    assert "latency" in shown
    assert (tmp_path / "pruned" / "result.json").is_file()
    assert (tmp_path / "pruned.onnx").is_file()
