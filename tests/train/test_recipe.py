from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latprune.errors import InvalidArgumentError
from latprune.train import RECIPES, SGD, AdamW, Constant, Cosine, Distillation, Linear, Recipe, Steps, learning_rate, recipe


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_named_recipes_survive_json(name: str) -> None:
    chosen = recipe(name)
    assert Recipe.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_every_part_survives_json() -> None:
    chosen = Recipe(
        epochs=5,
        learning_rate=1e-3,
        optimizer=AdamW(beta1=0.8, relative=True),
        schedule=Steps(milestones=(2, 4), gamma=0.5),
        distillation=Distillation(temperature=2.0, weight=0.3),
        max_gradient_norm=1.0,
        precision="bf16",
        notes=("a", "b"),
    )
    assert Recipe.from_dict(json.loads(json.dumps(chosen.to_dict()))) == chosen


def test_the_papers_values_are_as_published() -> None:
    halp, mdp = recipe("halp-imagenet"), recipe("mdp-imagenet")
    assert (halp.learning_rate, halp.optimizer, halp.weight_decay, halp.warmup_epochs) == (1.024, SGD(momentum=0.875), 3.05e-5, 8)
    assert (halp.batch_size, halp.epochs, halp.label_smoothing, halp.decay_norm_and_bias) == (1024, 90, 0.1, False)
    assert isinstance(halp.schedule, Cosine) and isinstance(mdp.schedule, Linear) and mdp.warmup_epochs == 16
    base, tune = recipe("sp-lamp-cifar10-base"), recipe("sp-lamp-cifar10")
    assert base.schedule == Steps(milestones=(120, 180), gamma=0.1) and (base.epochs, base.batch_size, base.learning_rate) == (240, 64, 0.1)
    assert (tune.epochs, tune.batch_size, tune.learning_rate, tune.weight_decay) == (200, 128, 0.01, 5e-4)
    voc, scenes = recipe("mdp-voc"), recipe("mdp-nuscenes")
    assert isinstance(voc.optimizer, SGD) and isinstance(voc.schedule, Steps) and (voc.learning_rate, voc.batch_size) == (1e-3, 32)
    assert [round(epochs * 16551 / 32, -4) for epochs in (*voc.schedule.milestones, voc.epochs)] == [40000, 50000, 60000]
    assert isinstance(scenes.optimizer, AdamW) and isinstance(scenes.schedule, Cosine)
    assert all(chosen.notes for chosen in RECIPES.values())
    assert all(any("not " in note for note in RECIPES[name].notes) for name in ("mdp-voc", "mdp-nuscenes", "sp-lamp-imagenet"))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match=r"recipe \(='mdq'\) must be one of .*mdp-imagenet"):
        recipe("mdq")
    with pytest.raises(InvalidArgumentError, match=r"schedule type \(='Sawtooth'\)"):
        Recipe.from_dict({"epochs": 1, "learning_rate": 0.1, "schedule": {"type": "Sawtooth"}})
    with pytest.raises(InvalidArgumentError, match="epoch_count"):
        Recipe.from_dict({"epoch_count": 1, "learning_rate": 0.1})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epochs": 0}, r"epochs \(=0\)"),
        ({"learning_rate": -1.0}, r"learning_rate \(=-1.0\)"),
        ({"learning_rate": math.nan}, r"learning_rate \(=nan\)"),
        ({"warmup_epochs": 3.0}, r"warmup_epochs \(=3.0\)"),
        ({"weight_decay": -0.1}, r"weight_decay \(=-0.1\)"),
        ({"label_smoothing": 1.0}, r"label_smoothing \(=1.0\)"),
        ({"precision": "int8"}, r"precision \(='int8'\)"),
        ({"max_gradient_norm": 0.0}, r"max_gradient_norm \(=0.0\)"),
        ({"batch_size": 0}, r"batch_size \(=0\)"),
    ],
)
def test_values_break_their_rule_out_loud(values: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        Recipe(**({"epochs": 3, "learning_rate": 0.1} | values))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SGD(momentum=1.0), "momentum"),
        (lambda: SGD(momentum=0.0, nesterov=True), "nesterov"),
        (lambda: AdamW(beta2=1.5), "beta2"),
        (lambda: AdamW(relative="no"), "relative"),
        (lambda: Steps(milestones=(4, 2)), "milestones"),
        (lambda: Steps(milestones=(1,), gamma=0.0), "gamma"),
        (lambda: Cosine(final=2.0), "final"),
        (lambda: Linear(final=-1.0), "final"),
        (lambda: Distillation(temperature=0.0), "temperature"),
        (lambda: Distillation(weight=0.0), "weight"),
    ],
)
def test_parts_break_their_rule_out_loud(build: object, message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("name", "values", "rule"),
    [
        ("epochs", ["3", 1.5, True, None], "whole number of at least 1"),
        ("accumulate", [2.5, True, "2"], "whole number of at least 1"),
        ("batch_size", ["a", 1.5, True], "whole number of at least 1, or None"),
        ("seed", [1.5, "0", True, -1], "whole number of at least 0"),
        ("learning_rate", ["x", True, None, math.inf], "positive number"),
        ("weight_decay", ["0", math.nan, True], "number of at least 0"),
        ("warmup_epochs", [math.nan, "1"], "number in"),
        ("label_smoothing", ["a", True], "number in"),
        ("mixup", ["a", True], "number of at least 0"),
        ("ema", ["a", True], "number between 0 and 1"),
        ("max_gradient_norm", ["1", True], "positive number"),
        ("after_recovery", ["most", True], "positive number, or 'error'"),
        ("compile", [1, "yes", None], "True or False"),
        ("channels_last", [1], "True or False"),
        ("decay_norm_and_bias", [0], "True or False"),
        ("fixed_norms", ["no"], "True or False"),
        ("precision", [32, True, ["fp32"]], "fp32, bf16 or fp16"),
        ("optimizer", ["SGD", None], "SGD"),
        ("schedule", ["Cosine", None], "Cosine"),
        ("distillation", [True, 0.5], "Distillation"),
        ("notes", ["text", (1,)], "tuple of texts"),
    ],
)
def test_values_of_another_type_are_named_with_their_rule(name: str, values: list[object], rule: str) -> None:
    for value in values:
        with pytest.raises(InvalidArgumentError, match=re.escape(f"{name} (={value!r}) must") + f".*{re.escape(rule)}"):
            Recipe(**({"epochs": 3, "learning_rate": 0.1} | {name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("part", "values", "named"),
    [
        (SGD, {"momentum": "0.9"}, "momentum (='0.9')"),
        (SGD, {"momentum": False}, "momentum (=False)"),
        (SGD, {"nesterov": 1}, "nesterov (=1)"),
        (AdamW, {"beta1": "a"}, "beta1 (='a')"),
        (AdamW, {"epsilon": -1}, "epsilon (=-1)"),
        (AdamW, {"epsilon": math.nan}, "epsilon (=nan)"),
        (Cosine, {"final": "0"}, "final (='0')"),
        (Linear, {"final": True}, "final (=True)"),
        (Steps, {"milestones": 3}, "milestones (=3)"),
        (Steps, {"milestones": (1.5,)}, "milestones (=1.5)"),
        (Steps, {"milestones": (1,), "gamma": "a"}, "gamma (='a')"),
        (Distillation, {"temperature": "a"}, "temperature (='a')"),
        (Distillation, {"weight": True}, "weight (=True)"),
        (Distillation, {"feature_weight": "a"}, "feature_weight (='a')"),
        (Distillation, {"features": 3}, "features (=3)"),
    ],
)
def test_parts_name_values_of_another_type(part: type, values: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(named + " must")):
        part(**values)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epochs": "3"}, "epochs (='3')"),
        ({"optimizer": "SGD"}, "optimizer (='SGD')"),
        ({"optimizer": {"type": "SGD", "speed": 1}}, "optimizer: "),
        ({"schedule": {"type": "Steps", "milestones": 3}}, "milestones (=3)"),
        ({"schedule": {"type": "Steps"}}, "schedule: "),
        ({"distillation": 0.5}, "distillation (=0.5)"),
        ({"distillation": {"features": 3}}, "features (=3)"),
        ({"notes": "text"}, "notes (='text')"),
        ({"mixupp": 1}, "'mixupp'"),
    ],
)
def test_a_file_is_told_which_field_is_wrong(values: dict[str, object], named: str) -> None:
    with pytest.raises(InvalidArgumentError, match=re.escape(named)):
        Recipe.from_dict({"epochs": 1, "learning_rate": 0.1} | values)


