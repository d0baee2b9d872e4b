"""Two processes of one training under DistributedDataParallel end with one network, that of a single process with the same global batch."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn

import latprune
from latprune.errors import LatpruneError
from latprune.importance import TaylorConfig
from latprune.methods import SMCP, SPLAMP, SoftMasks
from latprune.pruning.agreement import agreed, of_first
from latprune.pruning.proposing import ProposalSearch
from latprune.pruning.state import selection_to_dict

SCRIPT = """
import json, sys, torch
from safetensors.torch import save_file
from test_processes_agree import failing, only_the_first_searches, train
torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
only_the_first_searches(rank)
for kind in ("soft", "stages"):
    weights, said = train(kind, rank, 2)
    save_file(weights, f"{sys.argv[1]}/{kind}{rank}.safetensors")
    open(f"{sys.argv[1]}/{kind}{rank}.json", "w").write(json.dumps(said))
open(f"{sys.argv[1]}/error{rank}", "w").write(failing(rank))
torch.distributed.destroy_process_group()
"""


def only_the_first_searches(rank: int) -> None:
    """What another process would have found by itself (another clock, another time limit) must not matter."""
    if rank:

        def search(*args: Any, **options: Any) -> None:
            raise AssertionError("this is left to the first process")

        ProposalSearch.find = search


def failing(rank: int) -> str:
    """What a process says of an error that only the first one meets."""

    def find() -> float:
        raise ZeroDivisionError("no machine")

    try:
        of_first(find)
    except (ZeroDivisionError, LatpruneError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def network() -> nn.Module:
    """Without batch norm, so that the mean of two half batches' gradients is the whole batch's."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.LayerNorm(12), nn.GELU(), nn.Linear(12, 5))


def train(kind: str, rank: int, processes: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Masks that move and end in a cut, or two stages with training between; the weights, and what was kept."""
    model = network()
    generator = torch.Generator().manual_seed(1)
    data = [(torch.randn(16, 6, generator=generator), torch.randint(5, (16,), generator=generator)) for _ in range(12)]
    score = TaylorConfig(reduction="per_group", side="readers")
    method = SMCP(score=score, masks=SoftMasks(every=2)) if kind == "soft" else SPLAMP(stages=2, score=score)
    pruner = latprune.Pruner(model, data[0][0], budget="flops=50%", method=method, measure_latency=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    changes: list[Any] = []
    while not pruner.done:
        run = nn.parallel.DistributedDataParallel(model) if distributed.is_initialized() else model
        training = pruner.masked_training(steps=len(data), optimizers=optimizer) if kind == "soft" else None
        for x, y in data:
            if training is not None:
                training.before_forward()
            optimizer.zero_grad()
            nn.functional.cross_entropy(run(x[rank::processes]), y[rank::processes]).backward()
            if training is not None:
                training.after_backward()
            else:
                pruner.accumulate()
            optimizer.step()
        changes += [change.widths for change in training.changes] if training is not None else []
        report = pruner.step(optimizers=optimizer)
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return weights, {"changes": changes, "kept": selection_to_dict(pruner.selection), "widths": dict(report.widths)}


@pytest.mark.slow
def test_two_processes_prune_the_network_of_one(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    (tmp_path / "script.py").write_text(SCRIPT)
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
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=shared | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in (0, 1)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors[-3000:]
    for kind in ("soft", "stages"):
        weights, said = train(kind, 0, 1)
        first, second = (load_file(tmp_path / f"{kind}{rank}.safetensors") for rank in (0, 1))
        one, two = (json.loads((tmp_path / f"{kind}{rank}.json").read_text()) for rank in (0, 1))
        assert one == two == said
        assert said["kept"]["kept"]
        assert set(first) == set(second) == set(weights)
        for name, value in weights.items():
            assert torch.equal(first[name], second[name]), name
            torch.testing.assert_close(first[name], value, rtol=1e-4, atol=1e-6)
    assert (tmp_path / "error0").read_text() == "ZeroDivisionError: no machine"
    assert (tmp_path / "error1").read_text() == "LatpruneError: the first process failed: ZeroDivisionError: no machine"


def test_a_process_by_itself_decides_for_itself() -> None:
    assert of_first(lambda: 3.0) == 3.0
    pruner = latprune.Pruner(network(), torch.randn(4, 6), budget="flops=50%", method="uniform", measure_latency=False)
    found = pruner.propose()
    assert agreed(lambda: found) is found


def test_a_proposal_is_the_same_on_the_other_side(monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    from latprune.latency import Measurement
    from latprune.pruning import agreement
    from latprune.pruning.stage import StageReport
    from latprune.pruning.trials import Trial

    pruner = latprune.Pruner(network(), torch.randn(4, 6), budget="flops=50%", method="uniform", measure_latency=False)
    around = {"low": 4.0, "high": 4.2, "ratio": 0.5, "ratio_low": 0.49, "ratio_high": 0.51, "reference": "dense"}
    counts = {"spread": 0.01, "runs": 100, "rounds": 20, "drift": 0.0, "converged": True, "tolerance": 0.01}
    m = Measurement(name="pruned", ms=4.1, **around, **counts)
    trial = Trial(dense=m, pruned=m, value=4.1, uncertainty=0.1)
    found = replace(pruner.propose(), trial=trial, fresh=trial, rounds=((1.0, 2.0, 3.0),), note="so it is")
    data = json.loads(json.dumps(agreement._proposal_to_dict(found)))
    other = agreement._proposal_from_dict(data)
    assert agreement._proposal_to_dict(other) == data
    mine, theirs = (StageReport.of(each, gone=frozenset()).to_dict() for each in (found, other))
    assert mine == theirs
