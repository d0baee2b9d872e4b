"""``latprune prune``: what its options do to a small network under a counted budget, and which of them are refused together."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from latprune.cli import build_parser, main
from latprune.cli.listing import KINDS
from latprune.cli.pruning_arguments import options_of
from latprune.methods import method_type, registered_methods
from support.explored import without_kernels

NETS = """
import torch

from latprune.zoo import digits_resnet


def net():
    torch.manual_seed(0)
    return digits_resnet(blocks=1, widths=(8, 16, 16))


def batches():
    random = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 1, 32, 32, generator=random), torch.randint(0, 10, (8,), generator=random)) for _ in range(2)]


def accuracy(model):
    with torch.no_grad():
        return float((model(batches()[0][0]).argmax(1) == batches()[0][1]).float().mean())


def fit(model, context):
    print(f"a fit of one's own after stage {context.stage}")
"""


@pytest.fixture
def nets(tmp_path: Path) -> str:
    (tmp_path / "nets.py").write_text(NETS)
    return str(tmp_path / "nets.py")


def words(nets: str, out: Path, *given: str) -> list[str]:
    job = ["prune", "--model", f"{nets}:net", "--input", "1x1x32x32", "--engine", "torch", "--predict-only", "--quiet", "-o", str(out)]
    return [*job, *given]


def record(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "result" / "result.json").read_text())
    return found


def kept(out: Path) -> dict[str, int]:
    return {group["name"]: group["kept"] for group in record(out)["groups"]}


def test_rules_for_widths_hold_in_what_comes_out(nets: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    rules = ["--min-width", "conv1=7", "--max-width", "layer3.*=12", "--min-share", "0.25", "--max-share", "layer2.*=0.75"]
    assert main(words(nets, out, "--budget", "flops=70%", "--criterion", "magnitude", "--no-blocks", "--slack", "0.2", *rules)) == 0
    found = record(out)
    assert found["blocks"] and found["blocks_removed"] == [] and found["method"]["options"]["blocks"] is False
    assert found["pruned"]["macs"] <= 0.7 * found["dense"]["macs"]
    for name, width in kept(out).items():
        dense = 8 if name.startswith(("conv1", "layer1")) else 16
        assert dense // 4 <= width <= (12 if name.startswith(("layer2", "layer3")) else dense), name
    assert kept(out)["conv1"] >= 7


def test_whole_blocks_go_but_for_those_that_must_stay(nets: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(nets, out, "--budget", "flops=90%", "--criterion", "magnitude", "--no-channels", "--blocks-keep", "layer2*")) == 0
    found = record(out)
    assert found["blocks_removed"] and not [name for name in found["blocks_removed"] if name.startswith("layer2")]
    left = [group for group in found["groups"] if not set(group["blocks"]) & set(found["blocks_removed"])]
    assert left and all(group["kept"] == group["dense"] for group in left)


def test_a_part_alone_is_pruned(nets: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(nets, out, "--budget", "params=90%", "--criterion", "magnitude", "--within", "layer3", "--narrow")) == 0
    found = record(out)
    assert found["program"] is None and found["pruned"]["parameters"] <= 0.9 * found["dense"]["parameters"]
    assert kept(out) and all(name.startswith("layer3") for name in kept(out))


def test_what_comes_out_may_be_a_program(nets: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(words(nets, out, "--budget", "params=90%", "--criterion", "magnitude", "--form", "program")) == 0
    assert record(out)["program"] is not None


def test_stages_recover_and_train_as_they_are_told(nets: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    given = ["--budget", "flops=70%", "--method", "uniform", "--schedule", "stages", "--schedule-arg", "stages=2"]
    given += ["--data", f"{nets}:batches", "--evaluate", f"{nets}:accuracy", "--log", "none"]
    given += ["--recover", "refit", "--recover-arg", "rows=20", "--recovery-images", "8"]
    given += ["--epochs", "2", "--stage-epochs", "1", "--learning-rate", "0.001", "--distill"]
    assert main(words(nets, out, *given)) == 0
    found = record(out)
    assert [(entry["stage"], entry["epoch"]) for entry in found["training"]] == [(1, 0), (2, 0), (2, 1)]
    assert found["recovery"]["settings"]["rows"] == 20 and found["recovery"]["images"] + found["recovery"]["held_out"] <= 8
    assert found["accuracies"][0]["stage"] == "dense" and found["accuracies"][-1]["accuracy"] == found["pruned"]["accuracy"]
    settings = json.loads((out / "state.json").read_text())["settings"]
    assert settings["recovery_images"] == 8 and settings["trained by"]["distillation"] is not None


def test_options_of_soft_masks_are_given_to_the_method_or_as_a_schedule(nets: str, tmp_path: Path) -> None:
    given = {
        "method": ["--method", "smcp", "--method-arg", 'masks={"every": 1, "norm_scaling": true}'],
        "schedule": ["--method", "smcp", "--schedule", "soft_masks", "--schedule-arg", "every=1", "--schedule-arg", "norm_scaling=true"],
    }
    for kind, words_of in given.items():
        out = tmp_path / kind
        train = ["--data", f"{nets}:batches", "--epochs", "3", "--learning-rate", "0.01", "--log", "none", "--recover", "none"]
        assert main(words(nets, out, "--budget", "flops=70%", *words_of, *train)) == 0
        settings = json.loads((out / "state.json").read_text())["pruner"]["settings"]
        found = settings["options"]["masks"] if kind == "method" else settings["schedule"]
        assert (found["every"], found["norm_scaling"]) == (1, True)


def test_candidates_are_picked_by_accuracy_before_a_fit_of_ones_own(nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    given = ["--budget", "flops=70%", "--criterion", "magnitude", "--candidates", "2", "--fit", f"{nets}:fit", "--recover", "none"]
    assert main(words(nets, out, *given, "--data", f"{nets}:batches", "--evaluate", f"{nets}:accuracy")) == 0
    assert "a fit of one's own after stage 1" in capsys.readouterr().out
    assert json.loads((out / "state.json").read_text())["settings"]["candidates"] == 2


def test_a_predictor_is_read_in_place_of_tables(nets: str, tmp_path: Path) -> None:
    without_kernels(overhead_ms=0.5).save(tmp_path / "predictor.npz")
    given = [*words(nets, tmp_path / "out", "--budget", "60%"), "--predictor", str(tmp_path / "predictor.npz")]
    found = options_of(build_parser().parse_args(given))
    assert found["predictor"] is not None and found["predictor"].overhead_ms == 0.5 and found["tables"] is None


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--learning-rate", "0.1"], "--learning-rate does nothing without --epochs or --recipe, which train; give one, or leave it out"),
        (["--distill"], "--distill does nothing without --epochs or --recipe"),
        (["--stage-epochs", "3"], "--stage-epochs does nothing without --epochs or --recipe"),
        (["--epochs", "3", "--stage-epochs", "1"], "--stage-epochs (=1) is for the stages before the last, and mdp has one stage"),
        (
            ["--epochs", "3", "--stage-epochs", "1", "--method", "halp", "--method-arg", "interval=5"],
            "and halp trains 5 batches between its stages",
        ),
        (["--recipe-arg", "ema=0.9"], "--recipe-arg does nothing without --epochs or --recipe"),
        (["--train-precision", "bf16"], "--train-precision does nothing without --epochs or --recipe"),
        (["--channels-last"], "--channels-last does nothing without --epochs or --recipe"),
        (["--log", "none"], "--log does nothing without --epochs or --recipe"),
        (["--fit", "nets:fit", "--epochs", "3"], "--epochs does nothing with --fit, which trains in its own way; leave it out"),
        (["--fit", "nets:fit", "--recipe", "x"], "--recipe does nothing with --fit"),
        (["--fit", "nets:fit", "--distill"], "--distill does nothing with --fit"),
        (["--seed", "-1", "--method", "random"], "--seed (=-1) must be at least 0"),
        (["--time-limit", "nan"], "time_limit (=nan) must be a positive number of seconds"),
        (["--slack", "2"], "slack (=2.0) must be a share of the budget"),
        (["--within", "layer3", "--form", "program"], "within (='layer3') needs form='class'"),
        (["--method-arg", "blocks=no"], "blocks (='no') must be True or False; on the command line write true or false"),
        (["--method", "smcp", "--method-arg", 'masks={"norm_scaling": "yes"}'], "norm_scaling (='yes') must be True or False; on"),
        (["--method-arg", "soft_masks=5"], "soft_masks (=5) must be a SoftMasks schedule"),
        (["--method-arg", 'soft_masks={"evry": 20}'], "schedule 'soft_masks' has no option 'evry'"),
        (["--method", "halp", "--criterion", "magnitude", "--method-arg", "stages=2.5"], "stages (=2.5) must be a whole number"),
        (["--recover", "refit", "--recover-arg", "rows=many"], "rows (='many') must be a whole number"),
        (["--train-threads", "-1"], "--train-threads (=-1) must be a whole number of at least 1"),
        (["--train-threads", "0"], "--train-threads (=0) must be a whole number of at least 1"),
        (["-o", ""], "--output (='') must name a folder, or a file that ends in .onnx"),
        (["--criterion", "fpgm", "--method-arg", "score=magnitude"], "--method-arg score does nothing with --criterion"),
        (["--stages", "3", "--method-arg", "stages=5"], "--method-arg stages does nothing with --stages"),
        (["--schedule", "stages", "--schedule-arg", "stages=3", "--stages", "5"], "--stages does nothing with --schedule (='stages')"),
        (["--schedule", "stages", "--method-arg", "stages=4"], "--method-arg stages= does nothing with --schedule (='stages')"),
        (["--schedule", "single_pass", "--method-arg", 'soft_masks={"every": 5}'], "--method-arg soft_masks= does nothing with --schedule"),
        (["--no-blocks", "--method-arg", "blocks=true"], "--method-arg blocks does nothing with --no-blocks"),
        (["--no-channels", "--method-arg", "channels=true"], "--method-arg channels does nothing with --no-channels"),
        (["--test-data", "nets:x", "--evaluate", "nets:accuracy"], "--test-data does nothing with --evaluate"),
        (["--recover", "none", "--recovery-images", "5"], "--recovery-images does nothing with --recover none"),
    ],
)
def test_what_does_nothing_or_is_of_another_kind_is_refused_before_anything_is_done(
    given: Sequence[str], told: str, nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words(nets, tmp_path / "out", "--budget", "flops=70%", *given)) == 2
    assert told in capsys.readouterr().err and not list(tmp_path.rglob("*.json"))


def test_a_schedule_leaves_the_method_its_other_options(nets: str, tmp_path: Path) -> None:
    """What a network from scratch is structured by has a schedule of its own, and does more than that."""
    given = ("--method", "from_scratch", "--method-arg", "structure=halp", "--method-arg", "score=l1", "--schedule", "single_pass")
    assert main(words(nets, tmp_path / "out", "--budget", "flops=70%", "--predict-only", *given)) == 0


def test_folding_for_good_and_for_a_while_exclude_each_other(nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words(nets, tmp_path / "out", "--budget", "flops=70%", "--fold", "--fold-temporarily"))
    assert refused.value.code == 2 and "--fold-temporarily: not allowed with argument --fold" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--evaluate", "nets:accuracy", "--test-data", "nets:x"], "--test-data does nothing with --evaluate"),
        (["--criterion", "fpgm", "--method-arg", "score=magnitude"], "--method-arg score does nothing with --criterion"),
        (["--train-threads", "0"], "--train-threads (=0) must be"),
    ],
)
@pytest.mark.parametrize("command", ["explore", "sweep"])
def test_other_commands_refuse_the_same(
    command: str, given: Sequence[str], told: str, nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", f"{nets}:net", "--input", "1x1x32x32"]
    more = ["--budget", "flops=70%"] if command == "sweep" else ["--resource", "flops", "--predict-only"]
    assert main([command, *model, *more, *given, "-o", str(tmp_path / "out.html")]) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "out.html").exists()


def test_a_sweep_refuses_options_of_a_training_that_there_is_not(nets: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = ["sweep", *words(nets, tmp_path / "out", "--budget", "flops=70%")[1:], "--method", "uniform", "--distill"]
    assert main(sweep) == 2
    assert "--distill does nothing without --epochs or --recipe" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_list_names_everything_that_is_registered_with_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    everything = capsys.readouterr().out
    assert [line for line in everything.splitlines() if not line.startswith(" ")] == [f"{kind}:" for kind in KINDS]
    assert main(["list", "methods"]) == 0
    found = capsys.readouterr().out
    assert found in everything
    for name in registered_methods():
        assert f"  {name} " in found
        assert all(f"{entry.name}=" in found for entry in dataclasses.fields(method_type(name)))
