"""The recorded run computes nothing that only flows on, and everything where the model reads its values."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import latprune
from latprune.graph.provenance import CallWatcher
from latprune.graph.recorder import Recorder
from latprune.graph.recording import Info
from latprune.graph.uncomputed import ValueRead


class _Course(nn.Module):
    """Takes one of two ways, which a value of its own features decides; the wrong one raises."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.left = nn.Conv2d(8, 6, 1)
        self.right = nn.Conv2d(8, 6, 1)
        self.last = nn.Conv2d(6, 4, 1)
        self.read = read

    def _value(self, h: torch.Tensor) -> float:
        if self.read == "item":
            return h.mean().item()
        if self.read == "bool":
            return 1.0 if (h.mean() > 0) else -1.0
        if self.read == "tolist":
            return float(h.mean(dim=(0, 2, 3)).tolist()[0])
        if self.read == "numpy":
            return float(h.numpy().mean())
        if self.read == "nonzero":
            return 1.0 if len((h > 0).nonzero()) else -1.0
        if self.read == "index":
            return float(torch.arange(-1.0, 2.0)[h.mean().round().long() + 1])
        raise AssertionError(self.read)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.first(x)
        found: torch.Tensor = self.last(self.left(h) if self._value(h) > 0 else self.right(h))
        return found


@pytest.mark.parametrize("read", ["item", "bool", "tolist", "numpy", "nonzero", "index"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_value_that_is_read_is_computed(read: str, sign: float) -> None:
    model = _Course(read).eval()
    with torch.no_grad():
        model.first.weight.zero_()
        assert model.first.bias is not None
        model.first.bias.fill_(sign)
    graph = latprune.trace(model, torch.randn(1, 3, 5, 5))
    taken, other = ("left", "right") if sign > 0 else ("right", "left")
    assert taken in graph.kernels
    assert other not in graph.kernels


def _uncomputed_run(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    recorder = Recorder(model.eval(), CallWatcher(), computed=False)
    with torch.no_grad(), recorder:
        recorder.set(x, Info(fields=(), node=-2, output=0, shape=tuple(x.shape), dynamic=True))
        out: torch.Tensor = model(x)
    assert recorder.info(out).uncomputed
    return out


def test_shapes_are_those_of_a_computed_run() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
        nn.Conv2d(8, 8, (1, 3), dilation=2, groups=8),
        nn.GELU(),
        nn.ConvTranspose2d(8, 6, 2, stride=2),
        nn.AvgPool2d(2),
        nn.Flatten(2),
        nn.Linear(36, 5),
    )
    x = torch.randn(2, 3, 23, 37)
    with torch.no_grad():
        wanted = model.eval()(x)
    found = _uncomputed_run(model, x)
    assert found.shape == wanted.shape
    assert found.stride() == wanted.stride()
    assert found.dtype == wanted.dtype


def test_operations_of_other_libraries_count_as_reading() -> None:
    with torch.library._scoped_library("latprune_test_reading", "DEF") as library:
        library.define("scan(Tensor x) -> Tensor")
        library.impl("scan", lambda x: x + 0, "CPU")

        class Scans(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.conv = nn.Conv2d(3, 4, 1)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                scanned: torch.Tensor = torch.ops.latprune_test_reading.scan(self.conv(x))
                return scanned

        with pytest.raises(ValueRead):
            _uncomputed_run(Scans(), torch.randn(1, 3, 4, 4))


def test_inputs_hold_what_a_computed_run_leaves_and_buffers_what_they_held() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.last = nn.Conv2d(3, 2, 1)
            self.register_buffer("memory", torch.zeros(1, 3, 4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.conv(x)
            x.mul_(2)
            self.memory.copy_(h)
            x.add_(h)
            out: torch.Tensor = self.last(x)
            return out

    model = Writes().eval()
    x = torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        expected = model.conv(x)
        total = 2 * x + expected
    latprune.trace(model, x)
    assert not model.memory.any()
    torch.testing.assert_close(x, total)


def test_a_model_that_is_called_again_after_tracing_computes() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Conv2d(4, 2, 3)).eval()
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        before = model(x).clone()
        latprune.trace(model, x)
        torch.testing.assert_close(model(x), before)
    assert nn.Module.__call__.__qualname__ == "Module._wrapped_call_impl"
