"""What the sections of docs/benchmarks.md are made of: reading results, tables, machines."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
ENGINES = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime", "torch": "PyTorch, eager", "executorch": "ExecuTorch"}
ENGINES |= {f"{name}-modules": f"{label}, profile hidden" for name, label in ENGINES.items()}
_NAMES = {
    "resnet20": "ResNet-20",
    "resnet56": "ResNet-56",
    "resnet50": "ResNet-50",
    "mobilenet_v2": "MobileNetV2",
    "efficientnet_lite0": "EfficientNet-Lite0",
    "unet": "U-Net",
    "yolov8n": "YOLOv8n",
    "vit": "small ViT",
    "cifar_vit": "small ViT",
    "vit_b_16": "ViT-B/16",
}


def read(name: str) -> Any:
    """A result by name, or None where it was not measured."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def percent(value: float | None, digits: int = 1) -> str:
    """A share as text."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def duration(seconds: float) -> str:
    """A time as text."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def machine(found: Any) -> str:
    """What a result was measured on; where its rows come from several machines, each has a letter in the tables (``measured_table``)."""
    if "machine" in found:
        value = found["machine"]
        return str(value["processor"]) if isinstance(value, dict) else str(value)
    letters = machine_letters(found)
    return next(iter(letters)) if len(letters) == 1 else "Machines: " + "; ".join(f"{letter}: {name}" for name, letter in letters.items())


def machine_letters(found: Any) -> dict[str, str]:
    """Machine -> letter, in the order of the rows."""
    return {name: chr(ord("A") + index) for index, name in enumerate(dict.fromkeys(row["machine"] for row in found["rows"]))}


def measured_table(found: Any, head: Sequence[str], cells: Callable[[Any], Iterable[Sequence[str]]], rows: Iterable[Any] = ()) -> str:
    """A table of the lines that ``cells`` makes of each row, with a column for the machine where there are several."""
    letters = machine_letters(found)
    several = len(letters) > 1
    lines = [[*line, *([letters[row["machine"]]] if several else [])] for row in rows or found["rows"] for line in cells(row)]
    return table([*head, *(["machine"] if several else [])], lines)


def write_or_check(path: Path, page: Callable[[], str], description: str | None) -> None:
    """The command line of a page's tool: write the page, or with ``--check`` exit with 1 where the file says something else."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="only say whether the page is up to date")
    args = parser.parse_args()
    text = page()
    if not args.check:
        path.write_text(text, encoding="utf-8")
    elif not path.exists() or path.read_text(encoding="utf-8") != text:
        sys.exit(f"{path.relative_to(ROOT)} is not what the results say; run python {Path(sys.argv[0]).as_posix()}")


def network_name(network: str) -> str:
    """A network as the pages write it."""
    return _NAMES.get(network, network)


def machines(found: Any) -> str:
    """The machines of a result's rows, as a sentence."""
    names = dict.fromkeys(str(row["machine"]) for row in found["rows"] if row.get("machine"))
    return "; ".join(names) + "." if names else ""


def budget_words(text: str) -> str:
    """A budget as the head of a column."""
    return f"{text.removeprefix('flops=')} of multiply-adds" if text.startswith("flops=") else f"{text} of measured latency"
