from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import latprune
from latprune.errors import CheckpointError, FileFormatError, InvalidArgumentError, RebuiltWarning
from latprune.export import checkpoint, load_result, read_record, restore, save_result, tensor_shapes, update_record
from latprune.states import load_stored
from latprune.storage import encode_tensors
from latprune.zoo import cifar_resnet, vgg16
from support.pruned import INPUT, dense_network, pruned_network

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.fixture(scope="module")
def pruned() -> tuple[nn.Module, checkpoint.ResultRecord]:
    return pruned_network()


def outputs(model: nn.Module) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return model(torch.randn(INPUT))


@pytest.mark.parametrize("name", ["result", "deep/result", "result.zip"])
def test_a_saved_network_comes_back_bit_for_bit(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord], name: str) -> None:
    model, record = pruned
    saved = save_result(tmp_path / name, model, record)
    assert saved.provenance.weights_sha256 is not None
    for build in (dense_network, dense_network()):
        again = restore(build, tmp_path / name)
        assert not again.training
        assert torch.equal(outputs(again), outputs(model))
        assert tensor_shapes(again) == tensor_shapes(model)
    assert load_result(tmp_path / name).record == saved == read_record(tmp_path / name)


def test_it_comes_back_in_a_new_process(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    model, record = pruned
    save_result(tmp_path / "result", model, record)
    code = (
        "import sys, torch; from latprune.export import restore; from latprune.zoo import cifar_resnet\n"
        "net = restore(lambda: cifar_resnet(8), sys.argv[1]); torch.manual_seed(3)\n"
        f"print(repr(net(torch.randn{INPUT}).double().sum().item()))"
    )
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.run([sys.executable, "-c", code, str(tmp_path / "result")], capture_output=True, text=True, env=environment)
    assert process.returncode == 0, process.stderr
    assert float(process.stdout) == pytest.approx(outputs(model).double().sum().item(), rel=1e-6)


def test_the_folder_holds_safetensors_and_json_and_keeps_other_files(
    tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]
) -> None:
    model, record = pruned
    save_result(tmp_path, model, record)
    (tmp_path / "report.html").write_text("mine")
    save_result(tmp_path, model, record)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "report.html", "result.json"]
    assert json.loads((tmp_path / "result.json").read_text())["format"] == "latprune/result"


@pytest.mark.parametrize("crash_at", ["stage weights", "stage record", "swap weights", "swap record"])
def test_a_crash_while_saving_leaves_the_old_result_or_the_new(
    tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord], crash_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, record = pruned
    old = save_result(tmp_path, model, record)
    newer, _ = pruned_network(seed=1)

    class Crash(BaseException):
        pass

    replace, stage = Path.replace, checkpoint.stage_file

    def replacing(self: Path, target: Path) -> Path:
        if (crash_at, Path(target).name) in (("stage record", "result.json.next"), ("swap weights", "model.safetensors")) or (
            crash_at == "swap record" and self.name == "result.json.next"
        ):
            raise Crash
        return replace(self, target)

    def staging(path: Path, data: bytes) -> Path:
        if crash_at == "stage weights":
            raise Crash
        return stage(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replacing)
        patch.setattr(checkpoint, "stage_file", staging)
        with pytest.raises(Crash):
            save_result(tmp_path, newer, record)
    found = load_result(tmp_path)
    expected = newer if crash_at == "swap record" else model
    assert all(torch.equal(found.tensors[name], value) for name, value in expected.state_dict().items())
    assert (found.record == old) is (crash_at != "swap record")
    assert load_result(tmp_path).record == found.record
    save_result(tmp_path, newer, record)
    assert all(torch.equal(load_result(tmp_path).tensors[name], value) for name, value in newer.state_dict().items())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: cifar_resnet(14), r"another architecture: the dense model has 'layer1.1.conv1.weight', which the file does not know"),
        (lambda: cifar_resnet(8, num_classes=7), r"has 'linear.weight' of shape \(7, 64\) where the file has \(10, 64\) \(and 1 more\)"),
        (lambda: nn.Linear(3, 3), r"lacks 'conv1.weight'"),
        (lambda: vgg16(num_classes=10), "another architecture"),
    ],
)
def test_another_architecture_is_refused_in_words(
    tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord], build: object, message: str
) -> None:
    save_result(tmp_path, *pruned)
    with pytest.raises(CheckpointError, match=message):
        restore(build, tmp_path)  # type: ignore[arg-type]