def test_numbers_of_numpy_are_numbers() -> None:
    assert Recipe(epochs=np.int64(2), learning_rate=np.float32(0.5), warmup_epochs=1).epochs == 2


def test_with_epochs_keeps_the_shares() -> None:
    short = recipe("sp-lamp-cifar10-base").with_epochs(24)
    assert short.epochs == 24 and short.schedule == Steps(milestones=(12, 18), gamma=0.1)
    assert recipe("halp-imagenet").with_epochs(45).warmup_epochs == pytest.approx(4.0)


def test_the_steps_schedule_drops_at_its_milestones() -> None:
    chosen = Recipe(epochs=6, learning_rate=1.0, schedule=Steps(milestones=(2, 4)))
    rates = [learning_rate(chosen, epoch * 10, 10) for epoch in range(6)]
    assert rates == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.01])


def test_cosine_passes_its_middle_and_warm_up_reaches_the_peak() -> None:
    chosen = Recipe(epochs=11, learning_rate=2.0, schedule=Cosine(final=0.5), warmup_epochs=1)
    assert [learning_rate(chosen, step, 4) for step in range(4)] == pytest.approx([0.5, 1.0, 1.5, 2.0])
    assert learning_rate(chosen, 4, 4) == pytest.approx(2.0)
    assert learning_rate(chosen, 24, 4) == pytest.approx(1.5)  # half-way between the peak and half of it


