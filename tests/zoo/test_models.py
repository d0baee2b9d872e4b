from __future__ import annotations

import pytest
import torch

from latprune.errors import InvalidArgumentError
from latprune.zoo import (
    PadShortcut,
    cifar_resnet,
    cifar_resnet18,
    dense_network,
    detection_neck,
    digits_resnet,
    mobilenet_v2,
    recurrent_language_model,
    resnet50,
    single_shot_detector,
    streaming_detector,
    unet,
    vgg16,
)
from support.vision import torchvision


def parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("depth", "count"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)])
def test_cifar_resnets_have_the_published_sizes(depth: int, count: int) -> None:
    assert parameters(cifar_resnet(depth)) == count


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_cifar_resnet_runs(shortcut: str) -> None:
    model = cifar_resnet(8, shortcut=shortcut, num_classes=7).eval()
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert any(isinstance(module, PadShortcut) for module in model.modules()) == (shortcut == "A")


def test_pad_shortcut_reads_its_attributes() -> None:
    shortcut = PadShortcut(2, 1, 2)
    x = torch.arange(2 * 4 * 4, dtype=torch.float32).reshape(1, 2, 4, 4)
    out = shortcut(x)
    assert out.shape == (1, 5, 2, 2)
    assert torch.equal(out[:, 1:3], x[:, :, ::2, ::2]) and not out[:, 0].any() and not out[:, 3:].any()
    shortcut.pad_left = 0
    assert shortcut(x).shape == (1, 4, 2, 2)


@pytest.mark.parametrize("depth", [7, 21, 2])
def test_wrong_depths_are_refused(depth: int) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"depth \(={depth}\)"):
        cifar_resnet(depth)


def test_wrong_shortcuts_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="shortcut"):
        cifar_resnet(20, shortcut="C")


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def test_imagenet_networks_have_the_common_parameter_names() -> None:
    models = torchvision().models
    assert shapes(resnet50()) == shapes(models.resnet50())
    assert shapes(mobilenet_v2()) == shapes(models.mobilenet_v2())
    with torch.device("meta"):
        assert shapes(vgg16()) == shapes(models.vgg16())


def test_imagenet_networks_compute_the_same_function() -> None:
    models = torchvision().models
    x = torch.randn(2, 3, 64, 64)
    for ours, theirs in ((resnet50(10), models.resnet50(num_classes=10)), (mobilenet_v2(10), models.mobilenet_v2(num_classes=10))):
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))


def test_small_networks_run() -> None:
    x = torch.randn(2, 3, 32, 32)
    assert cifar_resnet18(width=8).eval()(x).shape == (2, 10)
    assert vgg16(10, width=4, hidden=16, pooled=1).eval()(x).shape == (2, 10)
    assert dense_network(4, (2, 2)).eval()(x).shape == (2, 10)
    assert unet(4, 3).eval()(x).shape == (2, 2, 32, 32)
    assert [tuple(out.shape) for out in detection_neck(4, 6).eval()(x)] == [(2, 6, 8, 8), (2, 6, 4, 4), (2, 6, 2, 2)]
    assert digits_resnet(1, (4, 8, 16)).eval()(x[:, :1]).shape == (2, 10)
    assert parameters(cifar_resnet18()) == 11_173_962


@pytest.mark.parametrize(
    "build",
    [
        lambda: cifar_resnet18(width=0),
        lambda: vgg16(width=0),
        lambda: mobilenet_v2(width_multiplier=0.0),
        lambda: dense_network(0),
        lambda: unet(4, 1),
        lambda: detection_neck(3),
        lambda: digits_resnet(0),
        lambda: single_shot_detector(blocks=(1,)),
        lambda: streaming_detector(heads=3),
        lambda: streaming_detector(kept=99),
        lambda: recurrent_language_model(dim=0),
    ],
)
def test_sizes_out_of_range_are_refused(build) -> None:
    with pytest.raises(InvalidArgumentError, match="must"):
        build()


def test_detectors_and_language_models_run() -> None:
    classes, boxes = single_shot_detector(5, blocks=(1, 1, 1, 1), width=4, extra=(16, 8)).eval()(torch.randn(1, 3, 64, 64))
    assert classes.shape[:2] == boxes.shape[:2] and classes.shape[2] == 5 and boxes.shape[2] == 4
    detector = streaming_detector(width=4).eval()
    memory = torch.zeros(2, 8, 64)
    for _ in range(2):
        logits, located, memory = detector(torch.randn(2, 3, 3, 32, 32), torch.randn(2, 3, 3), memory)
    assert logits.shape == (2, 24, 10) and located.shape == (2, 24, 10) and memory.shape == (2, 8, 64)
    assert recurrent_language_model(50, 16, 32)(torch.randint(0, 50, (2, 7))).shape == (2, 7, 50)
