"""The whole way on a small residual network, by the made-up engine's clock: budgets, refusals, saved state, reload."""

import copy
import dataclasses
import json
import math
import shutil

import pytest
import torch

import latprune
import latprune.solve
from latprune.cli import main
from latprune.errors import BudgetInfeasibleError, CheckpointError, InvalidArgumentError, LatpruneError, TableError
from latprune.importance import MagnitudeConfig, TaylorConfig
from latprune.latency import LatencyTables, Residual, Store, Target, build_tables
from latprune.pruning.state import selection_to_dict
from latprune.zoo import digits_resnet
from support.made_up_engine import MadeUpNetwork

TARGET = Target(engine="made-up")
pytestmark = pytest.mark.usefixtures("made_up_engine")
BY_MAGNITUDE = latprune.MDP(score=MagnitudeConfig())


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = digits_resnet(blocks=2, widths=(16, 32, 64))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def batches(count: int = 3) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(16, 1, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator)) for _ in range(count)]


X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def tables(made_up_engine, tmp_path_factory) -> LatencyTables:
    model = network()
    with Store(tmp_path_factory.mktemp("store") / "latency.sqlite") as store:
        return build_tables(model, latprune.trace(model, X), X, TARGET, store=store)


def prune(model, budget, **options):
    return latprune.prune(model, X, budget=budget, target=TARGET, **{"method": BY_MAGNITUDE, **options})


class SecondHead(torch.nn.Module):
    """A head whose scores are dropped, as in detectors with two assignments; engines drop it as well."""

    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Conv2d(1, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 64, 3), torch.nn.ReLU())
        self.head, self.other = torch.nn.Linear(64, 10), torch.nn.Linear(64, 10)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return (self.head(x), self.other(x))[0]


def test_layers_that_no_output_reads_are_free(monkeypatch):
    note = MadeUpNetwork._note
    monkeypatch.setattr(MadeUpNetwork, "_note", lambda self, path, *rest: None if path == "other" else note(self, path, *rest))
    torch.manual_seed(0)
    result = prune(SecondHead().eval(), "60%")
    assert 0.5 < result.latency_ratio <= 0.6 and result.model.other.in_features == result.model.head.in_features


