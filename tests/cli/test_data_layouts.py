"""Data in its own layout through ``--data`` and ``--test-data``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latprune.cli import main


@pytest.fixture
def images(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 3)):
        for number in range(2):
            folder = tmp_path / "images" / split / f"class{number}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 100, (24, 30, 3), dtype=np.uint8) + np.uint8(120 * number)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "images"


def test_image_folders_score_train_and_evaluate(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    model = ["--model", "latprune.zoo:cifar_resnet", "--model-arg", "depth=8", "--model-arg", "num_classes=2", "--input", "1x3x16x16"]
    job = ["--budget", "flops=70%", "--method", "uniform", "--predict-only", "--epochs", "2", "--train-threads", "1", "--log", "none"]
    data = ["--data", "latprune.zoo:image_folders_train", "--test-data", "latprune.zoo:image_folders_test"]
    data += [
        "--data-arg",
        f"root={images}",
        "--data-arg",
        "shape=[3,16,16]",
        "--data-arg",
        "batch_size=4",
        "--data-arg",
        "mean=[0.5,0.5,0.5]",
    ]
    assert main(["prune", *model, *job, *data, "-o", str(out)]) == 0
    assert "data: 12 images of 2 classes in batches of 4: random parts, mirrored at random, scaled to 16x16" in capsys.readouterr().out
    record = json.loads((out / "result" / "result.json").read_text())
    stages = [entry["stage"] for entry in record["accuracies"]]
    assert stages[0] == "dense" and "fine-tuned" in stages
    trained = record["training"]
    assert [(entry["stage"], entry["epoch"]) for entry in trained] == [(1, 0), (1, 1)]
    assert trained[0]["learning_rate"] > trained[1]["learning_rate"] > 0 and all(entry["loss"] > 0 for entry in trained)
    page = (out / "result" / "report.html").read_text()
    assert "Loss of the training" in page and f"epoch 2: loss {trained[1]['loss']:.4g}" in page
