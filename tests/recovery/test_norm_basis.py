"""After a recovery batch norms stand on what they meet: nothing else is computed, and training starts from the recovered network."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.methods import Uniform
from latprune.recovery import Recovery, Refit
from latprune.recovery.norm_basis import norms_on_own_statistics
from latprune.zoo import digits_resnet


def images(count: int = 4, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 1, 32, 32, generator=generator) for _ in range(count)]


def network() -> nn.Module:
    """Running statistics that are not those of the inputs, as after a fit that explains less than all."""
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 3.0)
    return model.eval()


def apart(a: Tensor, b: Tensor) -> float:
    """Squared distance, relative to the variation of ``b``."""
    return float((a - b).square().sum() / (b - b.mean(0)).square().sum())


@pytest.mark.parametrize("form", ["module", "program"])
@torch.no_grad()
def test_evaluation_stays_and_training_computes_the_same(form: str) -> None:
    model = network()
    if form == "program":
        model = latprune.capture(model, images(1)[0]).eval()
    x = images(1, seed=5)[0]
    before = model(x)
    trained = copy.deepcopy(model).train()(x)
    norms = sum(name.endswith("running_mean") for name, _ in model.named_buffers())
    assert norms_on_own_statistics(model, images()) == norms > 3
    assert torch.allclose(model(x), before, rtol=1e-4, atol=1e-5)
    assert apart(copy.deepcopy(model).train()(x), before) < 0.1 < apart(trained, before)


@torch.no_grad()
def test_what_meets_a_norm_is_what_it_then_has() -> None:
    norm = nn.BatchNorm1d(3).eval()
    batches = [torch.randn(64, 3) * torch.tensor([1.0, 2.0, 3.0]) + 4.0 for _ in range(2)]
    assert norms_on_own_statistics(norm, batches) == 1
    assert torch.allclose(norm.running_mean, torch.stack([b.mean(0) for b in batches]).mean(0), atol=1e-5)
    assert torch.allclose(norm.running_var, torch.stack([b.var(0) for b in batches]).mean(0), rtol=1e-5)


class _Odd(nn.Module):
    """Norms whose values are not theirs alone to change, or have no statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
        self.second.weight, self.second.bias = self.first.weight, self.first.bias
        self.plain = nn.BatchNorm1d(4, affine=False)
        self.batch = nn.BatchNorm1d(4, track_running_stats=False)
        self.narrow = nn.BatchNorm1d(4).bfloat16()
        self.parametrised = nn.utils.parametrizations.weight_norm(nn.BatchNorm1d(4), "bias", dim=0)
        self.good = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.batch(self.plain(self.second(self.first(x) + 1.0)))
        return self.good(self.parametrised(self.narrow(x.bfloat16()).float()) * 2.0)


@torch.no_grad()
def test_norms_that_others_depend_on_are_left_alone() -> None:
    torch.manual_seed(0)
    model = _Odd().eval()
    x = [torch.randn(16, 4)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert norms_on_own_statistics(model, x) == 1
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"good.weight", "good.bias", "good.running_mean", "good.running_var"}
    assert norms_on_own_statistics(nn.BatchNorm1d(4).eval(), [torch.randn(1, 4)]) == 0  # one element has no variance


@torch.no_grad()
def test_norms_outside_of_the_part_stay() -> None:
    model = nn.Sequential(network(), nn.Unflatten(1, (10, 1)), nn.BatchNorm1d(10)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert norms_on_own_statistics(model, images(), within="0") > 3
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("0.") for name in changed)


@pytest.mark.parametrize("strategy", [Refit(), "map", "shift"])
def test_training_starts_from_the_recovered_network(strategy: str | Recovery) -> None:
    """One batch in training mode gives nearly the outputs of evaluation mode, after every strategy that fits to fixed norms."""
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).train()
    with torch.no_grad():
        for batch in images(8):
            model(batch)
    pruner = latprune.Pruner(model.eval(), images(1)[0][:1], budget="flops=40%", method=Uniform(), measure_latency=False)
    pruner.step()
    with torch.no_grad():
        pruner.recover(images(8, seed=3), strategy=strategy)
        x = torch.cat(images(8, seed=4))
        assert apart(copy.deepcopy(model).train()(x), model.eval()(x)) < 0.05
