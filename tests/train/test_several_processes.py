from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from latprune.train import SGD, Recipe, finetune
from support.training_task import loader

RECIPE = Recipe(epochs=2, learning_rate=0.1, optimizer=SGD(), weight_decay=1e-3)

SCRIPT = """
import sys, torch
from accelerate import PartialState
from safetensors.torch import save_file
from test_several_processes import RECIPE, plain
from latprune.train import finetune
from support.training_task import loader
torch.set_num_threads(1)
model = plain()
report = finetune(model, loader(), RECIPE, checkpoint_dir=sys.argv[1] + "/run")
rank = PartialState().process_index
save_file(model.state_dict(), f"{sys.argv[1]}/rank{rank}.safetensors")
open(f"{sys.argv[1]}/loss{rank}", "w").write(repr(report.epochs[-1].loss))
PartialState().destroy_process_group()
"""


def plain() -> nn.Module:
    """Without batch norm and dropout, so that the mean of two half batches' gradients is the whole batch's."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


@pytest.mark.slow
def test_two_processes_train_the_same_network_as_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    tests = Path(__file__).parents[1]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "PYTHONPATH": f"{tests}:{tests / 'train'}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "HOME": str(tmp_path),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    alone = plain()
    report = finetune(alone, loader(), RECIPE)
    first, second = (load_file(tmp_path / f"rank{rank}.safetensors") for rank in (0, 1))
    for name, value in alone.state_dict().items():
        assert torch.equal(first[name], second[name])
        assert torch.allclose(first[name], value, atol=1e-5)
    losses = [float((tmp_path / f"loss{rank}").read_text()) for rank in (0, 1)]
    assert losses == pytest.approx([report.epochs[-1].loss] * 2, rel=1e-4)
