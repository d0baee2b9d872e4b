"""Whatever is refused, the user's model is as it was: every bit of its tensors, its attributes, hooks, classes and modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import latprune
from latprune.errors import LatpruneError
from latprune.export import export_onnx
from latprune.train import Recipe

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def _net(*, middle: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Identity() if middle is None else middle,
        nn.Conv2d(8, 12, 3),
        nn.Flatten(),
        nn.Linear(192, 4),
    )
    net[1].running_mean.uniform_(-1, 1)
    net[4].train(), net[2].eval()
    return net


class Restless(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(())


class Counting(nn.Module):
    """Moves a buffer of its own on in each run, which carries pruned channels."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        self.seen.add_(x.mean((0, 2, 3)))
        return x + self.seen[:, None, None]


class Failing(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no")


class Lying(nn.Module):
    """Keeps the channels' number where tracing cannot see it."""

    def __init__(self) -> None:
        super().__init__()
        self.count = "8"

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.zeros(int(self.count))[:, None, None] if x.shape[0] > 100 else x.reshape(-1, int(self.count), *x.shape[2:])


class Infinite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([float("inf")]))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Stateful(nn.Conv2d):
    def get_extra_state(self) -> dict[str, object]:
        return {"seen": object()}

    def set_extra_state(self, state: Any) -> None:
        pass


def _snapshot(model: nn.Module) -> list[Any]:
    """Everything of a model that can be compared."""
    found: list[Any] = []
    for path, module in model.named_modules():
        plain = {k: v for k, v in vars(module).items() if isinstance(v, (int, float, str, bool, tuple, type(None))) and k != "_seen"}
        hooks = {k: list(v.values()) for k, v in vars(module).items() if "hooks" in k and isinstance(v, dict)}
        found.append((path, type(module), module.training, plain, hooks, list(module._modules)))
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        found += [(name, id(t), t.requires_grad, t.detach().clone()) for name, t in tensors]
    return found


def _changes(before: list[Any], after: list[Any]) -> list[Any]:
    """What differs between two snapshots."""

    def alike(a: Any, b: Any) -> bool:
        return a.dtype == b.dtype and torch.equal(a, b) if isinstance(a, Tensor) else a == b

    pairs = [(a, b) for a, b in zip(before, after, strict=True) if not all(alike(x, y) for x, y in zip(a, b, strict=True))]
    return [(x, y) for a, b in pairs for x, y in zip(a, b, strict=True) if not alike(x, y)]


def _prune(model: nn.Module, **options: Any) -> Any:
    given = {"budget": "params=60%", "method": "uniform", "measure_latency": False, **options}
    return latprune.prune(model, options.pop("inputs", X), **{k: v for k, v in given.items() if k != "inputs"})


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda: _net(middle=Restless()), {}),
        (lambda: _net(middle=Counting()), {}),
        (lambda: _net(middle=Failing()), {}),
        (lambda: _net(middle=Infinite()), {}),
        (lambda: _net(middle=Stateful(8, 8, 1)), {}),
        (lambda: _net(middle=_normed()), {"budget": "params=0.001%"}),
        (lambda: _net(middle=parametrizations.spectral_norm(nn.Conv2d(8, 8, 9, padding=4))), {}),
        (lambda: _net(middle=torch.compile(nn.Conv2d(8, 8, 1), backend="eager")), {}),
        (lambda: _net(middle=nn.DataParallel(nn.Conv2d(8, 8, 1))), {}),
        (_net, {"budget": "params=0.001%"}),
        (_net, {"budget": "tomorrow"}),
        (_net, {"keep": ["nowhere"]}),
        (_net, {"min_widths": {"0": 99}}),
        (_net, {"within": "nowhere"}),
        (_net, {"method": "none"}),
        (
            _net,
            {"method": "mdp", "data": [(X, torch.zeros(2, dtype=torch.int64))], "loss": lambda model, batch: torch.tensor(float("nan"))},
        ),
        (_net, {"method": "mdp", "data": [(X, torch.zeros(2))], "loss": lambda model, batch: 1 / 0}),
        (_net, {"inputs": torch.randn(2, 5, 8, 8)}),
        (_net, {"form": "none"}),
        (_net, {"solver": "none"}),
        (_net, {"fit": Recipe(epochs=1, learning_rate=0.1)}),
    ],
)
def test_a_refused_prune_changes_nothing(make: Callable[[], nn.Module], options: dict[str, Any]) -> None:
    model = make()
    before = _snapshot(model)
    with pytest.raises(LatpruneError):
        _prune(model, **options)
    assert _changes(before, _snapshot(model)) == []


def _normed() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(8, 40, 3, padding=1)), nn.ReLU(), nn.Conv2d(40, 8, 1))


def test_a_network_whose_cut_is_refused_by_the_check_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    from latprune.pruning import checking

    def refuse(*_: Any, **__: Any) -> None:
        raise latprune.errors.SurgeryError("the pruned network is not equal to the masked one")

    monkeypatch.setattr(checking, "check_equal", refuse)
    model = _net()
    before = _snapshot(model)
    with pytest.raises(LatpruneError, match="not equal"):
        _prune(model)
    assert _changes(before, _snapshot(model)) == []


@pytest.mark.parametrize("middle", [Failing, Lying, Counting])
def test_a_refused_export_changes_nothing(middle: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = _net(middle=middle())
    before = _snapshot(model)
    with pytest.raises(LatpruneError):
        export_onnx(model, X, tmp_path / "net.onnx", dynamic_size=True)
    assert _changes(before, _snapshot(model)) == []


def test_a_refused_restore_changes_nothing(tmp_path: Path) -> None:
    _prune(_net()).save(tmp_path / "result")
    other = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4))
    before = _snapshot(other)
    with pytest.raises(LatpruneError):
        latprune.restore(other, tmp_path / "result")
    assert _changes(before, _snapshot(other)) == []
