"""Distillation on unlabelled images: what it may train, what it keeps in memory, and when it gives the weights back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError
from latprune.graph import Selection, trace
from latprune.recovery import Distil, LayerRecovery, RecoveryReport, Refit, recover
from latprune.recovery.augmentation import ImageVariants
from latprune.recovery.likeness import _Spread
from latprune.surgery import prune
from recovery.nets import half, line, packed, resnet


def distilled(model: nn.Module, data: Any, *, seed: int = 0, progress: Any = None, within: str = "", **options: Any) -> Any:
    """The model cut to half, distilled without a refit before it; the report; the selection's network before."""
    data = data if isinstance(data, list) else [data]
    graph = trace(model, _first(data[0]), within=within) if within else trace(model, _first(data[0]))
    selection = half(graph)
    network = copy.deepcopy(model)
    prune(network, graph, selection)
    before = copy.deepcopy(network)
    report = recover(
        network, model, data, graph=graph, selection=selection, strategy=Distil(first=False, **options), seed=seed, progress=progress
    )
    return network, report, before


def _first(inputs: Any) -> Any:
    return {k: v[:2] for k, v in inputs.items()} if isinstance(inputs, dict) else inputs[:2]


def _moved(first: nn.Module, second: nn.Module) -> bool:
    return any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_shifted_image_is_the_image_cut_out_of_a_frame_of_zeros() -> None:
    images = torch.randn(40, 3, 8, 6)
    shifted = ImageVariants(mirror=False, shift=0.25)(images, torch.Generator().manual_seed(1))
    framed = F.pad(images, (2, 2, 2, 2))  # a quarter of 8 rows, of 6 columns rounded to 2
    seen = set()
    for image, frame in zip(shifted, framed, strict=True):
        places = [(r, c) for r in range(5) for c in range(5) if torch.equal(image, frame[:, r : r + 8, c : c + 6])]
        assert len(places) == 1
        seen.update(places)
    assert len(seen) > 10


def test_images_are_mirrored_and_mixed() -> None:
    images = torch.randn(64, 3, 8, 8)
    mirrored = ImageVariants(shift=0.0)(images, torch.Generator().manual_seed(0))
    turned = [bool(torch.equal(a, b.flip(2))) for a, b in zip(mirrored, images, strict=True)]
    kept = [bool(torch.equal(a, b)) for a, b in zip(mirrored, images, strict=True)]
    assert all(a != b for a, b in zip(turned, kept, strict=True)) and 16 < sum(turned) < 48
    mixed = ImageVariants(mirror=False, shift=0.0, mix=1.0)(images, torch.Generator().manual_seed(0))
    assert not torch.equal(mixed, images)
    # each is a weighted mean of two images of the batch: what is left of it beside both is nothing
    flat, found = images.flatten(1).double(), mixed.flatten(1).double()
    for k in range(64):
        left = min(float(_left(found[k], torch.stack([flat[k], flat[j]], 1))) for j in range(64) if j != k)
        assert left < 1e-6


def _left(value: Tensor, columns: Tensor) -> Tensor:
    return (value - columns @ torch.linalg.lstsq(columns, value[:, None]).solution[:, 0]).abs().max()