def test_what_trained_under_soft_masks_is_what_the_clock_lets_through(tables):
    """These tables know nothing of what a kernel costs beside its size, so that networks at their limit are over the budget."""
    model = network()
    lower = dataclasses.replace(tables, entries={n: dataclasses.replace(e, overhead_ms=-0.003) for n, e in tables.entries.items()})
    pruner = latprune.Pruner(model, X, budget="50%", target=TARGET, tables=lower, method=latprune.SMCP(masks=latprune.SoftMasks(every=2)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    training = pruner.masked_training(steps=24, optimizers=optimizer)
    for images, labels in batches(24):
        training.before_forward()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
        training.after_backward()
        optimizer.step()
        if training.changes and training.changes[-1].limit <= pruner.limit * (1 + 1e-9):
            assert pruner.limits.resource.value(pruner.widths, ()) <= 1.01 * training.state().data["delivers"], "its own sum is no measure"
    before, mask = model.eval()(X), selection_to_dict(pruner.selection)
    assert pruner.limits.resource.value(pruner.widths, ()) < pruner.limit
    report = pruner.step(optimizers=optimizer)
    assert report.measured is not None and report.measured.ratio <= 0.5
    assert selection_to_dict(pruner.selection) == mask
    torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-5)


def test_half_the_latency(tables, tmp_path):
    model = network()
    result = prune(model, "60%", tables=tables)
    assert result.model is model
    assert result.latency_ratio <= 0.60
    assert result.record.budget_share <= 1.0
    assert result.record.equality.max_rel_error < 1e-9
    assert result.problem.evaluate(result.solution.assignment).satisfied
    assert result.solution.status == "optimal"
    assert result.record.pruned.parameters == sum(p.numel() for p in model.parameters())
    assert {"trace", "solve", "measure candidates", "final measurement"} <= {stage.name for stage in result.record.stages}

    result.save(tmp_path / "saved")
    again = latprune.restore(network, tmp_path / "saved")
    torch.testing.assert_close(again(X), model.eval()(X), rtol=0, atol=0)


@pytest.mark.parametrize(("budget", "count"), [("flops=45%", "macs"), ("params=60%", "parameters")])
def test_counted_budgets_are_met_exactly(budget, count):
    result = prune(network(), budget, measure_latency=False)
    share = getattr(result.record.pruned, count) / getattr(result.record.dense, count)
    limit = float(budget.split("=")[1].rstrip("%")) / 100
    assert 0.97 * limit <= share <= limit
    assert result.record.pruned.latency is None


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize("budget", ["flops=50%", "params=50%"])
def test_counted_budgets_hold_where_costs_are_a_linearisation(budget, stages):
    result = prune(network(), budget, method=latprune.SPLAMP(stages=stages), measure_latency=False)
    assert 0.47 <= result.record.budget_share / 2 <= 0.5


def test_widths_in_the_record_are_those_of_the_network():
    model = network()
    record = prune(model, "flops=30%", measure_latency=False).record
    dense = latprune.trace(network(), X)
    removed = set(record.blocks_removed)
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for group in record.groups:
        alive = [m for m in dense.groups[group.name].members if removed.isdisjoint(m.blocks) and m.tensor in shapes]
        if not alive:
            assert group.kept == 0
        for member in alive:
            assert shapes[member.tensor][member.dim] == group.kept * math.ceil(member.positions.size / group.dense)


def test_keep_and_minimum_widths_are_honoured():
    model = network()
    kept = prune(model, "flops=50%", measure_latency=False, keep=["layer1.*"], blocks_keep=["layer3.*"], min_widths={"layer2.1.conv1": 20})
    widths = {g.name: (g.kept, g.dense) for g in kept.record.groups}
    assert not any(name.startswith("layer1") for name in widths)
    assert not any(block.startswith("layer3") for block in kept.record.blocks_removed)
    assert widths["layer2.1.conv1"][0] == 0 or widths["layer2.1.conv1"][0] >= 20
    assert model.layer1[0].conv1.weight.shape == network().layer1[0].conv1.weight.shape


def test_a_budget_that_cannot_be_met_names_the_lowest_measured_latency(tables):
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(BudgetInfeasibleError, match="cannot be met.*measured at") as caught:
        prune(model, "1%", tables=tables)
    assert caught.value.floor["latency"] > caught.value.limit["latency"]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("budget", ["1000ms", "flops=1T"])
def test_a_budget_above_dense_is_refused(tables, budget):
    with pytest.raises(InvalidArgumentError, match="already meets it"):
        prune(network(), budget, tables=tables)


def test_nan_weights_are_refused_by_name():
    model = network()
    with torch.no_grad():
        model.layer2[0].conv1.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InvalidArgumentError, match=r"layer2\.0\.conv1\.weight.*NaN"):
        prune(model, "50%")


def test_tables_with_a_hole_are_refused(tables):
    victim = next(name for name in tables.kernels if name.endswith("layer2.1.conv1"))
    holed = json.loads(json.dumps(tables.to_dict()))
    holed["entries"] = [entry for entry in holed["entries"] if entry["name"] != victim]
    assert len(holed["entries"]) == len(tables.kernels) - 1
    with pytest.raises(TableError, match=victim.replace(".", r"\.")):
        prune(network(), "60%", tables=LatencyTables.from_dict(holed))


def test_taylor_needs_data_and_says_so():
    with pytest.raises(InvalidArgumentError, match="data"):
        latprune.prune(network(), X, budget="flops=50%", target=TARGET, method="mdp", measure_latency=False)


def test_gradients_of_the_users_own_loop_give_the_same_network():
    """Driving the pruner from a training loop must choose what prune() chooses from the same batches."""
    one, two = network(), network()
    options = {"budget": "flops=50%", "target": TARGET, "method": latprune.MDP(score=TaylorConfig()), "measure_latency": False}
    by_loop = latprune.Pruner(one, X, **options)
    assert by_loop.needs_gradients
    for inputs, labels in batches():
        one.zero_grad()
        torch.nn.functional.cross_entropy(one(inputs), labels).backward()
        by_loop.accumulate()
    first = by_loop.step()
    second = latprune.Pruner(two, X, **options).step(batches())
    assert first.widths == second.widths
    assert first.removed_blocks == second.removed_blocks
    torch.testing.assert_close(one(X), two(X))


