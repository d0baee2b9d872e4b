from __future__ import annotations

import argparse
import dataclasses
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from latprune.cli import predictor as command
from latprune.errors import FileFormatError, InvalidArgumentError, TableError
from latprune.latency import (
    DesignPoint,
    KernelPrediction,
    KernelPredictor,
    NetworkSample,
    Store,
    design_points,
    kernel_signature,
    train_predictor,
)
from latprune.latency.features import FEATURES, family_of, kernel_features, step_of
from latprune.latency.predicting.forest import fit_forest
from support.made_up_machine import BLOCKS, CONSTANT, CONTEXT, GROUPS, KERNELS, WIDTHS, MadeUpMachine, true_cost

pytest.importorskip("sklearn")


def networks(count: int, seed: int) -> list[NetworkSample]:
    machine = MadeUpMachine(seed)
    return [machine.sample(point) for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=seed), count)]


@pytest.fixture(scope="module")
def trained() -> KernelPredictor:
    return train_predictor(CONTEXT, networks(80, 0))


def test_forest_equals_scikit_learn() -> None:
    from sklearn.ensemble import ExtraTreesRegressor

    random = np.random.default_rng(0)
    features = random.normal(size=(300, 4))
    target = np.sin(features[:, 0]) + features[:, 1]
    weights = np.ones(300)
    forest = fit_forest(features, target, weights, trees=40, seed=3)
    model = ExtraTreesRegressor(n_estimators=40, min_samples_leaf=2, max_features=0.6, random_state=3)
    model.fit(features, target, sample_weight=weights)
    other = random.normal(size=(100, 4))
    assert np.allclose(forest.predict(other), model.predict(other), rtol=1e-9, atol=1e-9)


def test_predicts_kernels_and_networks(trained: KernelPredictor) -> None:
    random = np.random.default_rng(1)
    errors, inside = [], 0
    for _ in range(100):
        sizes = (int(random.integers(8, 129)), int(random.integers(8, 97)))
        found = trained.kernel(kernel_signature(KERNELS["a.1"]), sizes)
        truth = true_cost("a.1", sizes)
        errors.append(abs(found.ms / truth - 1))
        inside += found.low <= truth <= found.high
    assert np.median(errors) < 0.06
    assert inside >= 85
    machine = MadeUpMachine(5)
    whole = [
        trained.network(KERNELS.values(), {**WIDTHS, **point.widths}, point.removed).ms
        / machine.latency({**WIDTHS, **point.widths}, point.removed)
        - 1
        for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=77), 40)
    ]
    assert np.mean(np.abs(whole)) < 0.05