@given(
    epochs=st.integers(1, 20),
    steps=st.integers(1, 30),
    warmup=st.floats(0, 0.9),
    schedule=st.sampled_from([Constant(), Cosine(), Linear(), Linear(final=0.2), Steps(milestones=(1, 3))]),
)
def test_the_rate_never_rises_after_the_warm_up_and_stays_positive(
    epochs: int, steps: int, warmup: float, schedule: Constant | Cosine | Linear | Steps
) -> None:
    chosen = Recipe(epochs=epochs, learning_rate=0.1, schedule=schedule, warmup_epochs=warmup * epochs)
    rates = [learning_rate(chosen, step, steps) for step in range(epochs * steps)]
    peak = round(chosen.warmup_epochs * steps)
    assert all(0 < rate <= 0.1 * (1 + 1e-12) for rate in rates)
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(rates[peak:], rates[peak + 1 :], strict=False))
    with pytest.raises(InvalidArgumentError):
        learning_rate(chosen, epochs * steps, steps)


def test_replace_is_checked_too() -> None:
    with pytest.raises(InvalidArgumentError, match="epochs"):
        replace(recipe("halp-imagenet"), epochs=5)


def test_a_recovered_network_is_trained_at_a_lower_rate_where_the_recipe_says_so() -> None:
    plain = Recipe(epochs=1, learning_rate=0.02)
    assert plain.after_recovering(0.24) == plain
    assert replace(plain, after_recovery=0.5).after_recovering(0.24).learning_rate == 0.01
    chosen = replace(plain, after_recovery="error")
    assert chosen.after_recovering(0.24).learning_rate == pytest.approx(0.0048)
    assert chosen.after_recovering(None).learning_rate == pytest.approx(0.005)
    assert chosen.after_recovering(1e-3).learning_rate == pytest.approx(0.002)  # at least a tenth
    assert chosen.after_recovering(1.7).learning_rate == 0.02  # never more
    fixed = replace(chosen, after_recovery=1.0, fixed_norms=True)
    assert fixed.after_recovering(0.24) == fixed and Recipe.from_dict(fixed.to_dict()) == fixed
    assert not {"after_recovery", "fixed_norms"} & plain.to_dict().keys()
    assert Recipe.from_dict(chosen.to_dict()) == chosen
    with pytest.raises(InvalidArgumentError, match="after_recovery"):
        Recipe(epochs=1, learning_rate=0.1, after_recovery=0.0)
    with pytest.raises(InvalidArgumentError, match="'error'"):
        Recipe(epochs=1, learning_rate=0.1, after_recovery="slower")  # type: ignore[arg-type]


LABEL_FREE = Distillation(weight=1.0, loss="matching")


@pytest.mark.parametrize("name", ["mixup", "cutmix", "label_smoothing"])
def test_what_changes_labels_is_refused_where_no_label_is_read_here(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match=rf"recipe.{name} \(=0.2\) does nothing beside a distillation that reads no labels"):
        Recipe(epochs=1, learning_rate=0.1, distillation=LABEL_FREE, **{name: 0.2})
    mixing = Recipe(epochs=1, learning_rate=0.1, **{name: 0.2})
    mixing.check_own_loss(None)
    with pytest.raises(InvalidArgumentError, match=rf"recipe.{name} \(=0.2\) does nothing beside a loss of your own"):
        mixing.check_own_loss(lambda model, batch: None)


def test_compiling_is_refused_beside_watched_modules() -> None:
    for distillation in (LABEL_FREE, Distillation(features=("0",))):
        with pytest.raises(InvalidArgumentError, match="recipe.compile"):
            Recipe(epochs=1, learning_rate=0.1, compile=True, distillation=distillation)
    Recipe(epochs=1, learning_rate=0.1, compile=True, distillation=Distillation())


def test_scaled_losses_are_refused_for_weights_in_half() -> None:
    weights = [torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))]
    with pytest.raises(InvalidArgumentError, match="precision.*float16"):
        Recipe(epochs=1, learning_rate=0.1, precision="fp16").check_types(weights)
    Recipe(epochs=1, learning_rate=0.1, precision="bf16").check_types(weights)
