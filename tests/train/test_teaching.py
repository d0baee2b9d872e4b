"""Learning from the dense network with any loss and from features: a detector-like network with outputs in a mapping."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latprune import prune
from latprune.errors import InvalidArgumentError
from latprune.graph import Selection, trace
from latprune.recovery import kept_channels, stream_modules
from latprune.surgery import prune as cut
from latprune.train import Constant, Distillation, KeptChannels, Recipe, finetune, matching_loss, recipe
from latprune.train.recipe import AdamW
from latprune.zoo import cifar_resnet


class Detector(nn.Module):
    """Boxes and scores at two resolutions, in a mapping of lists beside what is no tensor."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(width, width, 3, stride=2, padding=1), nn.ReLU())
        self.boxes, self.scores = nn.Conv2d(width, 4, 1), nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor) -> dict[str, Any]:
        fine = self.stem(images)
        coarse = self.deep(fine)
        return {
            "boxes": [self.boxes(f) for f in (fine, coarse)],
            "scores": [self.scores(f) for f in (fine, coarse)],
            "sizes": [tuple(f.shape[2:]) for f in (fine, coarse)],
        }


def dense_detector() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return Detector().eval(), torch.randn(48, 3, 16, 16)


def pruned_detector(dense: nn.Module, images: Tensor) -> tuple[nn.Module, Any, Selection]:
    graph = trace(dense, images[:1])
    selection = Selection(kept={name: torch.arange(0, group.units, 2).numpy() for name, group in graph.groups.items()})
    network = copy.deepcopy(dense)
    cut(network, graph, selection)
    return network, graph, selection


RECIPE = Recipe(epochs=40, learning_rate=5e-3, optimizer=AdamW(), schedule=Constant())


def detection_loss(student: dict[str, Any], teacher: dict[str, Any]) -> Tensor:
    """Boxes by squared error, scores by cross-entropy with the teacher's probabilities."""
    assert student["sizes"] == teacher["sizes"] and not teacher["boxes"][0].requires_grad
    boxes = sum(F.mse_loss(a, b) for a, b in zip(student["boxes"], teacher["boxes"], strict=True))
    scores = sum(F.binary_cross_entropy_with_logits(a, b.sigmoid()) for a, b in zip(student["scores"], teacher["scores"], strict=True))
    return boxes + scores


def distance(network: nn.Module, dense: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        return float(matching_loss(network.eval()(images), dense(images)))


@pytest.mark.parametrize("loss", [detection_loss, matching_loss])
def test_a_detector_learns_from_unlabelled_images(loss: Any) -> None:
    dense, images = dense_detector()
    network, _, _ = pruned_detector(dense, images)
    before = distance(network, dense, images)
    recipe = replace(RECIPE, distillation=Distillation(weight=1.0, loss=loss))
    report = finetune(network, list(images.split(16)), recipe, teacher=dense)
    assert report.epochs[-1].loss < report.epochs[0].loss and report.epochs[0].train_accuracy is None
    assert distance(network, dense, images) < 0.5 * before
    assert all(p.grad is None for p in dense.parameters()) and not dense.training


def test_features_are_matched_at_the_kept_channels() -> None:
    dense, images = dense_detector()
    network, graph, selection = pruned_detector(dense, images)
    kept = kept_channels(dense, graph, selection, images[:1], ["stem", "deep"])
    assert {name: (k.dim, k.index.tolist()) for name, k in kept.items()} == {name: (1, [0, 2, 4, 6, 8, 10]) for name in ("stem", "deep")}

    def gap() -> float:
        with torch.no_grad():
            wanted = dense.deep(dense.stem(images))[:, ::2]
            return float((network.eval().deep(network.stem(images)) - wanted).square().mean())

    before = gap()
    only = Distillation(weight=0.0, features=("stem", "deep"))
    data = [(batch, None) for batch in images.split(16)]

    def nothing(model: nn.Module, batch: Any) -> Tensor:
        """Its own task asks for nothing here, so that all comes from the features."""
        return 0.0 * sum(b.sum() for b in model(batch[0])["boxes"])

    finetune(network, data, replace(RECIPE, distillation=only), teacher=dense, kept=kept, loss=nothing)
    assert gap() < 0.5 * before


def test_ones_own_loss_and_the_teachers_mix_by_weight() -> None:
    dense, images = dense_detector()
    seen: dict[str, list[float]] = {"own": [], "taught": []}

    def own(model: nn.Module, batch: Any) -> Tensor:
        value = model(batch[0])["boxes"][0].square().mean()
        seen["own"].append(float(value.detach()))
        return value

    def taught(student: Any, teacher: Any) -> Tensor:
        value = matching_loss(student, teacher)
        seen["taught"].append(float(value.detach()))
        return value

    network, _, _ = pruned_detector(dense, images)
    recipe = replace(RECIPE, epochs=1, distillation=Distillation(weight=0.25, loss=taught))
    report = finetune(network, [(images, None)], recipe, teacher=dense, loss=own)
    assert report.epochs[0].loss == pytest.approx(0.75 * seen["own"][0] + 0.25 * seen["taught"][0], rel=1e-5)


def test_features_add_to_the_distillation_of_classes() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    student = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3))
    data = [(torch.randn(32, 2), torch.randint(0, 3, (32,))) for _ in range(4)]
    losses = {}
    for features in ((), ("1",)):
        recipe = Recipe(epochs=1, learning_rate=1e-9, distillation=Distillation(features=features, feature_weight=2.0))
        losses[features] = finetune(copy.deepcopy(student), data, recipe, teacher=teacher).epochs[0].loss
    with torch.no_grad():
        wanted = [teacher[:2](x) for x, _ in data]
        errors = [(student[:2](x) - found).square().mean() for (x, _), found in zip(data, wanted, strict=True)]
        seen = [torch.stack([found.var(0).mean() for found in wanted[: k + 1]]).mean() for k in range(len(data))]  # of all batches so far
        parts = [error / variance for error, variance in zip(errors, seen, strict=True)]
    assert losses["1",] - losses[()] == pytest.approx(2.0 * float(torch.stack(parts).mean()), rel=1e-3)