def test_the_trunk_carries_beyond_the_training_data_and_the_interval_widens() -> None:
    """Trained on kernels of at most half the size of those asked about."""
    machine = MadeUpMachine(3, interrupted=0.0)
    halves = [
        DesignPoint(widths={name: max(1, point.widths[name] // 2) for name in point.widths}, removed=point.removed)
        for point in islice(design_points(list(GROUPS.values()), list(BLOCKS.values()), seed=3), 80)
    ]
    predictor = train_predictor(CONTEXT, [machine.sample(point) for point in halves])
    signature = kernel_signature(KERNELS["a.1"])

    def width_of(found: KernelPrediction) -> float:
        return float(np.log(found.high / found.low))

    inside, outside = predictor.kernel(signature, (40, 32)), predictor.kernel(signature, (128, 96))
    far = predictor.kernel(signature, (1024, 1024))
    assert outside.ms == pytest.approx(true_cost("a.1", (128, 96)), rel=0.15)
    assert far.ms == pytest.approx(true_cost("a.1", (1024, 1024)), rel=0.25)
    assert outside.low <= true_cost("a.1", (128, 96)) <= outside.high
    assert width_of(inside) <= width_of(outside) <= width_of(far)
    assert width_of(inside) < width_of(far)
    half = {name: width // 2 for name, width in WIDTHS.items()}
    known, new = predictor.network(KERNELS.values(), half), predictor.network(KERNELS.values(), WIDTHS)
    assert new.high / new.ms >= known.high / known.ms


def test_round_trip_without_pickle(trained: KernelPredictor, tmp_path: Path) -> None:
    trained.save(tmp_path / "p.npz")
    again = KernelPredictor.load(tmp_path / "p.npz")
    assert again.context == trained.context and again.costing == trained.costing
    assert again.network(KERNELS.values(), WIDTHS) == trained.network(KERNELS.values(), WIDTHS)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert all(file[name].dtype != object for name in file.files)


def test_broken_files_are_refused(trained: KernelPredictor, tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("nothing")
    # numpy would take it for a pickle and tell how to open one.
    with pytest.raises(FileFormatError, match="no predictor file: it is no whole .npz archive"):
        KernelPredictor.load(tmp_path / "text.npz")
    with pytest.raises(FileFormatError, match="No such file"):
        KernelPredictor.load(tmp_path / "missing.npz")
    np.savez(tmp_path / "list.npz", header=np.frombuffer(b"[]", dtype=np.uint8))
    with pytest.raises(FileFormatError, match="no JSON object"):
        KernelPredictor.load(tmp_path / "list.npz")
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(FileFormatError, match="no predictor file"):
        KernelPredictor.load(tmp_path / "other.npz")
    trained.save(tmp_path / "good.npz")
    with np.load(tmp_path / "good.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "nan.npz", **{**arrays, "0/forest.value": arrays["0/forest.value"] * np.nan})
    with pytest.raises(FileFormatError, match="inconsistent"):
        KernelPredictor.load(tmp_path / "nan.npz")
    for name, value, words in (
        ("0/forest.roots", arrays["0/forest.roots"][None], "roots must have one dimension"),
        ("0/forest.roots", arrays["0/forest.roots"][0], "roots must have one dimension"),
        ("0/forest.feature", arrays["0/forest.feature"] * np.nan, "feature .* must hold whole numbers"),
        ("0/prices", arrays["0/prices"] * np.nan, "prices"),
        ("0/prices", arrays["0/prices"] + np.inf, "prices"),
        ("0/places", arrays["0/places"] * np.nan, "places"),
        ("0/places", arrays["0/places"] + np.inf, "places"),
    ):
        np.savez(tmp_path / "wrong.npz", **{**arrays, name: value})
        with pytest.raises(FileFormatError, match=words) as caught:
            KernelPredictor.load(tmp_path / "wrong.npz")
        assert "wrong.npz" in str(caught.value)
    arrays["0/forest.left"] = np.where(arrays["0/forest.left"] >= 0, 0, -1)
    np.savez(tmp_path / "cycle.npz", **arrays)
    with pytest.raises(FileFormatError, match="inconsistent"):
        KernelPredictor.load(tmp_path / "cycle.npz")


def test_one_changed_bit_is_never_anything_but_a_clear_error(trained: KernelPredictor, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    trained.save(path)
    data = path.read_bytes()
    # The heads of the members and the directory say how to read the rest, which has checksums.
    heads = [place for place in range(len(data)) if data.startswith((b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"), place)]
    bits = [8 * start + bit for start in (heads[0], heads[len(heads) // 2], heads[-2], heads[-1]) for bit in range(0, 8 * 22, 5)]
    refused = 0
    for bit in [*bits, *range(0, 8 * len(data), len(data) // 8)]:
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        try:
            again = KernelPredictor.load(path)
        except FileFormatError:
            refused += 1
        else:
            assert again.network(KERNELS.values(), WIDTHS) == trained.network(KERNELS.values(), WIDTHS)
    assert refused > 60


def test_what_load_refuses_is_not_saved(trained: KernelPredictor, tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    trained.save(path)
    before = path.read_bytes()
    family, model = next(iter(trained.families.items()))
    broken = dataclasses.replace(model, prices=-np.ones_like(model.prices))
    for other, message in (
        (dataclasses.replace(trained, spread=float("nan")), r"spread \(=nan\) must be finite"),
        (dataclasses.replace(trained, families={**trained.families, family: broken}), "non-negative prices"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            other.save(path)
        assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_profiles_alone_do_not_make_a_predictor() -> None:
    profiles = [dataclasses.replace(network, ms=None) for network in networks(40, 0)]
    with pytest.raises(TableError, match="none of the 40 has one.*measure networks end to end"):
        train_predictor(CONTEXT, profiles)
    whole = train_predictor(CONTEXT, [*profiles, *networks(4, 1)])
    assert np.isfinite(whole.spread) and whole.constant_ms + whole.overhead_ms > 0


def test_unknown_families_are_refused(trained: KernelPredictor) -> None:
    with pytest.raises(TableError, match="attention"):
        trained.kernel(kernel_signature(KERNELS["stem"]).replace('"kind":"conv"', '"kind":"attention"'), (8, 8))
    unseen = dataclasses.replace(KERNELS["stem"], kind="depthwise", axes=KERNELS["stem"].axes[1:])
    with pytest.raises(TableError, match="kernel 'stem': no kernel of family 'depthwise'"):
        trained.network([unseen, KERNELS["head"]], WIDTHS)
    fused = dataclasses.replace(KERNELS["stem"], kind="norm", axes=KERNELS["stem"].axes[1:])
    assert trained.network([fused, KERNELS["head"]], WIDTHS).ms == trained.network([KERNELS["head"]], WIDTHS).ms
    with pytest.raises(TableError, match="at least 20"):
        train_predictor(CONTEXT, networks(1, 0))


def test_features() -> None:
    signature = kernel_signature(KERNELS["a.1"])
    assert family_of(signature) == "conv1x1"
    values = dict(zip(FEATURES, kernel_features(signature, (32, 24)), strict=True))
    assert values["in_padding"] == 0.0
    assert values["out_padding"] == pytest.approx(1 / 3)
    assert values["in_divisible_by"] == 4.0 and values["out_divisible_by"] == 3.0
    assert step_of(signature) == "conv"
    assert step_of(signature.replace('"attributes":{', '"attributes":{"op":"batch_norm",')) == "conv batch_norm"
    alone = kernel_features(signature, (32, 24), 1e7)
    assert alone[FEATURES.index("log_network_weights")] > values["log_network_weights"]
    with pytest.raises(TableError, match="cannot be read"):
        kernel_features("{}", (1, 2))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    with Store(tmp_path / "s.sqlite") as store:
        store.add(CONTEXT, networks(40, 0))
    arguments = ["predictor", "train", "1", "--store", str(tmp_path / "s.sqlite"), "-o", str(tmp_path / "p.npz")]
    args = parser.parse_args(arguments)
    assert args.run(args) == 0
    assert "conv1x1, linear" in capsys.readouterr().out
    train = ["predictor", "train", "--store", str(tmp_path / "s.sqlite"), "-o", str(tmp_path / "q.npz")]
    args = parser.parse_args(train)
    with pytest.raises(InvalidArgumentError, match="--sweep to measure here"):
        args.run(args)
    args = parser.parse_args([*train, "1", "--sweep", "3"])
    with pytest.raises(InvalidArgumentError, match="exclude each other"):
        args.run(args)
    args = parser.parse_args(["predictor", "train", "2", "--store", str(tmp_path / "s.sqlite"), "-o", str(tmp_path / "q.npz")])
    with pytest.raises(InvalidArgumentError, match="between 1 and 1"):
        args.run(args)


def test_one_structure_alone_vouches_for_no_other() -> None:
    """The made-up network at twice its depth, on a machine whose kernels take a third longer there, as where they have left the caches."""
    one, other = networks(40, 0), [dataclasses.replace(network, fingerprint="another") for network in networks(40, 1)]
    alone, both = train_predictor(CONTEXT, one), train_predictor(CONTEXT, [*one, *other])
    deeper = [*KERNELS.values(), *(dataclasses.replace(kernel, name=f"{kernel.name} again") for kernel in KERNELS.values())]
    machine = MadeUpMachine(0)
    truth = 1.33 * (2 * machine.latency(WIDTHS) - CONSTANT)
    found, known = alone.network(deeper, WIDTHS), both.network(deeper, WIDTHS)
    assert found.low < truth < found.high and not known.low < truth < known.high
    kernel = alone.kernel(kernel_signature(KERNELS["a.1"]), (40, 32))
    assert kernel.high / kernel.low >= np.exp(2 * 0.7) * 0.999
    # What the models say is the trials' affair as before.
    assert kernel.ms == pytest.approx(true_cost("a.1", (40, 32)), rel=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["1", "--engine", "openvino"], "--engine does nothing with N"),
        (["1", "--threads", "1"], "--threads does nothing with N"),
        (["1", "--time-limit", "5"], "--time-limit does nothing with N"),
        (["1", "--seed", "-1"], r"--seed \(=-1\) must be at least 0"),
        (["--sweep", "-3"], r"--sweep \(=-3\) must be at least 1"),
        (["--sweep", "3", "--time-limit", "-5"], r"--time-limit \(=-5.0\)"),
    ],
)
def test_train_refuses_what_it_would_ignore_or_cannot_use(tmp_path: Path, options: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    store = ["--store", str(tmp_path / "s.sqlite"), "-o", str(tmp_path / "p.npz")]
    args = parser.parse_args(["predictor", "train", *options, *store])
    with pytest.raises(InvalidArgumentError, match=message):
        args.run(args)
    assert not list(tmp_path.iterdir())


def test_predict_does_not_answer_for_another_batch(trained: KernelPredictor, tmp_path: Path) -> None:
    trained.save(tmp_path / "p.npz")
    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["predictor", "predict", str(tmp_path / "p.npz"), "--model", "none.py:none", "--input", "4x3x32x32"])
    with pytest.raises(InvalidArgumentError, match=r"--input \(='4x3x32x32'\) must begin with 1"):
        args.run(args)
