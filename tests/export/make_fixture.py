"""Write a checkpoint in today's format into ``fixtures/``: run once when a format is about to change, and never over an old fixture.

Usage: ``PYTHONPATH=tests python tests/export/make_fixture.py NAME``
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from latprune.export import save_result
from support.pruned import INPUT, pruned_network


def main(name: str) -> None:
    """Write ``fixtures/NAME``; its first note that is a list holds the outputs for a fixed input."""
    path = Path(__file__).parent / "fixtures" / name
    if path.exists():
        raise SystemExit(f"{path} exists; old fixtures are never written again")
    model, record = pruned_network()
    with torch.no_grad():
        outputs = model(torch.randn(INPUT, generator=torch.Generator().manual_seed(0)))
    save_result(path, model, record.model_copy(update={"notes": (json.dumps(outputs[0].tolist()),)}))


if __name__ == "__main__":
    main(sys.argv[1])
