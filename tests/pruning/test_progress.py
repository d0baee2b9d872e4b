"""A run tells its listener of every phase, and counts what takes long inside of them."""

from __future__ import annotations

import torch

import latprune
from latprune.progress import Event
from latprune.train import evaluate
from latprune.zoo import digits_resnet


class Heard:
    """Keeps every event."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def event(self, event: Event) -> None:
        self.events.append(event)


def test_a_run_tells_its_phases_and_counts_what_takes_long() -> None:
    torch.manual_seed(0)
    model, heard = digits_resnet(blocks=1, widths=(8, 16, 16)).eval(), Heard()
    batches = [(torch.randn(32, 1, 16, 16), torch.randint(0, 10, (32,))) for _ in range(3)]
    latprune.prune(
        model,
        batches[0][0][:1],
        budget="flops=60%",
        data=batches,
        evaluate=batches,
        fit=latprune.Recipe(epochs=2, learning_rate=0.01),
        measure_latency=False,
        progress=heard,
    )
    ended = {event.stretch for event in heard.events if event.kind == "end"}
    assert {"trace", "preflight", "score", "solve", "check", "surgery", "recover", "fine-tune", "evaluate"} <= ended, "phases of the clock"
    counted = {event.stretch: event for event in heard.events if event.kind == "step"}
    assert counted["evaluating"].done == counted["evaluating"].total == 3
    assert counted["training"].done == counted["training"].total == 6
    assert {"loss", "epoch", "examples_per_second"} <= set(counted["training"].figures)
    assert counted["recovering"].unit == "layers"
    assert counted["divergence of narrower groups"].done == counted["divergence of narrower groups"].total
    lines = [event.text for event in heard.events if event.kind == "line"]
    assert any(line.startswith("epoch 2 of 2: loss") and "accuracy" in line for line in lines)
    # Whatever began has ended, also where it lay in something else.
    begun = [event.key for event in heard.events if event.kind == "begin"]
    assert sorted(begun) == sorted(event.key for event in heard.events if event.kind == "end")


def test_without_a_listener_nothing_is_told(capfd: object) -> None:
    model = digits_resnet(blocks=1, widths=(4, 4, 4))
    evaluate(model, [(torch.randn(4, 1, 16, 16), torch.arange(4))])
    assert capfd.readouterr() == ("", "")  # type: ignore[attr-defined]
