"""The examples run, with a counted budget and little data; what they save reloads."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils.data import DataLoader

import latprune
from latprune.zoo import digits_resnet, digits_test, digits_train
from support.examples import example
from support.vision import torchvision


def with_few_digits(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, with four small batches to train on and one to test on."""
    module = example(name)
    monkeypatch.setattr(module, "digits_train", lambda: DataLoader(list(islice(digits_train(batch_size=8), 4)), batch_size=None))
    monkeypatch.setattr(module, "digits_test", lambda: DataLoader(list(islice(digits_test(batch_size=32), 1)), batch_size=None))
    return module


def test_a_plain_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = ["--budget", "flops=50%", "--engine", "onnxruntime", "--epochs", "1", "--steps", "4", "--predict-only"]
    result = with_few_digits("own_loop", monkeypatch).main([*job, "--output", str(tmp_path / "saved")])
    assert result.record.pruned.macs <= 0.5 * result.record.dense.macs and (tmp_path / "saved" / "report.html").exists()
    net = latprune.restore(digits_resnet, tmp_path / "saved")
    assert sum(p.numel() for p in net.parameters()) == result.record.pruned.parameters


@pytest.mark.filterwarnings("ignore")
def test_lightning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torchvision()
    pytest.importorskip("lightning")
    job = ["--budget", "flops=50%", "--engine", "onnxruntime", "--epochs", "3", "--stages", "2", "--predict-only"]
    result = with_few_digits("lightning_loop", monkeypatch).main([*job, "--output", str(tmp_path / "saved")])
    assert result.record.pruned.macs <= 0.5 * result.record.dense.macs and len(result.record.steps) == 2
    net = latprune.restore(lambda: digits_resnet(blocks=2, widths=(16, 32, 64)), tmp_path / "saved")
    x = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(net(x), result.model.eval()(x))


@pytest.mark.filterwarnings("ignore")
def test_the_hugging_face_trainer(tmp_path: Path) -> None:
    torchvision()
    pytest.importorskip("transformers")
    job = ["--budget", "flops=60%", "--examples", "512", "--epochs", "2", "--predict-only", "--output", str(tmp_path / "saved")]
    result = example("huggingface_trainer").main(job)
    assert result.record.pruned.macs <= 0.6 * result.record.dense.macs and result.record.equality.max_rel_error < 1e-6
    assert {"README.md", "config.json", "model.safetensors", "result.json"} <= {path.name for path in (tmp_path / "saved").iterdir()}