def test_a_staged_run_goes_on_from_its_saved_state():
    method = latprune.SPLAMP(stages=3)
    options = {"budget": "flops=40%", "target": TARGET, "method": method, "measure_latency": False}
    straight = network()
    pruner = latprune.Pruner(straight, X, **options)
    while not pruner.done:
        pruner.step()

    interrupted = network()
    first = latprune.Pruner(interrupted, X, **options)
    first.step()
    state, weights = json.loads(json.dumps(first.state_dict())), copy.deepcopy(interrupted.state_dict())
    resumed = network()
    second = latprune.Pruner(resumed, X, **options)
    second.load_state_dict(state)
    resumed.load_state_dict(weights)
    assert second.stage == 1
    while not second.done:
        second.step()
    torch.testing.assert_close(resumed.eval()(X), straight.eval()(X), rtol=0, atol=0)
    assert [r.limit for r in second.reports] == [r.limit for r in pruner.reports]
    with pytest.raises(LatpruneError, match="stages are through"):
        second.step()


def test_a_state_of_another_run_is_refused():
    pruner = latprune.Pruner(network(), X, budget="flops=50%", target=TARGET, method=BY_MAGNITUDE, measure_latency=False)
    pruner.step()
    other = latprune.Pruner(network(), X, budget="flops=60%", target=TARGET, method=BY_MAGNITUDE, measure_latency=False)
    with pytest.raises(CheckpointError, match="budget"):
        other.load_state_dict(pruner.state_dict())


@pytest.mark.parametrize("method", [latprune.Uniform(), latprune.RandomChoice()])
def test_baselines_meet_the_budget_and_repeat_themselves(method):
    one, two = (prune(network(), "flops=50%", method=method, measure_latency=False) for _ in range(2))
    assert one.record.pruned.macs <= 0.5 * one.record.dense.macs
    assert [g.kept for g in one.record.groups] == [g.kept for g in two.record.groups]


def test_the_folder_of_a_finished_run_is_resumed_and_another_runs_folder_refused(tmp_path):
    calls = []

    def fit(model, context):
        calls.append(context.stage)
        return [(1.0, 0.5)]

    method = latprune.SPLAMP(stages=2)
    first = prune(network(), "flops=50%", measure_latency=False, method=method, fit=fit, folder=tmp_path)
    again = prune(network(), "flops=50%", measure_latency=False, method=method, fit=fit, folder=tmp_path)
    assert calls == [1, 2]
    assert [g.kept for g in first.record.groups] == [g.kept for g in again.record.groups]
    assert [a.accuracy for a in again.record.accuracies] == [0.5, 0.5]
    with pytest.raises(CheckpointError, match="another output folder"):
        prune(network(), "flops=60%", measure_latency=False, method=method, folder=tmp_path)


