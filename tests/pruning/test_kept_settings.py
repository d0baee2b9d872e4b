"""A run goes on only under the loss, the tables and the predictor that it began with, and options that no file holds are told at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import latprune
from latprune.errors import CheckpointError, InvalidArgumentError
from latprune.importance import Importance, cross_entropy_loss, register
from latprune.importance.core import _CRITERIA
from latprune.latency import KernelPredictor, LatencyTables
from latprune.pruning.code_names import code_name
from latprune.pruning.differences import first_difference
from latprune.zoo import digits_resnet
from support.explored import made_up_tables, without_kernels

X = torch.zeros(1, 1, 32, 32)


def network() -> nn.Module:
    torch.manual_seed(0)
    return digits_resnet(blocks=1, widths=(8, 8, 8)).eval()


def prune(**options: Any) -> latprune.Result:
    return latprune.prune(network(), X, **{"budget": "flops=70%", "method": "uniform", "measure_latency": False, **options})


def one_loss(model: nn.Module, batch: Any) -> Tensor:
    return cross_entropy_loss(model, batch)


def other_loss(model: nn.Module, batch: Any, *, share: float = 1.0) -> Tensor:
    return share * cross_entropy_loss(model, batch)


class Losses:
    def of(self, model: nn.Module, batch: Any) -> Tensor:
        return cross_entropy_loss(model, batch)


@dataclass(frozen=True)
class Weighted:
    share: float = 1.0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.share * cross_entropy_loss(model, batch)


def test_a_run_goes_on_under_the_same_loss_alone(tmp_path: Path) -> None:
    prune(folder=tmp_path, loss=one_loss)
    prune(folder=tmp_path, loss=one_loss)
    here = __name__
    with pytest.raises(CheckpointError, match=rf"loss '{here}.one_loss', this one '{here}.other_loss' \(loss=\); .*another output folder"):
        prune(folder=tmp_path, loss=other_loss)
    state = json.loads((tmp_path / "state.json").read_text())
    del state["settings"]["loss"]  # as releases before wrote it
    del state["pruner"]["settings"]["tables"], state["pruner"]["settings"]["predictor_digest"]
    (tmp_path / "state.json").write_text(json.dumps(state))
    prune(folder=tmp_path, loss=other_loss)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (cross_entropy_loss, "latprune.importance.core.cross_entropy_loss"),
        (partial(other_loss, share=0.5), f"{__name__}.other_loss(share=0.5)"),
        (partial(other_loss, None, [1, "a", {"b": Losses()}]), f"{__name__}.other_loss(None, [1, 'a', {{'b': {__name__}.Losses}}])"),
        (Losses().of, f"{__name__}.Losses.of"),
        (Weighted(share=0.25), f"{__name__}.Weighted(share=0.25)"),
        (nn.CrossEntropyLoss(), "torch.nn.modules.loss.CrossEntropyLoss"),
    ],
)
def test_the_name_of_a_loss_is_the_same_in_every_process(code: Callable[..., Any], name: str) -> None:
    assert code_name(code) == name


def test_tables_and_predictors_are_told_apart_by_what_they_hold(tmp_path: Path) -> None:
    tables, predictor = made_up_tables(), without_kernels()
    again = LatencyTables.from_dict(json.loads(json.dumps(tables.to_dict())))
    predictor.save(tmp_path / "predictor.npz")
    assert again.digest == tables.digest and KernelPredictor.load(tmp_path / "predictor.npz").digest == predictor.digest
    slower = LatencyTables.from_dict({**tables.to_dict(), "scale": 2.0 * tables.scale})
    assert slower.digest != tables.digest and without_kernels(overhead_ms=0.1).digest != predictor.digest


def test_the_settings_of_a_pruner_hold_its_tables() -> None:
    def settings(**options: Any) -> dict[str, Any]:
        pruner = latprune.Pruner(network(), X, budget="flops=70%", method="uniform", measure_latency=False, **options)
        return dict(pruner.settings)

    bare, told = settings(), settings(predictor=without_kernels())
    assert bare["tables"] is None and bare["predictor_digest"] is None and told["predictor_digest"] == without_kernels().digest
    assert first_difference({**bare, "tables": "0" * 64}, bare) == "tables of digest 000000000000..., this one none (--tables)"
    other = settings(predictor=without_kernels(overhead_ms=0.1))
    assert str(first_difference(told, other)).startswith("predictor of digest ") and "(--predictor)" in str(first_difference(told, other))
    before = {name: value for name, value in told.items() if name not in ("tables", "predictor_digest")}
    assert first_difference(before, other) is None


class NoDataclass:
    """A configuration that tells no fields."""


def test_a_configuration_that_no_file_holds_is_told_before_anything_is_cut(tmp_path: Path) -> None:
    @register(NoDataclass, name="told_nothing")
    def score(model: nn.Module, graph: Any, config: object, data: object, loss: object) -> Importance:
        units = {name: np.ones(group.units) for name, group in graph.groups.items()}
        return Importance(units=units, shares={(name, ()): values for name, values in units.items()})

    try:
        method = latprune.Uniform(score=NoDataclass())
        assert prune(method=method).record.pruned.macs
        model = network()
        with pytest.raises(InvalidArgumentError, match=r"options.score \(=.*NoDataclass.*\) cannot be kept .* make its class a dataclass"):
            latprune.prune(model, X, budget="flops=70%", method=method, measure_latency=False, folder=tmp_path)
        assert not list(tmp_path.glob("*.json")) and model.get_parameter("conv1.weight").shape[0] == 8
    finally:
        _CRITERIA.remove("told_nothing")


def test_numbers_of_numpy_are_kept_as_numbers(tmp_path: Path) -> None:
    method = latprune.SPLAMP(stages=np.int64(2))  # type: ignore[arg-type]
    prune(method=method, seed=np.int64(3), folder=tmp_path)
    settings = json.loads((tmp_path / "state.json").read_text())["pruner"]["settings"]
    assert settings["options"]["stages"] == 2 and settings["seed"] == 3


def test_candidates_of_a_method_with_fresh_weights_are_refused_at_the_start() -> None:
    batches = [(torch.randn(4, 1, 32, 32), torch.randint(0, 10, (4,)))]
    with pytest.raises(InvalidArgumentError, match=r"candidates \(=3\) compares .* 'from_scratch' draws anew after the cut: leave it at 1"):
        prune(method="from_scratch", candidates=3, data=batches, evaluate=lambda model: 0.5)