def test_variants_follow_the_generator_and_leave_other_inputs() -> None:
    images, all_ = torch.randn(8, 3, 8, 8), ImageVariants(mix=1.0)
    first, second = (all_(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second) and not torch.equal(first, images)
    last = all_(images.contiguous(memory_format=torch.channels_last), torch.Generator().manual_seed(3))
    assert torch.equal(last, first) and last.is_contiguous(memory_format=torch.channels_last) and first.is_contiguous()
    tokens, mapping = torch.randint(0, 9, (8, 3, 4, 4)), {"images": images}
    assert all_(tokens, torch.Generator()) is tokens and all_(mapping, torch.Generator()) is mapping
    assert str(all_) == "mirrored, shifted by up to 0.125 of their size, mixed in 1 of the steps"
    for option, value in (("shift", -0.1), ("mix", 1.5)):
        with pytest.raises(InvalidArgumentError, match=option):
            ImageVariants(**{option: value})


@pytest.mark.parametrize(
    ("option", "value"), [("epochs", 0), ("batch_size", 0), ("memory", 0), ("seconds", 0), ("shift", 2), ("mix", -1), ("precision", "fp8")]
)
def test_options_out_of_range_are_refused(option: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=option):
        Distil(**{option: value})


def test_steps_in_mixed_precision_train_the_weights_in_full() -> None:
    model, x = resnet()
    kinds: set[tuple[bool, torch.dtype]] = set()
    model.conv1.register_forward_hook(lambda _, args, output: kinds.add((torch.is_autocast_enabled("cpu"), output.dtype)))
    network, report, before = distilled(model, x[:80], epochs=30, batch_size=32, precision="bf16")
    assert kinds == {(True, torch.bfloat16), (False, torch.float32)}  # steps, and what judges them
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    plain = distilled(model, x[:80], epochs=30, batch_size=32)[1]
    assert report.output_after < 0.9 * report.output_before
    assert report.output_after == pytest.approx(plain.output_after, rel=0.2)


@pytest.mark.parametrize(
    "strategy", [Refit(), Distil(first=False, epochs=3), Distil(first=False, epochs=30, batch_size=32, precision="bf16")]
)
@pytest.mark.parametrize("enabled", [True, False])
def test_a_callers_autocast_changes_nothing(strategy: Any, enabled: bool) -> None:
    """Autocast copies weights once: what a strategy writes into them later would not be seen by it, by what judges it, or by the caller."""
    model, x = resnet()
    graph = trace(model, x[:2])
    selection = half(graph)
    plain, network = copy.deepcopy(model), copy.deepcopy(model)
    for cut in (plain, network):
        prune(cut, graph, selection)
    assert recover(plain, model, [x[:80]], graph=graph, selection=selection, strategy=strategy).changed
    with torch.autocast("cpu", torch.bfloat16):
        wanted = plain.eval()(x[:8])
    with torch.autocast("cpu", torch.bfloat16):
        network.eval()(x[:8])
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            recover(network, model, [x[:80]], graph=graph, selection=selection, strategy=strategy)
        assert torch.equal(network(x[:8]), wanted)
    assert not _moved(plain, network)


def test_the_same_seed_gives_the_same_weights_and_another_one_others() -> None:
    model, x = resnet()
    networks = [distilled(model, x[:80], seed=seed, epochs=1)[0] for seed in (0, 0, 1)]
    assert not _moved(networks[0], networks[1]) and _moved(networks[0], networks[2])


def test_little_memory_divides_the_steps_and_changes_nothing_else() -> None:
    model, x = resnet()
    sizes: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    whole = distilled(model, x[:80], epochs=1, batch_size=32)[0]
    assert 32 in sizes
    sizes.clear()
    handle.remove()
    network, report, _ = distilled(model, x[:80], epochs=1, batch_size=32, memory=1.0)
    for a, b in zip(network.parameters(), whole.parameters(), strict=True):
        assert torch.allclose(a, b, atol=2e-4)
    assert report.changed == 1


def test_a_step_keeps_to_its_memory() -> None:
    model, x = resnet()
    sizes: list[int] = []
    network = copy.deepcopy(model)
    network.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])) if torch.is_grad_enabled() else None)
    graph = trace(model, x[:2])
    keep = half(graph, 1.0)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(0.9)
    recover(network, model, [x[:80]], graph=graph, selection=keep, strategy=Distil(first=False, epochs=1, batch_size=32, memory=1e6))
    # ResNet-14 at 8 x 8 keeps about 0.2 MB of each image for its gradients
    assert 1 < max(sizes) < 16


def test_inputs_that_are_no_images_are_used_as_they_are() -> None:
    model, inputs = packed()
    network, report, before = distilled(model, inputs, epochs=3)
    assert report.layers[-1].action == "distil" and "no batches of images" in report.layers[-1].note
    assert report.output_after < report.output_before and _moved(network, before)
    model, x = resnet()
    assert "mirrored" in distilled(model, x[:60], epochs=1)[1].layers[-1].note
    assert distilled(model, x[:60], epochs=1, mirror=False, shift=0.0)[1].layers[-1].note == "images as they are"


def test_a_time_limit_ends_it_early() -> None:
    model, x = resnet()
    said: list[str] = []
    distilled(model, x[:80], epochs=100, seconds=0.5, progress=said.append)
    assert any("time limit" in text for text in said) and not any("epoch 100" in text for text in said)


def test_a_rate_that_takes_the_network_away_is_lowered() -> None:
    model, x = resnet()
    said: list[str] = []
    network, report, before = distilled(model, x[:80], epochs=30, batch_size=32, relative_rate=20.0, progress=said.append)
    lowered = [text for text in said if "takes the network away" in text]
    assert 1 <= len(lowered) <= 5 and "begun again at 5, " in lowered[0]
    entry = report.layers[-1]
    assert entry.action == "distil" and entry.held_out_after < entry.held_out_before and _moved(network, before)
    assert f"at a relative rate of {20.0 / 4 ** len(lowered):.3g}" in entry.note
    assert "relative rate" not in distilled(model, x[:80], epochs=30, batch_size=32)[1].layers[-1].note


def test_the_spread_comes_back_after_a_distillation_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = resnet()
    seen: list[Any] = []
    graph = trace(model, x[:2])
    selection = half(graph)
    entry = LayerRecovery(layer="batch norms", action="spread")

    def spread(situation: Any, start: Any) -> LayerRecovery:
        seen.append(start)
        return entry

    monkeypatch.setattr("latprune.recovery.distil.restore_spread", spread)
    for strategy, times in ((Distil(epochs=1), 1), (Distil(epochs=1, refit=Refit(spread=False)), 0), (Distil(epochs=1, first=False), 0)):
        seen.clear()
        network = copy.deepcopy(model)
        prune(network, graph, selection)
        report = recover(network, model, [x[:80]], graph=graph, selection=selection, strategy=strategy)
        assert len(seen) == times and (report.layers[-1] == entry) == bool(times)


