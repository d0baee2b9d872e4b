from __future__ import annotations

from dataclasses import replace

import pytest

from latprune.latency import KernelTime
from latprune.latency.measuring.matching import match_profile
from support.made_up_machine import axis, kernel


def step(order: int, op: str, path: str | None, ms: float = 1.0) -> KernelTime:
    return KernelTime(name=f"{order}", op=op, path=path, order=order, ms=ms, runs=1)


def test_steps_go_to_their_modules_and_the_rest_to_what_ran_before() -> None:
    kernels = [kernel("a", (axis("x"), axis("y"))), kernel("b", (axis("y"), axis("z"))), kernel("n", (axis("z"),), kind="norm")]
    found = match_profile(
        [step(0, "Reorder", None, 0.5), step(1, "Conv", "a"), step(2, "Reorder", None), step(3, "Conv", "b"), step(4, "Relu", "act", 0.25)],
        kernels,
    )
    assert found.unmatched_ms == 0.5
    assert found.shares["a"].ms == 2.0 and found.shares["a"].attached == ("Reorder",)
    assert found.shares["b"].ms == 1.25 and found.shares["b"].attached == ("Relu",)
    assert "n" not in found.shares


def test_the_calls_of_a_module_are_kernels_of_their_own() -> None:
    first, second = kernel("a", (axis("x"), axis("y"))), kernel("a#1", (axis("y"), axis("z")))
    second = type(second)(**{**{key: getattr(second, key) for key in type(second).__slots__}, "module": "a"})
    found = match_profile([step(0, "Conv", "a"), step(1, "Relu", "r"), step(2, "Conv", "a", 3.0)], [first, second])
    assert {name: share.ms for name, share in found.shares.items()} == {"a": 2.0, "a#1": 3.0}


def test_activations_never_own_a_step() -> None:
    relu = kernel("m/relu", (axis("x"),), kind="activation")
    relu = type(relu)(**{**{key: getattr(relu, key) for key in type(relu).__slots__}, "module": "m"})
    found = match_profile([step(0, "Conv", "a"), step(1, "Relu", "m")], [kernel("a", (axis("x"), axis("y"))), relu])
    assert found.shares["a"].ms == 2.0 and set(found.shares) == {"a"}


def test_kernels_of_removed_blocks_own_nothing() -> None:
    found = match_profile(
        [step(0, "Conv", "a"), step(1, "Conv", "b")],
        [kernel("a", (axis("x"), axis("y"))), kernel("b", (axis("y"), axis("x")), blocks=("block",))],
        ["block"],
    )
    assert set(found.shares) == {"a"}
    assert found.shares["a"].ms == pytest.approx(2.0)


def test_everything_is_accounted_for() -> None:
    kernels = [kernel(name, (axis("x"), axis("y"))) for name in "abc"]
    steps = [
        step(index, op, path, 0.1 * index) for index, (op, path) in enumerate([("Pad", None), ("Conv", "b"), ("Mul", "b"), ("Conv", "q")])
    ]
    found = match_profile(steps, kernels)
    assert found.unmatched_ms + sum(share.ms for share in found.shares.values()) == pytest.approx(sum(entry.ms for entry in steps))


def fused(order: int, computes: tuple[str, ...], ms: float) -> KernelTime:
    return KernelTime(name=f"{order}", op="Subgraph", path=None, order=order, ms=ms, runs=1, computes=computes)


def test_a_step_of_several_layers_is_divided_by_their_multiply_adds() -> None:
    kernels = [kernel("a", (axis("x"), axis("y")), kind="linear"), kernel("b", (axis("y"), axis("z")), kind="linear")]
    found = match_profile([fused(0, ("a", "b"), 4.0)], kernels, (), {"x": 8, "y": 4, "z": 24})
    assert {name: share.ms for name, share in found.shares.items()} == {"a": 1.0, "b": 3.0}
    equally = match_profile([fused(0, ("a", "b"), 4.0)], kernels)
    assert {name: share.ms for name, share in equally.shares.items()} == {"a": 2.0, "b": 2.0}


def test_a_shared_weight_is_found_where_it_runs() -> None:
    head = replace(kernel("embedding#1", (axis("x"), axis("y")), kind="linear"), module="embedding", caller="head")
    found = match_profile([step(0, "MatMul", "head", 2.0)], [kernel("body", (axis("x"), axis("x")), kind="linear"), head])
    assert {name: share.ms for name, share in found.shares.items()} == {"embedding#1": 2.0}
    assert set(match_profile([step(0, "MatMul", "embedding")], [head]).shares) == {"embedding#1"}


def test_a_whole_module_has_the_layers_of_one_of_its_calls() -> None:
    kernels = [
        replace(kernel(name, (axis("x"), axis("x")), kind="linear"), module="attention")
        for name in ("attention.in", "attention.out", "attention.in#1", "attention.out#1")
    ]
    laps = [replace(step(order, "MultiheadAttention", "attention", 2.0 + order), whole=True) for order in range(2)]
    found = match_profile(laps, kernels, (), {"x": 8})
    assert {name: share.ms for name, share in found.shares.items()} == {
        "attention.in": 1.0,
        "attention.out": 1.0,
        "attention.in#1": 1.5,
        "attention.out#1": 1.5,
    }
