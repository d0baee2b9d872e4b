"""Optional, dictionary, list and nested inputs, through both exporters and both runtimes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from latprune.errors import EngineError, InvalidArgumentError
from latprune.export.onnx import check_onnx, export_onnx
from latprune.export.signature import named_inputs, output_tensors


class Mixed(nn.Module):
    """A dictionary, a list, an optional mask and a mode."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.head = nn.Conv2d(3, 8, 3), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, batch: dict[str, Any], extras: list[torch.Tensor], mask: torch.Tensor | None = None, mode: str = "train") -> Any:
        x = self.image(batch["image"]).mean((2, 3)) + self.table(batch["meta"]["a table"]) + extras[0] * extras[1]
        x = x if mask is None else x * mask
        return {"scores": self.head(x), "aux": [x] if mode == "train" else None}


def inputs(rows: int = 2) -> tuple[Any, ...]:
    batch = {"image": torch.randn(rows, 3, 8, 8), "meta": {"a table": torch.randn(rows, 5)}}
    return batch, [torch.randn(rows, 8), torch.randn(rows, 8)], None, "eval"


def test_tensors_are_named_by_where_they_lie() -> None:
    assert list(named_inputs(Mixed(), inputs())) == ["batch_image", "batch_meta_a_table", "extras_0", "extras_1"]
    batch, extras, _, _ = inputs()
    assert list(named_inputs(Mixed(), {"extras": extras, "batch": batch})) == ["batch_image", "batch_meta_a_table", "extras_0", "extras_1"]
    with pytest.raises(InvalidArgumentError, match="no tensor"):
        named_inputs(nn.Linear(2, 2), {"input": None})
    with pytest.raises(InvalidArgumentError, match="'input_a_b'"):
        named_inputs(nn.Linear(2, 2), {"input": {"a": {"b": torch.zeros(1)}, "a_b": torch.zeros(1)}})


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("keywords", [False, True])
def test_nested_inputs_are_exported_and_checked(tmp_path: Path, keywords: bool, dynamic: bool) -> None:
    model, given = Mixed().eval(), inputs()
    example: Any = dict(zip(("batch", "extras", "mask", "mode"), given, strict=True)) if keywords else given
    written = export_onnx(model, example, tmp_path / "net.onnx", dynamic_batch=dynamic)
    assert written.exporter == "torchscript" and all(error < 1e-4 for error in written.errors.values())
    assert check_onnx(tmp_path / "net.onnx", model, example, dynamic_batch=dynamic).keys() == written.errors.keys()


class OddPool(nn.Module):
    """What the TorchScript exporter lacks, so that the other one takes it, with an optional input."""

    def forward(self, x: torch.Tensor, extra: torch.Tensor | None = None, scale: dict[str, torch.Tensor] | None = None) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, 5)
        return pooled if scale is None else pooled * scale["by"]


def test_the_other_exporter_takes_them_too_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    example = (torch.randn(1, 3, 12, 12), None, {"by": torch.randn(1, 3, 1, 1)})
    written = export_onnx(OddPool(), example, tmp_path / "net.onnx")
    assert written.exporter == "dynamo" and written.reason
    assert capfd.readouterr() == ("", "")


def test_a_model_that_no_exporter_takes_is_told_in_a_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    class Python(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.eigvals(x).real.sort().values

    with pytest.raises(EngineError, match="cannot be exported") as told:
        export_onnx(Python(), torch.randn(3, 3), tmp_path / "net.onnx")
    assert "\n" not in str(told.value) and not (tmp_path / "net.onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_tensors_of_output_objects_are_found() -> None:
    @dataclass
    class Output:
        scores: torch.Tensor
        none: None
        more: list[torch.Tensor]

    class Plain:
        def __init__(self) -> None:
            self.scores = torch.zeros(2)

    assert [t.shape for t in output_tensors(Plain())] == [(2,)]
    assert len(output_tensors(Output(torch.zeros(2), None, [torch.zeros(3)]))) == 2


class Sizes(nn.Module):
    """Images of any size, and a vector beside."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.out = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)

    def forward(self, image: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        deep = torch.relu(self.read(image)) + shift[:, :, None, None]
        return self.out(nn.functional.interpolate(nn.functional.avg_pool2d(deep, 2), scale_factor=2.0))


@pytest.mark.parametrize("batch", [False, True])
def test_height_and_width_may_be_open(tmp_path: Path, batch: bool) -> None:
    import onnx

    example = (torch.randn(2, 3, 8, 12), torch.randn(2, 6))
    written = export_onnx(Sizes().eval(), example, tmp_path / "net.onnx", dynamic_batch=batch, dynamic_size=True)
    assert written.errors and all(error < 1e-4 for error in written.errors.values())
    shape = onnx.load(tmp_path / "net.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [bool(d.dim_param) for d in shape] == [batch, False, True, True]


def test_sizes_that_the_model_does_not_leave_open_are_refused(tmp_path: Path) -> None:
    fixed = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 36, 4))
    with pytest.raises(EngineError, match="the model itself does not run at twice the height and width"):
        export_onnx(fixed, torch.randn(1, 3, 8, 8), tmp_path / "net.onnx", dynamic_size=True)
    with pytest.raises(InvalidArgumentError, match="no input is one"):
        export_onnx(nn.Linear(2, 2), torch.randn(1, 2), tmp_path / "net.onnx", dynamic_size=True)
    assert not (tmp_path / "net.onnx").exists()


def test_the_reason_of_an_exporter_is_its_cause_without_colours(tmp_path: Path) -> None:
    written = export_onnx(OddPool(), torch.randn(1, 3, 12, 12), tmp_path / "net.onnx")
    assert "\x1b" not in written.reason and "step 1/3" not in written.reason
