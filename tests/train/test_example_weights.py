from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from latprune.train import SGD, Constant, Recipe, finetune
from latprune.train.batches import first_size, shard, share
from latprune.train.example_weights import ExampleWeights

PLAIN = Recipe(epochs=2, learning_rate=0.1, optimizer=SGD(), schedule=Constant())


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=5), processes=st.integers(1, 4))
def test_a_step_is_the_mean_over_its_examples(sizes: list[int], processes: int) -> None:
    examples = list(torch.arange(float(sum(sizes))).split(sizes))
    found = 0.0
    every = [ExampleWeights(processes) for _ in range(processes)]
    for batch in examples:
        for rank, weights in enumerate(every):
            part = shard(batch, rank, processes)
            here = share(len(batch), rank, processes)
            assert len(part) == (here or len(batch))
            found += part.mean().item() * weights.of(here=here, total=len(batch)) / len(sizes) / processes
    corrections = {weights.correction() for weights in every}
    assert len(corrections) == 1
    assert found * corrections.pop() == pytest.approx((sum(sizes) - 1) / 2, rel=1e-5, abs=1e-6)


@given(size=st.integers(1, 9), batches=st.integers(1, 5), processes=st.integers(1, 4))
def test_equal_shares_weigh_exactly_one(size: int, batches: int, processes: int) -> None:
    weights = ExampleWeights(processes)
    assert {weights.of(here=size, total=size * processes) for _ in range(batches)} == {1.0}
    assert weights.correction() == 1.0


def test_examples_are_counted_at_the_first_tensor_that_has_them() -> None:
    assert first_size({"task": "a", "scale": torch.tensor(2.0), "images": torch.zeros(3, 4)}) == 3
    assert first_size("nothing") == 1
    shared = shard({"scale": torch.tensor(2.0), "images": torch.arange(3)}, 1, 2)
    assert shared["scale"] == 2.0 and shared["images"].tolist() == [1]


@pytest.mark.parametrize("own", [False, True])
def test_batches_of_unequal_size_are_gathered_to_one_large_batch(own: bool) -> None:
    x = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()

    def loss(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    trained = []
    for size, accumulate in ((40, 1), (16, 3)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2))
        batches = list(zip(x.split(size), y.split(size), strict=True))
        # The clipped norm is that of the corrected gradients.
        finetune(model, batches, replace(PLAIN, accumulate=accumulate, max_gradient_norm=0.1), loss=loss if own else None)
        trained.append(model.state_dict())
    for name, value in trained[0].items():
        torch.testing.assert_close(trained[1][name], value, rtol=1e-5, atol=1e-6)
