"""Captured programs of networks whose classes cannot hold smaller sizes: pruned like masked, reloaded without the class, exported."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latprune.export import export_onnx
from latprune.graph import ModelGraph, call_with, trace
from latprune.graph.tensors import tensors_in
from latprune.program import ProgramModule, capture, save_program
from latprune.surgery import check_equal, masked, prune
from latprune.surgery.verify import in_double
from support.equivalence import random_selection, randomise
from support.programs import NETWORKS

_RELOAD = """
import sys, torch, latprune
assert not any(name.startswith("support") for name in sys.modules)
for folder in sys.argv[1:]:
    program = latprune.load_program(folder + "/program.safetensors")
    data = torch.load(folder + "/data.pt", weights_only=True)
    with torch.no_grad():
        found = program(*data["args"], **data["kwargs"])
    def leaves(v):
        if isinstance(v, torch.Tensor): return [v]
        if isinstance(v, dict): v = list(v.values())
        return [t for item in v for t in leaves(item)] if isinstance(v, (list, tuple)) else []
    for a, b in zip(leaves(found), data["outputs"], strict=True):
        assert torch.equal(a, b), folder
"""


def built(name: str) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model, inputs = NETWORKS[name]()
    return randomise(model), in_double(inputs)


def pruned(name: str, seed: int = 0) -> tuple[ProgramModule, ProgramModule, ModelGraph, Any]:
    """The dense program, a pruned copy, the graph and inputs."""
    model, inputs = built(name)
    program = capture(model, inputs)
    graph = trace(program, inputs)
    selection = random_selection(graph, np.random.default_rng(seed), blocks=1, low=0.3, high=0.8)
    cut = copy.deepcopy(program)
    prune(cut, graph, selection)
    return program, cut, graph, inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_pruned_equals_masked(name: str) -> None:
    model, inputs = built(name)
    graph = trace(model, inputs, form="program")
    assert graph.program is not None and graph.groups
    for seed in range(6):
        selection = random_selection(graph, np.random.default_rng(seed))
        cut = copy.deepcopy(graph.program)
        prune(cut, graph, selection)
        check_equal(cut, masked(graph.program, graph, selection), inputs, tolerance=1e-9)
        widths = {n: len(units) // graph.groups[n].rows for n, units in selection.kept.items()}
        assert sum(p.numel() for p in cut.parameters()) == graph.parameters(widths, selection.removed_blocks)


def shapes_of(graph: ModelGraph) -> list[tuple[str, int, int]]:
    return sorted((g.kind, g.rows, g.columns) for g in graph.groups.values())


def test_heads_queries_and_values_of_a_coupled_transformer_are_groups_of_their_own() -> None:
    model, inputs = built("vision transformer")
    of_class, of_program = trace(model, inputs), trace(model, inputs, form="program")
    assert not any(g.kind == "heads" for g in of_class.groups.values())
    assert shapes_of(of_program) == sorted(
        [("channels", 1, 16), *[("channels", 1, 24)] * 2, *[("columns", 4, 4)] * 4, *[("heads", 1, 4)] * 2]
    )
    assert all(block.removable for block in of_program.blocks.values()) and len(of_program.blocks) == 4


def test_heads_and_widths_of_pytorchs_encoder_are_free() -> None:
    model, inputs = built("encoder")
    assert shapes_of(trace(model, inputs, form="program")) == sorted(
        [("channels", 1, 16), *[("channels", 1, 32)] * 2, *[("columns", 4, 4)] * 4, *[("heads", 1, 4)] * 2]
    )


def test_numbers_in_the_code_become_sizes() -> None:
    model, inputs = built("fixed view")
    assert not any(g.columns == 64 for g in trace(model, inputs).groups.values())
    assert ("channels", 1, 64) in shapes_of(trace(model, inputs, form="program"))


def test_a_block_that_is_called_twice_goes_once() -> None:
    model, inputs = built("convolutions")
    of_class, of_program = trace(model, inputs), trace(model, inputs, form="program")
    assert not any(b.removable for b in of_class.blocks.values())
    assert all("form='program' can remove it" in b.reason for b in of_class.blocks.values())
    assert [b.removable for b in of_program.blocks.values()] == [True, True]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Each network's pruned program, with inputs and outputs, in a folder of its own."""
    folders = []
    for name in NETWORKS:
        _, cut, _, inputs = pruned(name)
        cut.eval()
        args, kwargs = ((), inputs) if isinstance(inputs, dict) else ((inputs if isinstance(inputs, tuple) else (inputs,)), {})
        with torch.no_grad():
            outputs = tensors_in(call_with(cut, inputs))
        folder = tmp_path_factory.mktemp("program")
        save_program(cut, folder / "program.safetensors")
        torch.save({"args": args, "kwargs": kwargs, "outputs": outputs}, folder / "data.pt")
        folders.append(folder)
    return folders


