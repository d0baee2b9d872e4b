"""Two processes under DistributedDataParallel end with the masks and the weights of one process with the same global batch."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, distributed, nn

from latprune.graph import Selection, trace
from latprune.importance import TaylorAccumulator, TaylorConfig
from latprune.surgery import TrainingMask

SCRIPT = """
import sys, torch
from safetensors.torch import save_file
from test_training_masks_distributed import train
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
for straight_through in (False, True):
    save_file(train(straight_through, rank, 2), f"{sys.argv[1]}/{straight_through}{rank}.safetensors")
save_file(train(True, rank, 2, norm_scaling=True), f"{sys.argv[1]}/scaled{rank}.safetensors")
torch.distributed.destroy_process_group()
"""


def network(batch_norm: bool = False) -> nn.Module:
    """Without batch norm the mean of two half batches' gradients is the whole batch's."""
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(8) if batch_norm else nn.LayerNorm(8)
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), norm, nn.GELU(), nn.Linear(8, 5))


def train(straight_through: bool, rank: int, processes: int, *, norm_scaling: bool | None = None) -> dict[str, Tensor]:
    """Steps under masks that are chosen anew by reduced running scores; the last mask with its hidden values, and the weights."""
    model = network(batch_norm=norm_scaling is not None)
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(16, 6, generator=generator), torch.randint(5, (16,), generator=generator)) for _ in range(9)]
    graph = trace(model, data[0][0])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    mask = TrainingMask(model, graph, straight_through=straight_through, norm_scaling=bool(norm_scaling))
    mask.attach(optimizer)
    scores = TaylorAccumulator(model, graph, TaylorConfig())
    run = nn.parallel.DistributedDataParallel(model) if distributed.is_initialized() else model
    for number, (x, y) in enumerate(data):
        optimizer.zero_grad()
        F.cross_entropy(run(x[rank::processes]), y[rank::processes]).backward()
        scores.decay(0.9)
        scores.update()
        optimizer.step()
        if number % 3 == 0:
            scores.reduce()
            kept = {n: np.sort(np.argsort(-u, kind="stable")[: u.size // 2]) for n, u in scores.importance().units.items()}
            mask.set(Selection(kept=kept))
    return {**mask.state_dict(), **{f"weight.{name}": value.detach().clone() for name, value in model.named_parameters()}}


@pytest.mark.slow
def test_two_processes_train_the_masked_network_of_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = Path(__file__).parent
    shared = {
        "PYTHONPATH": ":".join([str(here), str(here.parent), *sys.path]),
        "OMP_NUM_THREADS": "1",
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
            env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)},
        )
        for r in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
    for straight_through in (False, True):
        alone = train(straight_through, 0, 1)
        first, second = (load_file(tmp_path / f"{straight_through}{rank}.safetensors") for rank in (0, 1))
        assert set(first) == set(second) == set(alone)
        for name, value in alone.items():
            assert torch.equal(first[name], second[name])
            assert torch.allclose(first[name].float(), value.float(), rtol=1e-4, atol=1e-6), name
        assert any(name.startswith("hidden.") for name in alone)
    first, second = (load_file(tmp_path / f"scaled{rank}.safetensors") for rank in (0, 1))
    assert set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)
    alone, unscaled = (train(True, 0, 1, norm_scaling=on) for on in (True, False))
    assert any(not torch.equal(alone[name], unscaled[name]) for name in alone if name.startswith("weight."))