def test_without_recorded_shapes_the_difference_is_still_found(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    model, record = pruned
    bare = record.model_copy(update={"model": record.model.model_copy(update={"tensors": {}})})
    save_result(tmp_path, model, bare)
    assert torch.equal(outputs(restore(dense_network, tmp_path)), outputs(model))
    for build in (lambda: cifar_resnet(14), lambda: cifar_resnet(8, num_classes=7), lambda: nn.Linear(2, 2)):
        with pytest.raises(CheckpointError):
            restore(build, tmp_path)


def test_a_pruned_network_is_not_a_dense_one(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    save_result(tmp_path, *pruned)
    with pytest.raises(CheckpointError, match="Build the model exactly as it was built before pruning"):
        restore(pruned_network()[0], tmp_path)


def test_a_constructor_that_builds_no_module_is_refused(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    save_result(tmp_path, *pruned)
    with pytest.raises(InvalidArgumentError, match="it built a dict"):
        restore(dict, tmp_path)  # type: ignore[arg-type]


def test_damage_is_named(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    with pytest.raises(CheckpointError, match="there is no checkpoint at"):
        load_result(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="it has no model.safetensors"):
        load_result(tmp_path)
    save_result(tmp_path, *pruned)
    weights, text = (tmp_path / "model.safetensors").read_bytes(), (tmp_path / "result.json").read_text()
    (tmp_path / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="the file was changed"):
        load_result(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(weights)
    data = json.loads(text)
    data["provenance"]["weights_sha256"] = None
    (tmp_path / "result.json").write_text(json.dumps(data))
    (tmp_path / "model.safetensors").write_bytes(weights[:200])
    with pytest.raises(CheckpointError, match="damaged or not a safetensors file"):
        load_result(tmp_path)
    (tmp_path / "result.json").write_text(text[: len(text) // 2])
    with pytest.raises(FileFormatError, match="is not JSON"):
        load_result(tmp_path)
    (tmp_path / "result.json").unlink()
    with pytest.raises(CheckpointError, match="it has no result.json"):
        load_result(tmp_path)


def test_a_zip_that_is_none_or_lacks_parts_is_named(tmp_path: Path) -> None:
    path = tmp_path / "result.zip"
    path.write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match="is not a checkpoint written by latprune"):
        load_result(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(CheckpointError, match="is not a checkpoint written by latprune"):
        load_result(path)


def test_a_pickled_file_is_never_opened(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    save_result(tmp_path, *pruned)
    torch.save(pruned[0].state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError):
        load_result(tmp_path)


def test_edits_that_break_their_format_are_a_checkpoint_error(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    model, record = pruned
    save_result(tmp_path, model, record.model_copy(update={"edits": ({"format": "something"},)}))
    with pytest.raises(CheckpointError, match=r"edits\[0\] cannot be replayed"):
        restore(dense_network, tmp_path)


@pytest.mark.parametrize("name", ["result", "result.zip"])
def test_the_record_can_be_updated_but_not_swapped(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord], name: str) -> None:
    model, record = pruned
    saved = save_result(tmp_path / name, model, record)
    update_record(tmp_path / name, saved.model_copy(update={"notes": ("checked",)}))
    assert load_result(tmp_path / name).record.notes == ("checked",)
    assert torch.equal(outputs(restore(dense_network, tmp_path / name)), outputs(model))
    with pytest.raises(CheckpointError, match="other weights"):
        update_record(tmp_path / name, record)


def test_a_plain_file_is_not_overwritten(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"give a folder, or a name that ends in \.zip"):
        save_result(path, *pruned)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("name", ["result", "deep/result", "result.zip"])
def test_a_place_inside_of_a_file_is_refused(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord], name: str) -> None:
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(InvalidArgumentError, match=r"lies inside of '.*notes', which is a file"):
        save_result(tmp_path / "notes" / name, *pruned)


def test_what_is_no_tensor_cannot_be_saved(tmp_path: Path, pruned: tuple[nn.Module, checkpoint.ResultRecord]) -> None:
    class Extra(nn.Linear):
        def get_extra_state(self) -> object:
            return {"anything": object()}

    with pytest.raises(InvalidArgumentError, match="'_extra_state' is a dict"):
        save_result(tmp_path, Extra(2, 2), pruned[1])


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("result-*")))
def test_results_of_earlier_versions_still_load(name: str) -> None:
    saved = load_result(FIXTURES / name)
    model = saved.restore(lambda: cifar_resnet(**saved.record.model.arguments))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        found = model(torch.randn(INPUT, generator=generator))
    expected = json.loads(next(note for note in saved.record.notes if note.startswith("[")))
    assert found[0].tolist() == pytest.approx(expected, abs=1e-4)


_WRITER = """
import sys, torch
from support.sample_record import sample_record
from latprune.export import save_result
record, path = sample_record(), sys.argv[1]
record = record.model_copy(update={"model": record.model.model_copy(update={"tensors": {}})})  # of no network in particular
print("ready", flush=True)
for index in range(10**9):
    save_result(path, torch.nn.Linear(200, 200), record.model_copy(update={"notes": (str(index),)}))
    print(index, flush=True)
"""


@pytest.mark.slow
def test_killed_while_saving_the_last_whole_result_is_there(tmp_path: Path) -> None:
    rng = random.Random(0)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    for attempt in range(20):
        path = tmp_path / str(attempt)
        process = subprocess.Popen([sys.executable, "-c", _WRITER, str(path)], stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "0\n"
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        told = int(([0, *map(int, rest.split())])[-1])
        found = int(load_result(path).record.notes[0])
        assert found in (told, told + 1)


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.head = nn.Linear(8, 50, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    assert len(encode_tensors(model.state_dict())) < 50 * 8 * 4 + 400
    record = pruned_network()[1].model_copy(update={"edits": ()})
    record = record.model_copy(update={"model": record.model.model_copy(update={"tensors": {}})})
    save_result(tmp_path, model, record)
    again = restore(Tied, tmp_path)
    assert torch.equal(again.head.weight, model.embed.weight)  # type: ignore[union-attr, arg-type]
    assert again.head.weight is again.embed.weight  # type: ignore[union-attr]


class Cached(nn.Module):
    """A layer with a buffer that its state dict leaves out, and one in whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm = nn.Linear(4, 8), nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 2)
        self.register_buffer("shift", torch.linspace(0, 1, 4), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.layer(x + self.shift))))


def cached() -> nn.Module:
    torch.manual_seed(0)
    return Cached().eval()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_network_that_was_cast_comes_back_in_its_type(tmp_path: Path, dtype: torch.dtype) -> None:
    x = torch.randn(3, 4)
    result = latprune.prune(cached(), x, budget="params=60%", method="uniform", measure_latency=False)
    result.model.to(dtype)
    result.save(tmp_path / "cast")
    again = latprune.restore(cached, tmp_path / "cast")
    assert isinstance(again, Cached) and again.shift.dtype == dtype and again.norm.num_batches_tracked.dtype == torch.int64
    assert {p.dtype for p in again.parameters()} == {dtype}
    assert torch.equal(again(x.to(dtype)), result.model(x.to(dtype)))


def test_a_buffer_that_is_not_saved_keeps_its_type_where_a_part_alone_was_cast(tmp_path: Path) -> None:
    result = latprune.prune(cached(), torch.randn(3, 4), budget="params=60%", method="uniform", measure_latency=False)
    result.model.last.double()
    result.save(tmp_path / "cast")
    again = latprune.restore(cached, tmp_path / "cast")
    assert again.last.weight.dtype == torch.float64 and again.layer.weight.dtype == again.shift.dtype == torch.float32


def _other_head(model: Cached) -> None:
    model.last = nn.Linear(model.last.in_features, 5)


def _no_head(model: Cached) -> None:
    model.last = nn.Identity()  # type: ignore[assignment]


def _other_norm(model: Cached) -> None:
    model.norm = nn.GroupNorm(1, model.norm.num_features)  # type: ignore[assignment]


def _same_size(model: Cached) -> None:
    model.last = nn.Linear(model.last.in_features, 2)


@pytest.mark.parametrize(
    ("replace", "words"),
    [
        (_other_head, r"'last.weight' is of shape \(5, \d\), and was of \(2, \d\)"),
        (_no_head, "'last.bias' is gone"),
        (_other_norm, "'norm.num_batches_tracked' is gone"),
    ],
)
@pytest.mark.parametrize("when", ["after", "while it trains"])
def test_a_network_whose_layer_was_replaced_is_saved_as_a_program(tmp_path: Path, replace: Any, words: str, when: str) -> None:
    x = torch.randn(3, 4)
    fit = (lambda model, context: replace(model)) if when != "after" else None
    result = latprune.prune(cached(), x, budget="params=60%", method="uniform", measure_latency=False, fit=fit)
    if when == "after":
        replace(result.model)
    with pytest.warns(RebuiltWarning, match=words):
        result.save(tmp_path / "rebuilt")
    assert torch.equal(latprune.restore(None, tmp_path / "rebuilt")(x), result.model.eval()(x))


def test_a_network_whose_layer_was_replaced_by_one_alike_keeps_its_class(tmp_path: Path) -> None:
    x = torch.randn(3, 4)
    result = latprune.prune(cached(), x, budget="params=60%", method="uniform", measure_latency=False)
    _same_size(result.model)  # type: ignore[arg-type]
    for name in ("first", "second"):
        result.save(tmp_path / name)
        again = latprune.restore(cached, tmp_path / name)
        assert isinstance(again, Cached) and torch.equal(again(x), result.model.eval()(x))
    _no_head(again)
    loaded = latprune.pruning.Result.load(tmp_path / "first", model=again, example_inputs=x)
    with pytest.warns(RebuiltWarning, match="'last.bias' is gone"):
        loaded.save(tmp_path / "third")


@pytest.mark.parametrize("damage", [{"int8": 5, "dtype": "qint8", "scale": 1.0, "zero_point": 0}, {"type": "save"}, {"tuple": 3}, [1]])
def test_a_damaged_description_of_int8_weights_is_told(damage: Any) -> None:
    text = torch.frombuffer(bytearray(json.dumps(damage).encode()), dtype=torch.uint8)
    stored = {"weight:int8": text, "weight:int8.0": torch.zeros(2, 2, dtype=torch.int8), "bias": torch.zeros(2)}
    with pytest.raises(CheckpointError, match="'weight:int8' describes no int8 value"):
        load_stored(nn.Linear(2, 2), stored)
