"""Wrappers around a model are taken off with a word; what only looks like a module is told before anything of it is started."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import latprune
from latprune.errors import CaptureError, UnwrappedWarning
from latprune.export import export_onnx, export_program
from latprune.graph import Selection, trace, unwrapped
from latprune.modes import check_modes
from latprune.surgery import prune as cut
from latprune.train import evaluate

X = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
JOB = {"budget": "flops=60%", "method": "uniform", "measure_latency": False}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    found = torch.compile(model, backend="eager")
    assert isinstance(found, nn.Module)
    return found


@pytest.mark.parametrize(
    ("wrap", "says"),
    [
        (compiled, "compiled.*compiles anew"),
        (nn.DataParallel, "DataParallel: the module in it is taken"),
        (lambda model: compiled(nn.DataParallel(model)), "compiled"),
    ],
)
def test_the_module_inside_is_pruned_and_the_wrapper_runs_what_it_has_become(
    wrap: Callable[[nn.Module], nn.Module], says: str, tmp_path: Path
) -> None:
    model = net()
    wrapper = wrap(model)
    wrapper(X)
    with pytest.warns(UnwrappedWarning) as told:
        graph = trace(wrapper, X)
    assert re.search(says, " ".join(str(one.message) for one in told))
    assert set(graph.groups) == set(trace(model, X).groups)
    with pytest.warns(UnwrappedWarning):
        result = latprune.prune(wrapper, X, **JOB)
    assert result.model is model and model[0][0].out_channels < 8
    assert any("is taken" in note for note in result.record.notes)
    torch.testing.assert_close(wrapper.eval()(X), model.eval()(X))
    result.save(tmp_path / "saved")
    with pytest.warns(UnwrappedWarning):
        again = latprune.restore(lambda: wrap(net()), tmp_path / "saved")
    assert type(again) is nn.Sequential and torch.equal(again(X), model(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore:.*barrier")
def test_a_wrapper_of_one_process_comes_off(process_group: None) -> None:
    model = net()
    with pytest.warns(UnwrappedWarning, match="DistributedDataParallel of one process.*wrap it again"):
        result = latprune.prune(nn.parallel.DistributedDataParallel(model), X, **JOB)
    assert result.model is model
    again = nn.parallel.DistributedDataParallel(model)
    again(X).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_wrapper_of_several_processes_stays_on(process_group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    wrapper = nn.parallel.DistributedDataParallel(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group=None: 4)
    for call in (lambda: trace(wrapper, X), lambda: latprune.prune(wrapper, X, **JOB)):
        with pytest.raises(CaptureError, match="its 4 processes would each prune.*Prune model.module in one of them"):
            call()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class FullyShardedDataParallel(nn.Module):
    """Stands in for PyTorch's, which needs several processes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_shards_are_refused_with_what_to_do() -> None:
    for model in (FullyShardedDataParallel(net()), nn.Sequential(FullyShardedDataParallel(net()))):
        with pytest.raises(CaptureError, match="its parameters are shards.*let all restore the saved result"):
            trace(model, X)


def test_capture_and_surgery_take_the_module_inside() -> None:
    model = net()
    with pytest.warns(UnwrappedWarning):
        program = latprune.capture(nn.DataParallel(model), X)
    torch.testing.assert_close(program(X), model(X))
    graph = trace(model, X)
    kept = torch.arange(4).numpy()
    with pytest.warns(UnwrappedWarning):
        cut(nn.DataParallel(model), graph, Selection(kept={"0.0": kept}))
    assert model[0][0].out_channels == 4


def test_wrapped_parts_are_exchanged_on_request() -> None:
    model = net()
    expected, names = model(X), set(model.state_dict())
    model[0] = nn.DataParallel(model[0])
    model[3] = compiled(model[3])
    with pytest.raises(CaptureError, match=r"module '0' is a DataParallel: put model.0.module in its place \(latprune.graph.unwrapped"):
        latprune.prune(model, X, **JOB)
    with pytest.warns(UnwrappedWarning) as told:
        assert unwrapped(model, parts=True) is model
    assert [str(one.message).split(" is ")[0] for one in told] == ["module '0'", "module '3'"]
    assert set(model.state_dict()) == names and torch.equal(model(X), expected)
    assert latprune.prune(model, X, **JOB).model is model


class Wrapper(nn.Module):
    """As training libraries have them: a module by class, whose train() runs a training."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.started: list[str] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)  # type: ignore[no-any-return]

    def train(self, trainer: object = None, **kwargs: object) -> object:  # type: ignore[override]
        self.started.append("training")
        return None

    def eval(self) -> Wrapper:
        self.started.append("eval")
        return self


def test_a_train_that_starts_a_training_is_never_called(tmp_path: Path) -> None:
    wrapper = Wrapper()
    calls: list[Callable[[], object]] = [
        lambda: trace(wrapper, X),
        lambda: latprune.prune(wrapper, X, **JOB),
        lambda: latprune.Pruner(wrapper, X, **JOB),
        lambda: latprune.explore(wrapper, X),
        lambda: latprune.capture(wrapper, X),
        lambda: evaluate(wrapper, [(X, torch.zeros(2, dtype=torch.long))]),
        lambda: export_onnx(wrapper, X, tmp_path / "net.onnx"),
        lambda: export_program(wrapper, X, tmp_path / "net.pt2"),
        lambda: trace(nn.Sequential(wrapper), X),
    ]
    for call in calls:
        with pytest.raises(CaptureError, match=r"a Wrapper, whose train\(trainer=None, \*\*kwargs\) is not.*Pass.*\.net \(a Sequential\)"):
            call()
        assert wrapper.started == []
    assert latprune.prune(wrapper.net, X, **JOB).model is wrapper.net


def test_a_result_is_not_restored_into_such_a_wrapper(tmp_path: Path) -> None:
    latprune.prune(net(), X, **JOB).save(tmp_path / "saved")
    wrapper = Wrapper()
    with pytest.raises(CaptureError, match="is a Wrapper"):
        latprune.restore(wrapper, tmp_path / "saved")
    assert wrapper.started == []


class Frozen(nn.BatchNorm2d):
    """A norm that stays in evaluation, as detectors have them."""

    def train(self, mode: bool = True) -> Frozen:
        return super().train(False)


class Told(nn.Linear):
    def train(self, is_training):  # type: ignore[no-untyped-def, override]
        return super().train(is_training)


class Counted(nn.Linear):
    def eval(self, repeats):  # type: ignore[no-untyped-def, override]
        return self


def test_a_train_that_sets_modes_is_taken() -> None:
    check_modes(nn.Sequential(Frozen(4), Told(4, 4), net()))
    with pytest.raises(CaptureError, match=r"the model is a Counted, whose eval\(repeats\)"):
        check_modes(Counted(4, 4))