def test_prune_finds_the_kept_channels_itself() -> None:
    dense, images = dense_detector()
    recipe = replace(RECIPE, epochs=2, distillation=Distillation(weight=1.0, loss=matching_loss, features=("stem", "deep")))
    data = [(batch, None) for batch in images.split(16)]
    result = prune(dense, images[:1], budget="flops=60%", method="uniform", data=data, fit=recipe, measure_latency=False)
    assert result.model.stem[0].out_channels < 12


def test_streams_are_the_sums_of_residual_branches() -> None:
    torch.manual_seed(0)
    dense, x = cifar_resnet(8).eval(), torch.randn(2, 3, 32, 32)
    graph = trace(dense, x)
    blocks = ("layer1.0", "layer2.0", "layer3.0")
    assert stream_modules(dense, graph, None, x) == blocks
    narrower = {name: np.arange(0, group.units, 2) for name, group in graph.groups.items()}
    assert stream_modules(dense, graph, Selection(kept=narrower), x) == blocks
    assert stream_modules(*(chain := plain_chain()), None, x) == () and chain[0].training is False


def plain_chain() -> tuple[nn.Module, Any]:
    chain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    return chain, trace(chain, torch.randn(1, 3, 32, 32))


def test_match_dense_learns_outputs_and_streams_from_inputs_alone() -> None:
    torch.manual_seed(0)
    dense, images = cifar_resnet(8).eval(), torch.randn(96, 3, 32, 32)
    batches = [(batch,) for batch in images.split(32)]
    told: list[str] = []
    options: dict[str, Any] = dict(budget="flops=60%", method="uniform", measure_latency=False, recover=False, data=batches)
    cut_only = prune(copy.deepcopy(dense), images[:1], **options)
    taught = prune(copy.deepcopy(dense), images[:1], fit=recipe("match-dense").with_epochs(4), progress=told.append, **options)
    assert any("dense network's outputs, and its streams at 3 modules" in text for text in told)
    assert distance(taught.model, dense, images) < 0.8 * distance(cut_only.model, dense, images)


def test_streams_are_named_in_a_training_of_ones_own() -> None:
    dense, images = dense_detector()
    network, _, _ = pruned_detector(dense, images)
    with pytest.raises(
        InvalidArgumentError, match=r"features \(='streams'\) are found by prune\(fit=...\); name their modules .*stream_modules"
    ):
        finetune(network, [images], recipe("match-dense"), teacher=dense)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"loss": "nearness"}, r"loss \(='nearness'\) must be a function"),
        ({"features": "layer1"}, r"features \(='layer1'\) must be a tuple"),
    ],
)
def test_words_that_stand_for_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidArgumentError, match=said):
        Distillation(**given)