def test_programs_reload_in_a_new_process_without_the_class(saved: list[Path]) -> None:
    done = subprocess.run([sys.executable, "-c", _RELOAD, *map(str, saved)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", [n for n in NETWORKS if n != "several inputs"])
def test_pruned_programs_run_in_onnxruntime(name: str, tmp_path: Path) -> None:
    _, cut, _, inputs = pruned(name)
    single = [t.float() for t in inputs] if isinstance(inputs, tuple) else inputs.float()
    written = export_onnx(cut.float(), tuple(single) if isinstance(inputs, tuple) else single, tmp_path / "net.onnx", tolerance=1e-4)
    assert written.errors["onnxruntime"] <= 1e-4


def grown(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs, inputs[:1]])
    if isinstance(inputs, dict):
        return {k: grown(v) for k, v in inputs.items()}
    return type(inputs)(grown(v) for v in inputs) if isinstance(inputs, (list, tuple)) else inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_other_batch_sizes(name: str) -> None:
    model, inputs = built(name)
    program, cut, graph, _ = pruned(name)
    assert not program.program.batch_reason
    larger = grown(inputs)
    with torch.no_grad():
        for mine, theirs in zip(tensors_in(call_with(program.eval(), larger)), tensors_in(call_with(model, larger)), strict=True):
            torch.testing.assert_close(mine, theirs)
        many, one = tensors_in(call_with(cut.eval(), larger)), tensors_in(call_with(cut, inputs))
    if name != "encoder, batch second":  # attends over its first dimension
        for a, b in zip(many, one, strict=True):
            torch.testing.assert_close(a[: len(b)], b)


@pytest.mark.parametrize("name", ["vision transformer", "grouped queries", "convolutions"])
def test_captured_at_one_entry_it_runs_at_any_batch_size(name: str) -> None:
    model, inputs = built(name)
    program = capture(model, inputs[:1]).eval()
    with torch.no_grad():
        torch.testing.assert_close(program(inputs), model(inputs))


def test_where_one_entry_takes_a_course_of_its_own_two_and_three_are_recorded() -> None:
    class Squeezing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 6)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return (y if y.shape[0] == 1 else y.flip(0).flip(0)).view(-1, 2, 3).sum(1)

    model = Squeezing().eval()
    program = capture(model, torch.randn(1, 4)).eval()
    assert not program.program.batch_reason
    for batch in (1, 5):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(program(x), model(x))


def test_a_pruned_program_is_traced_and_pruned_again() -> None:
    _, cut, _, inputs = pruned("vision transformer")
    graph = trace(cut, inputs)
    selection = random_selection(graph, np.random.default_rng(5), blocks=1, low=0.4, high=0.8)
    again = copy.deepcopy(cut)
    prune(again, graph, selection)
    check_equal(again, masked(cut, graph, selection), inputs, tolerance=1e-9)
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in cut.parameters())


def test_names_and_scores_are_those_of_the_class() -> None:
    from latprune.importance import SpLampConfig, TaylorConfig, score
    from latprune.zoo import digits_resnet

    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
    x = torch.randn(2, 1, 32, 32)
    program = capture(model, x)
    of_class, of_program = trace(model, x), trace(program, x)
    for part in ("groups", "kernels", "blocks"):
        assert list(getattr(of_class, part)) == list(getattr(of_program, part))
    assert of_class.macs(of_class.dense_widths()) == of_program.macs(of_program.dense_widths())
    batches = [(torch.randn(4, 1, 32, 32), torch.randint(0, 10, (4,)))]
    for config in (TaylorConfig(), SpLampConfig(fold_norm=True)):
        one, other = score(model, of_class, config, batches), score(program, of_program, config, batches)
        for name in of_class.groups:
            np.testing.assert_allclose(np.asarray(one.units[name]), np.asarray(other.units[name]), rtol=1e-5)