def test_flags_of_parameters_stay() -> None:
    model, x = resnet()
    for p in model.parameters():
        p.requires_grad_(False)
    network, report, _ = distilled(model, x[:80], epochs=1)
    assert report.changed == 1 and not any(p.requires_grad for p in network.parameters())


class Framed(nn.Module):
    """A network between two layers that are not pruned."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.first, self.trunk, self.last = nn.Conv2d(3, 3, 1), trunk, nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.trunk(self.first(x)))


def test_only_what_was_pruned_is_trained() -> None:
    inner, x = resnet()
    torch.manual_seed(0)
    network, report, before = distilled(Framed(inner).eval(), x[:80], within="trunk", epochs=1)
    assert report.changed == 1 and _moved(network.trunk, before.trunk)
    assert not _moved(network.first, before.first) and not _moved(network.last, before.last)


class Ranked(nn.Module):
    """Outputs that no gradient leads through."""

    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk

    def forward(self, x: Tensor) -> Tensor:
        return self.trunk(x).detach().sort(dim=1).values


def test_outputs_without_gradients_are_named() -> None:
    inner, x = line(1)
    model = Ranked(inner).eval()
    _, report, _ = distilled(model, x, epochs=1)
    assert not report.changed and "gradient" in report.layers[-1].reason


class Listed(nn.Module):
    """One output for each image above a threshold, and one for all."""

    def __init__(self, trunk: nn.Module, first: bool) -> None:
        super().__init__()
        self.trunk, self.first = trunk, first

    def forward(self, x: Tensor) -> list[Tensor]:
        y = self.trunk(x)
        return [*([y] if self.first else []), *y[y[:, 0] > y[:, 1]].unbind(0)]


@pytest.mark.parametrize("first", [True, False])
def test_a_number_of_outputs_that_changes_is_no_error(first: bool) -> None:
    inner, x = line(1)
    network, report, before = distilled(Listed(inner, first).eval(), x, epochs=2, batch_size=16)
    assert report.layers[-1].action or not _moved(network, before)
    assert bool(report.layers[-1].reason) != bool(report.layers[-1].action)


def test_a_layer_that_is_exact_is_neither_changed_nor_told() -> None:
    model, x = resnet()
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    said: list[str] = []
    report: RecoveryReport = recover(
        network, model, [x], graph=graph, selection=Selection(kept=half(graph, 1.0).kept), progress=said.append
    )
    assert not said and not report.changed and not _moved(network, model)
    assert all("already" in layer.reason for layer in report.layers if layer.fitted_before is not None)


def test_layers_of_unlike_sizes_learn_alike() -> None:
    """A network whose layers are scaled against each other (ReLU lets powers of two through) is trained to the same outputs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    scaled = copy.deepcopy(model)
    with torch.no_grad():
        for index, weight, bias in ((0, 4.0, 4.0), (2, 0.0625, 0.25), (4, 4.0, 1.0)):
            scaled[index].weight.mul_(weight)
            scaled[index].bias.mul_(bias)
    x = torch.randn(256, 6)
    torch.testing.assert_close(scaled(x), model(x))
    found = [distilled(m, x, epochs=4, relative_rate=0.01) for m in (model, scaled)]
    (network, report, before), (other, second, _) = found
    assert report.layers[-1].action == second.layers[-1].action == "distil"
    moved, apart = (network(x) - before(x)).norm(), (other(x) - network(x)).norm()
    assert moved > 0.1 and apart < 0.05 * moved  # but for the small number that Adam divides by at least


def test_the_spread_is_the_variance_over_images_however_they_come() -> None:
    values = 3 + torch.randn(12, 4, 5)
    expected = float(values.double().var(0, unbiased=False).mean())
    for size in (1, 5, 12):
        spread = _Spread()
        for piece in values.split(size):
            spread.add(piece)
        assert spread.mean_square() == pytest.approx(expected)
    uneven = _Spread()
    for piece in (values, values[:, :2]):
        uneven.add(piece)
    both = torch.cat([values.flatten(), values[:, :2].flatten()]).double()
    assert uneven.mean_square() == pytest.approx(float(both.var(unbiased=False)))
    constant = _Spread()
    constant.add(torch.full((7, 3), 0.1))
    assert constant.mean_square() == 0.0 == _Spread().mean_square()


def test_a_huge_filter_behind_a_norm_of_next_to_no_scale_trains_like_any_other() -> None:
    """A refit may leave such a pair; taken as it is, each step that moves the norm's weight takes the network away."""
    model, x = resnet()
    graph = trace(model, x[:2])
    selection = half(graph)
    found = []
    for factor in (1.0, 300.0):
        network = copy.deepcopy(model)
        prune(network, graph, selection)
        with torch.no_grad():
            for module in network.modules():
                if hasattr(module, "bn2"):  # the same function
                    module.conv2.weight[0] *= factor
                    module.bn2.running_mean[0] *= factor
                    module.bn2.weight[0] /= factor
        found.append(recover(network, model, [x], graph=graph, selection=selection, strategy=Distil(epochs=4)).output_after)
    assert found[1] == pytest.approx(found[0], rel=0.02)
