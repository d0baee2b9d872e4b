from __future__ import annotations

import ast
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from latprune.errors import CheckpointError
from latprune.train import SGD, Recipe, finetune
from latprune.train.run import Run
from latprune.train.state import Position
from support.training_task import loader

RECIPE = Recipe(epochs=2, learning_rate=0.1, optimizer=SGD(), weight_decay=1e-3)

UNEVEN = replace(RECIPE, accumulate=2)
SIZE, BATCH = 46, 9
"""Shares of 5 and 4, and a last batch of one example, which leaves the second process none."""

UNEVEN_SCRIPT = """
import os, sys, torch
from dataclasses import replace
from accelerate import PartialState
from safetensors.torch import save_file
from test_several_processes import BATCH, SIZE, UNEVEN, normed, plain
from latprune.train import finetune
from support.training_task import loader
torch.set_num_threads(1)
rank = os.environ["RANK"]
for name, model, ema in (("plain", plain(), None), ("normed", normed(), None), ("averaged", normed(), 0.9)):
    recipe = replace(UNEVEN, ema=ema)
    seen = []

    def evaluate(network):
        seen.append(torch.cat([buffer.flatten().double() for buffer in network.buffers()] or [torch.zeros(1)]))
        return 0.5

    report = finetune(model, loader(SIZE, BATCH), recipe, evaluate=evaluate)
    save_file(dict(model.state_dict()) | {f"seen{n}": value for n, value in enumerate(seen)}, f"{sys.argv[1]}/{name}{rank}.safetensors")
    open(f"{sys.argv[1]}/{name}{rank}", "w").write(repr(report.epochs[-1].loss))
PartialState().destroy_process_group()
"""

SCRIPT = """
import sys, torch
from accelerate import PartialState
from safetensors.torch import save_file
from test_several_processes import RECIPE, plain
from latprune.train import finetune
from support.training_task import loader
torch.set_num_threads(1)
model, left = plain(), [int(sys.argv[2])]

def stop(network):
    left[0] -= 1
    if left[0] == 0:
        raise KeyboardInterrupt

try:
    report = finetune(model, loader(), RECIPE, checkpoint_dir=sys.argv[1] + "/run", checkpoint_seconds=0.0, after_step=stop)
except KeyboardInterrupt:
    PartialState().destroy_process_group()
    sys.exit(3)
rank = PartialState().process_index
save_file(model.state_dict(), f"{sys.argv[1]}/rank{rank}.safetensors")
open(f"{sys.argv[1]}/report{rank}", "w").write(repr((report.epochs[-1].loss, report.resumed_from)))
PartialState().destroy_process_group()
"""


def plain() -> nn.Module:
    """Without batch norm and dropout, so that the mean of two half batches' gradients is the whole batch's."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def normed() -> nn.Module:
    """With batch norm, whose statistics each process gathers over its own examples."""
    torch.manual_seed(0)
    places = nn.Sequential(nn.Unflatten(1, (1, 2)), nn.Conv1d(1, 4, 1), nn.BatchNorm1d(4))  # two of each example: one example will do
    return nn.Sequential(places, nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))


def two_processes(folder: Path, *, stop_at: int = 0, text: str = SCRIPT) -> None:
    """One run of a script in two processes; with ``stop_at`` both are broken off at that step, right before its checkpoint."""
    script = folder / "script.py"
    script.write_text(text)
    tests = Path(__file__).parents[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests / "train"), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "HOME": str(folder),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(stop_at)],
            stderr=subprocess.PIPE,
            text=True,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == (3 if stop_at else 0), errors[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [0, 8])
def test_two_processes_train_the_same_network_as_one(tmp_path: Path, stop_at: int) -> None:
    """Also where they were broken off in the second epoch, and two others went on from the checkpoint."""
    from safetensors.torch import load_file

    if stop_at:
        two_processes(tmp_path, stop_at=stop_at)
    two_processes(tmp_path)
    alone = plain()
    report = finetune(alone, loader(), RECIPE)
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], value, atol=1e-5)
    for rank in (0, 1):
        loss, resumed = ast.literal_eval((tmp_path / f"report{rank}").read_text())
        assert loss == pytest.approx(report.epochs[-1].loss, rel=1e-4)
        assert resumed == (stop_at - 1 if stop_at else None)


@pytest.mark.slow
def test_uneven_shares_train_the_same_network_and_all_end_with_the_same_buffers(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    two_processes(tmp_path, text=UNEVEN_SCRIPT)
    alone = plain()
    report = finetune(alone, loader(SIZE, BATCH), UNEVEN)
    for name in ("plain", "normed", "averaged"):
        first, second = (load_file(tmp_path / f"{name}{rank}.safetensors") for rank in (0, 1))
        assert first.keys() == second.keys() and {"seen0", "seen1"} <= first.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
        if name == "plain":
            assert all(torch.allclose(first[key], value, atol=1e-5) for key, value in alone.state_dict().items())
    for rank in (0, 1):
        assert float((tmp_path / f"plain{rank}").read_text()) == pytest.approx(report.epochs[-1].loss, rel=1e-4)


class Machines:
    """Stands for an accelerator of two processes, the other of which is at batch ``other`` of a checkpoint (0: it finds none)."""

    num_processes = 2
    device = torch.device("cpu")

    def __init__(self, other: int) -> None:
        self.other = float(other)

    def reduce(self, mine: torch.Tensor, reduction: str) -> torch.Tensor:
        return mine + torch.tensor([self.other, self.other**2], dtype=mine.dtype)


@pytest.mark.parametrize(("mine", "other"), [(0, 0), (0, 5), (5, 0), (5, 5), (5, 7)])
def test_machines_that_see_different_checkpoints_do_not_begin(tmp_path: Path, mine: int, other: int) -> None:
    run = object.__new__(Run)
    run.accelerator = Machines(other)
    record = SimpleNamespace(position=Position(epoch=0, batch=mine - 1), steps_per_epoch=8) if mine else None
    if mine == other:
        run._require_seen_by_all(record, tmp_path)
        return
    with pytest.raises(CheckpointError, match="see checkpoint_dir as one folder"):
        run._require_seen_by_all(record, tmp_path)