@pytest.mark.parametrize(
    ("options", "moments"),
    [
        ({}, ["dense", "pruned"]),
        ({"data": batches()}, ["dense", "recovered"]),
        ({"fit": lambda model, context: None}, ["dense", "fine-tuned"]),
        ({"method": latprune.SPLAMP(stages=2)}, ["dense", "pruned 2"]),
    ],
)
def test_a_finished_run_that_is_resumed_with_an_evaluation_has_the_accuracies_of_both_networks(tmp_path, options, moments):
    def parameters(model: torch.nn.Module) -> float:
        return sum(p.numel() for p in model.parameters()) / 1e6

    options = {"measure_latency": False, "folder": tmp_path, **options}
    first = prune(network(), "params=50%", **options)
    for _ in range(2):
        again = prune(network(), "params=50%", evaluate=parameters, **options)
        assert [entry.stage for entry in again.record.accuracies] == moments
        assert again.dense_accuracy == parameters(network()) > again.accuracy == parameters(first.model)
        assert latprune.load_result(tmp_path).record.pruned.accuracy == again.accuracy


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Options of a run that is through, its folder among them; the same ones go on with it."""
    options = {"measure_latency": False, "method": latprune.SPLAMP(stages=2), "folder": tmp_path_factory.mktemp("finished")}
    first, again = (prune(network(), "flops=50%", **options) for _ in range(2))
    assert [g.kept for g in first.record.groups] == [g.kept for g in again.record.groups]
    return options


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"recover": "fold"}, r"recovery .*this one 'fold' \(--recover\)"),
        ({"importance_batches": 3}, "importance batches 16, this one 3"),
        ({"fit": lambda model, context: None}, "trained by"),
        ({"schedule": latprune.Stages(stages=2, ramp="exponential")}, "schedule"),
        ({"solver": latprune.solve.GroupKnapsack(units=1000)}, "solver"),
    ],
)
def test_a_run_goes_on_only_under_all_that_decides_its_outcome(finished, changed, words):
    before = {path: path.read_bytes() for path in finished["folder"].rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=f"{words}.*another output folder"):
        prune(network(), "flops=50%", **{**finished, **changed})
    assert {path: path.read_bytes() for path in finished["folder"].rglob("*") if path.is_file()} == before


def test_a_run_goes_on_only_with_the_network_and_the_inputs_that_it_began_with(finished, tmp_path):
    options = {**finished, "folder": tmp_path / "run"}
    shutil.copytree(finished["folder"], options["folder"])
    other = network()
    with torch.no_grad():
        other.get_parameter("conv1.weight").add_(1.0)
    with pytest.raises(
        CheckpointError, match=r"dense weights of digest [0-9a-f]{12}\.\.\., this one [0-9a-f]{12}\.\.\.* .*another output folder"
    ):
        prune(other, "flops=50%", **options)
    larger = torch.randn(1, 1, 64, 64)
    with pytest.raises(CheckpointError, match=r"example inputs '1x1x32x32 float32', this one '1x1x64x64 float32' \(--input\)"):
        latprune.prune(network(), larger, budget="flops=50%", target=TARGET, **options)
    # Seconds of a solve and values of example inputs decide nothing that a state holds; a state of a release before tells no weights.
    latprune.prune(network(), torch.randn(X.shape), budget="flops=50%", target=TARGET, time_limit=90.0, **options)
    state = json.loads((options["folder"] / "state.json").read_text())
    del state["pruner"]["dense"]
    (options["folder"] / "state.json").write_text(json.dumps(state))
    prune(network(), "flops=50%", **options)


def test_kept_whole_model_is_refused():
    with pytest.raises(InvalidArgumentError, match="inspect"):
        prune(network(), "flops=50%", keep=["*"], measure_latency=False)


def test_tables_of_other_conditions_or_networks_are_refused(tables):
    with pytest.raises(InvalidArgumentError, match=r"hold for .*made-up.*target is .*openvino"):
        latprune.prune(network(), X, budget="60%", target=Target(engine="openvino"), method=BY_MAGNITUDE, tables=tables)
    narrow = digits_resnet(blocks=2, widths=(8, 32, 64)).eval()
    with pytest.raises(InvalidArgumentError, match=r"another network: their kernel 'conv1' has dense sizes \[1, 16\], .* \[1, 8\]"):
        prune(narrow, "60%", tables=tables)
    with pytest.raises(InvalidArgumentError, match="another network: their kernel .* does not exist"):
        prune(digits_resnet(blocks=1, widths=(16, 32, 64)).eval(), "60%", tables=tables)
    with pytest.raises(InvalidArgumentError, match="another network: .* input shapes"):
        latprune.prune(network(), torch.randn(1, 1, 48, 48), budget="60%", target=TARGET, method=BY_MAGNITUDE, tables=tables)


def test_tables_bring_their_target_and_may_vary_what_is_kept(tables):
    pruner = latprune.Pruner(network(), X, budget="60%", method=BY_MAGNITUDE, tables=tables, keep=["conv1"])
    assert pruner.target == TARGET and len(pruner.graph.groups) < len(tables.widths)
    report = pruner.step()
    pruner.close()
    assert report.measured is not None and report.measured.ratio <= 0.6 and "conv1" not in report.widths


@pytest.mark.parametrize("method", [BY_MAGNITUDE, latprune.SPLAMP(stages=2), latprune.Uniform()])
@pytest.mark.parametrize("measure", [True, False])
def test_tables_that_vary_what_is_kept_are_shown_in_the_record(tables, method, measure, tmp_path):
    kept = ["conv1", "layer1"]
    result = prune(network(), "70%", tables=tables, method=method, keep=kept, measure_latency=measure)
    shown = result.record.tables
    assert {name for name in tables.widths if name not in {group.name for group in result.record.groups}}
    assert shown is not None and all(stairs.kept is None or stairs.kept >= 1 for stairs in shown.staircases)
    result.report(tmp_path / "report.html")


def test_the_command_takes_tables_from_a_file(tables, tmp_path, capsys):
    path = tmp_path / "tables.json"
    path.write_text(json.dumps(tables.to_dict()))
    model = ["--model", "latprune.zoo:digits_resnet", "--model-arg", "blocks=2", "--model-arg", "widths=[16,32,64]", "--input", "1x1x32x32"]
    job = ["--budget", "60%", "--importance", "magnitude", "--tables", str(path), "--store", str(tmp_path / "none.sqlite")]
    assert main(["prune", *model, *job, "--engine", "made-up", "--quiet", "-o", str(tmp_path / "out")]) == 0
    assert "Budget met" in capsys.readouterr().out
    record = json.loads((tmp_path / "out" / "result" / "result.json").read_text())
    assert "tables" not in {stage["name"] for stage in record["stages"]}
    assert main(["prune", *model, *job, "--engine", "openvino", "-o", str(tmp_path / "other")]) == 2
    assert "tables hold for" in capsys.readouterr().err
    assert main(["prune", *model, *job, "--engine", "made-up", "--predict-only", "--quiet", "-o", str(tmp_path / "told")]) == 0
    assert "predicted, not measured" in capsys.readouterr().out


@pytest.fixture
def no_engine(monkeypatch):
    """A machine without the device: whatever asks for its engine fails."""

    def refuse(name):
        raise AssertionError("no engine is asked for")

    monkeypatch.setattr("latprune.latency.get_engine", refuse)
    monkeypatch.setattr("latprune.pruning.trials.get_engine", refuse)


@pytest.mark.parametrize("method", [BY_MAGNITUDE, latprune.SPLAMP(stages=2), latprune.Uniform()])
def test_a_device_that_is_not_at_hand_is_pruned_for_by_its_tables(tables, no_engine, tmp_path, method):
    model = network()
    result = prune(model, "60%", tables=tables, method=method, measure_latency=False)
    record = result.record
    assert result.latency_ms is None and record.budget_share is None and not record.corrections
    limit = 0.6 * tables.dense_ms
    assert record.budget.limit == pytest.approx(limit)
    assert tables.residual.room >= 1.0 and record.predicted_ms <= limit / tables.residual.room * (1 + 1e-9)
    kept = {group.name: group.kept for group in record.groups}
    assert tables.predict(kept, record.blocks_removed) == pytest.approx(record.predicted_ms)
    assert record.predicted_ms >= 0.9 * limit / tables.residual.room
    assert "predicted, not measured" in record.notes[-1]
    assert "not measured" in str(result) and "predicted" in str(result)
    result.save(tmp_path / "saved")
    result.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "Pruned for made-up" in page and "Measured on" not in page
    torch.testing.assert_close(latprune.restore(network, tmp_path / "saved")(X), model.eval()(X), rtol=0, atol=0)


def test_a_latency_budget_without_measuring_needs_tables_and_their_error(tables):
    with pytest.raises(InvalidArgumentError, match="give the tables of the device"):
        prune(network(), "60%", measure_latency=False)
    unchecked = dataclasses.replace(tables, residual=Residual.of([], []))
    with pytest.raises(InvalidArgumentError, match="not checked on any network"):
        prune(network(), "60%", tables=unchecked, measure_latency=False)
    with pytest.raises(BudgetInfeasibleError):
        prune(network(), "1%", tables=tables, measure_latency=False)


def test_a_pruned_network_predicted_on_one_machine_is_verified_on_the_device(tables, tmp_path):
    result = prune(network(), "60%", tables=tables, measure_latency=False)
    result.save(tmp_path / "saved")
    check = latprune.verify(tmp_path / "saved", network, tolerance=0.3)
    assert check.met and check.pruned.ratio < 0.7


def test_measurements_of_whole_networks_are_kept_in_the_default_store(monkeypatch, tmp_path):
    monkeypatch.setenv("LATPRUNE_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 24, 3), torch.nn.ReLU(), torch.nn.Conv2d(24, 48, 3), torch.nn.ReLU(), torch.nn.Conv2d(48, 8, 3)
    ).eval()
    x, method = torch.zeros(1, 3, 24, 24), latprune.SPLAMP(stages=1, contributions="whole-network")
    rules = latprune.WidthRules(multiple_of=8)
    counts = []
    for _ in range(2):
        result = latprune.prune(copy.deepcopy(model), x, budget="80%", target=TARGET, method=method, widths=rules)
        assert result.latency_ratio <= 0.8
        with Store() as store:
            assert store.path == tmp_path / "latency.sqlite"
            networks = store.networks()
        counts.append({tuple(sorted(network.widths.items())) for network in networks if not network.kernels})
        # No tables are made where whole networks are timed.
        assert not any(network.kernels for network in networks)
    # The second run reads what the first one timed (and times once more what a disturbed machine left open): no other network.
    assert counts[0] == counts[1] and len(counts[0]) == 7
    whole = [network.widths for network in networks if not network.kernels]
    assert all(sum(width != dense for width, dense in zip(widths.values(), (24, 48), strict=True)) == 1 for widths in whole)