def test_a_recipe_keeps_what_a_file_can_hold() -> None:
    chosen = Recipe(epochs=1, learning_rate=0.1, distillation=Distillation(features=("deep",), feature_weight=0.5))
    assert Recipe.from_dict(chosen.to_dict()) == chosen
    assert Recipe.from_dict(recipe("match-dense").to_dict()) == recipe("match-dense")
    assert Distillation().to_dict() == {"temperature": 4.0, "weight": 0.5}  # as files of earlier releases have it
    with_loss = Recipe(epochs=1, learning_rate=0.1, distillation=Distillation(loss=matching_loss))
    assert with_loss.to_dict()["distillation"]["loss"] == "latprune.train.teaching.matching_loss"
    with pytest.raises(InvalidArgumentError, match="give it anew"):
        Recipe.from_dict(with_loss.to_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "deep"}, "tuple of module paths"),
        ({"features": ("deep",), "feature_weight": 0.0}, "feature_weight"),
        ({"weight": 0.0}, "features alone"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        Distillation(**options)


def test_what_does_not_go_together_is_said() -> None:
    dense, images = dense_detector()
    network, graph, selection = pruned_detector(dense, images)

    def run(distillation: Distillation, **options: Any) -> None:
        finetune(network, [images[:8]], replace(RECIPE, epochs=1, distillation=distillation), teacher=dense, **options)

    with pytest.raises(InvalidArgumentError, match="which the network does not have"):
        run(Distillation(weight=1.0, loss=matching_loss, features=("nowhere",)))
    with pytest.raises(InvalidArgumentError, match="kept_channels"):
        run(Distillation(weight=1.0, loss=matching_loss, features=("deep",)))
    with pytest.raises(InvalidArgumentError, match="must return a scalar"):
        run(Distillation(weight=1.0, loss=lambda student, teacher: student["boxes"][0]))
    with pytest.raises(InvalidArgumentError, match="same shapes"):
        matching_loss({"a": torch.zeros(2, 3)}, {"a": torch.zeros(2, 4)})
    with pytest.raises(InvalidArgumentError, match="does not run exactly once"):
        kept_channels(dense, graph, selection, images[:1], ["boxes"])
    assert KeptChannels(dim=1, index=torch.tensor([1])).of(torch.arange(6).reshape(2, 3)).tolist() == [[1], [4]]


def test_a_small_last_batch_counts_no_more_than_others() -> None:
    """The variance over a batch of one is nothing: a loss relative to it would outweigh all that was learned before."""
    torch.manual_seed(0)
    dense, images = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(65, 6)
    start = copy.deepcopy(dense)
    with torch.no_grad():
        for p in start.parameters():
            p.add_(0.1 * torch.randn_like(p))
    for whole in (64, 65):
        data = [(x, None) for x in images[:whole].split(16)]
        for loss in ("matching", matching_loss):
            network = copy.deepcopy(start)
            report = finetune(network, data, matched(loss, epochs=20), teacher=dense)
            assert report.epochs[0].loss < 1.0 and report.epochs[-1].loss < 0.5 * report.epochs[0].loss
            with torch.no_grad():
                assert matching_loss(network(images), dense(images)) < 0.3 * matching_loss(start(images), dense(images))


def test_batches_of_one_learn_as_well() -> None:
    torch.manual_seed(0)
    dense, images = nn.Linear(6, 4), torch.randn(32, 6)
    report = finetune(nn.Linear(6, 4), [(x[None], None) for x in images], matched("matching", epochs=5), teacher=dense)
    assert report.epochs[-1].loss < 0.5 * report.epochs[0].loss < 50.0


def test_a_resumed_run_is_relative_to_the_same_variance(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense, images = nn.Linear(6, 4), torch.randn(60, 6) * torch.linspace(0.1, 3.0, 60)[:, None]  # each batch varies by another amount
    data, weights = [(x, None) for x in images.split(8)], nn.Linear(6, 4).state_dict()

    def trained(stop: int | None) -> nn.Module:
        network, seen = nn.Linear(6, 4), []
        network.load_state_dict(weights)

        def step(progress: Any) -> None:
            seen.append(progress)
            if len(seen) == stop:
                raise KeyboardInterrupt

        folder = tmp_path / "run" if stop != 0 else None
        finetune(network, data, matched("matching", epochs=2), teacher=dense, checkpoint_dir=folder, checkpoint_seconds=0, progress=step)
        return network

    with pytest.raises(KeyboardInterrupt):
        trained(11)
    assert torch.equal(trained(None).weight, trained(0).weight)


def matched(loss: Any, epochs: int) -> Recipe:
    return Recipe(epochs=epochs, learning_rate=0.02, optimizer=AdamW(), distillation=Distillation(weight=1.0, loss=loss))


def test_the_teacher_gets_its_mode_back_and_a_callers_no_grad_changes_nothing() -> None:
    torch.manual_seed(0)
    dense, network, data = nn.Linear(6, 4).train(), nn.Linear(6, 4), [(torch.randn(8, 6), None)]
    before = network.weight.detach().clone()
    with torch.no_grad():
        finetune(network, data, matched("matching", epochs=1), teacher=dense)
    assert dense.training and not torch.equal(network.weight, before)
