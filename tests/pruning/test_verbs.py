"""The four verbs: what each changes, and what it leaves alone."""

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

import latprune
from latprune.errors import BudgetInfeasibleError, CheckpointError, InvalidArgumentError, LatpruneError, SurgeryError, UnfinishedRunError
from latprune.importance import DivergenceConfig, MagnitudeConfig, TaylorConfig, best_units
from latprune.methods import HALP, MDP, SMCP, SPLAMP, SoftMasks
from latprune.pruning import FitContext
from latprune.pruning.limits import Limits
from latprune.pruning.state import selection_to_dict
from latprune.recovery import ReconstructionConfig, reconstruction_ranking
from latprune.report.accuracies import compute_recovery
from latprune.zoo import digits_resnet

X = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(2))


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    model = digits_resnet(blocks=2, widths=(8, 16, 16))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def batches(count: int = 3, seed: int = 1) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(16, 1, 32, 32, generator=generator), torch.randint(0, 10, (16,), generator=generator)) for _ in range(count)]


def pruner_of(model, method, budget="flops=50%", *, example=X, **options):
    return latprune.Pruner(model, example, budget=budget, method=method, measure_latency=False, **options)


def same(model, state) -> bool:
    now = model.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[name], value) for name, value in state.items())


def test_proposing_changes_nothing_and_masking_is_taken_back():
    model = network()
    before = copy.deepcopy(model.state_dict())
    dense = model(X)
    pruner = pruner_of(model, MDP(score=MagnitudeConfig()))
    proposal = pruner.propose()
    assert same(model, before)
    assert pruner.graph.macs(proposal.proposal.widths, proposal.proposal.removed_blocks) <= 0.5 * pruner.limits.dense

    pruner.mask(proposal)
    masked = model(X)
    assert not torch.allclose(masked, dense)
    pruner.mask(None)
    assert same(model, before)

    report = pruner.cut(proposal)
    assert report.equal
    torch.testing.assert_close(model(X), masked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stages", [1, 2])
def test_a_model_that_was_laid_out_otherwise_since_it_was_traced_is_cut(stages):
    """Training channels last makes pooling and flattening other operations than were recorded."""
    torch.manual_seed(0)
    convolutions = (nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1))
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()
    pruner = pruner_of(model, SPLAMP(stages=stages))
    model.to(memory_format=torch.channels_last)
    while not pruner.done:
        pruner.step()
    assert pruner.graph.macs(pruner.widths, pruner.cut_to.removed_blocks) <= 0.5 * pruner.limits.dense


def test_the_mask_at_hand_is_what_cut_cuts():
    one, two = network(), network()
    first, second = (pruner_of(model, MDP(score=MagnitudeConfig())) for model in (one, two))
    first.mask(first.propose())
    first.cut()
    second.cut(second.propose())
    assert same(one, two.state_dict())


def test_stages_with_nothing_trained_in_between_are_compared_at_the_last(monkeypatch):
    from latprune.pruning import checking as verbs

    compared = []
    check_equal = verbs.check_equal
    monkeypatch.setattr(verbs, "check_equal", lambda *args, **options: compared.append(1) or check_equal(*args, **options))
    options = {"budget": "flops=50%", "method": SPLAMP(stages=3), "measure_latency": False}
    once = latprune.prune(network(), X, **options)
    assert len(compared) == 1 and once.record.equality is not None
    each = latprune.prune(network(), X, fit=lambda model, context: None, **options)
    assert len(compared) == 4
    assert same(once.model, each.model.state_dict())


def test_a_proposal_under_a_limit_of_ones_own():
    pruner = pruner_of(network(), MDP(score=MagnitudeConfig()))
    tight, loose = pruner.propose(0.3 * pruner.limits.dense), pruner.propose(0.8 * pruner.limits.dense)
    assert tight.predicted < 0.31 * pruner.limits.dense < 0.7 * pruner.limits.dense < loose.predicted


@pytest.mark.parametrize(
    ("method", "budget"),
    [(MDP(stages=4, score=TaylorConfig()), "flops=25%"), (MDP(stages=3, channels=False, score=MagnitudeConfig()), "flops=55%")],
)
def test_stages_nest_and_removed_blocks_stay_removed(method, budget):
    model = network()
    pruner = pruner_of(model, method, budget)
    widths, removed = [], []
    while not pruner.done:
        report = pruner.step(batches())
        widths.append(report.widths)
        removed.append(pruner.selection.removed_blocks)
        assert set(report.removed_blocks).isdisjoint(removed[-2] if len(removed) > 1 else ())
    assert all(a <= b for a, b in zip(removed, removed[1:], strict=False))
    gone = {block for name in pruner.graph.groups for m in pruner.graph.groups[name].members for block in m.blocks} & removed[-1]
    assert removed[-1] or method.channels, "blocks alone go here"
    for name, group in pruner.graph.groups.items():
        if any(set(m.blocks).isdisjoint(gone) for m in group.members):
            assert all(a[name] >= b[name] for a, b in zip(widths, widths[1:], strict=False))
    assert sum(p.numel() for p in model.parameters()) == pruner.graph.parameters(pruner.widths, removed[-1])


def test_cut_and_mask_between_stages_give_the_same_network_without_training():
    one, two = network(), network()
    for model, between in ((one, "cut"), (two, "mask")):
        pruner = pruner_of(model, SPLAMP(stages=3, between=between))
        while not pruner.done:
            pruner.step()
    assert [tuple(p.shape) for p in one.parameters()] == [tuple(p.shape) for p in two.parameters()]
    torch.testing.assert_close(one(X), two(X), rtol=1e-5, atol=1e-6)


def test_training_between_masked_stages_keeps_what_is_gone_at_zero_and_the_optimizer_goes_on():
    model = network()
    pruner = pruner_of(model, HALP(stages=3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    while not pruner.done:
        pruner.step(batches(), optimizers=optimizer)
        for images, labels in batches(2, seed=pruner.stage + 5):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
            optimizer.step()
        model.eval()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}
    assert all(optimizer.state[p]["momentum_buffer"].shape == p.shape for p in model.parameters() if p in optimizer.state)


def test_a_limit_that_soft_masks_cannot_reach_is_told_before_anything_is_masked(monkeypatch):
    """The ramp passes many limits on its way down; the last is tried as soon as there are scores. What is counted is refused before."""
    model = network()
    monkeypatch.setattr(Limits, "check_counted", lambda *args, **options: None)
    # Below what the widths alone come to: only without its blocks would the network meet it, and this method keeps them.
    pruner = pruner_of(model, SMCP(masks=SoftMasks(every=2, warmup=0.1)), budget="flops=0.5%")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    training = pruner.masked_training(steps=1000, optimizers=optimizer)
    with pytest.raises(BudgetInfeasibleError, match="must be at least") as refused:
        for images, labels in batches(3):
            training.before_forward()
            torch.nn.functional.cross_entropy(model(images), labels).backward()
            training.after_backward()
    assert refused.value.limit["flops"] == pytest.approx(pruner.limit) and training.step == 1 and pruner.masks is None


def test_recovery_changes_values_alone_and_is_checked():
    model = network()
    pruner = pruner_of(model, MDP(score=MagnitudeConfig()))
    with pytest.raises(LatpruneError, match="call step"):
        pruner.recover(batches())
    pruner.step()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    report = pruner.recover(batches(8))
    assert report.layers and {name: value.shape for name, value in model.state_dict().items()} == shapes


def test_recovery_is_on_where_there_is_data_and_is_said_and_kept():
    for options, strategy in (({"data": batches(1)}, "refit"), ({}, None)):
        said: list[str] = []
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
        )
        result = latprune.prune(
            model.eval(), X, budget="flops=50%", method="uniform", measure_latency=False, progress=said.append, **options
        )
        recovery = result.record.recovery
        assert (recovery["strategy"] if recovery is not None else None) == strategy
        assert any("recovering without training (refit)" in line for line in said) == (strategy is not None)


def test_result_saves_exports_and_reports_like_prunes(tmp_path):
    model = network()
    pruner = pruner_of(model, SPLAMP(stages=2))
    pruner.step()
    with pytest.raises(LatpruneError, match="1 of 2 stages"):
        pruner.result()
    pruner.step()
    result = pruner.result(name="mine")
    result.save(tmp_path / "saved")
    result.report(tmp_path / "report.html")
    torch.testing.assert_close(latprune.restore(network, tmp_path / "saved")(X), model(X), rtol=0, atol=0)
    assert result.record.model.name == "mine" and result.verdict == "under" and len(repr(result)) < 200
    assert len(repr(pruner.reports[0])) < 200


def trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for images, labels in batches(2, seed=5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), labels).backward()
        optimizer.step()
    model.eval()


def delivered(result: latprune.Result) -> dict:
    """What a record has of the network and of how it was found; seconds and moments are left out."""
    record = result.record.to_dict()
    found = {name: record[name] for name in ("budget", "pruned", "groups", "blocks_removed", "problem", "edits", "equality", "steps")}
    return found | {"verdicts": result.record.verdicts}


def test_a_cut_of_a_proposal_gives_the_result_that_prune_gives(tmp_path):
    model = network()
    pruner = pruner_of(model, MDP(score=MagnitudeConfig()))
    pruner.propose()
    proposal = pruner.propose()
    assert pruner.stage == 0 and not pruner.reports, "what is proposed counts for nothing"
    average = torch.optim.swa_utils.AveragedModel(model)
    assert pruner.cut(proposal, averages=average).equal
    assert pruner.done and [report.stage for report in pruner.reports] == [1]
    torch.testing.assert_close(average.module(X), model(X), rtol=0, atol=0)
    result = pruner.result()
    by_prune = latprune.prune(network(), X, budget="flops=50%", method=MDP(score=MagnitudeConfig()), measure_latency=False)
    assert delivered(result) == delivered(by_prune) and result.verdict == "under" and same(model, by_prune.model.state_dict())
    result.save(tmp_path / "saved")
    result.report(tmp_path / "report.html")
    torch.testing.assert_close(latprune.restore(network, tmp_path / "saved")(X), model(X), rtol=0, atol=0)
    with pytest.raises(LatpruneError, match="all 1 stages are through"):
        pruner.step()


@pytest.mark.parametrize("resumed", [False, True])
def test_a_proposal_that_trains_under_its_mask_and_is_cut_ends_its_stage(tmp_path, resumed):
    model = network()
    pruner = pruner_of(model, MDP(score=MagnitudeConfig()))
    pruner.mask(pruner.propose())
    if resumed:
        state, weights = json.loads(json.dumps(pruner.state_dict())), model.state_dict()
        model = network()
        pruner = pruner_of(model, MDP(score=MagnitudeConfig()))
        pruner.load_state_dict(state)
        model.load_state_dict(weights)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pruner.masks.attach(optimizer)
    trained(model, optimizer)
    with pytest.raises(LatpruneError, match=r"0 of 1 stages .* propose\(\) and cut\(\)"):
        pruner.result()
    masked = model(X)
    pruner.cut(optimizers=optimizer)
    torch.testing.assert_close(model(X), masked, rtol=1e-4, atol=1e-5)
    result = pruner.result()
    assert result.verdict == "under" and result.record.problem is not None and result.record.equality is not None
    result.save(tmp_path / "saved")
    torch.testing.assert_close(latprune.restore(network, tmp_path / "saved")(X), model(X), rtol=0, atol=0)
    again = pruner_of(network(), MDP(score=MagnitudeConfig()))
    again.load_state_dict(json.loads(json.dumps(pruner.state_dict())))
    assert again.done and again.result().record.groups == result.record.groups


def test_a_resumed_mask_that_leaves_nothing_out_ends_its_stage_too():
    first, second = (pruner_of(network(), MDP(score=MagnitudeConfig()), budget="flops=100%") for _ in range(2))
    first.mask(first.propose())
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.cut()
    assert second.done and second.result().record.pruned.macs == second.result().record.dense.macs


def test_stages_by_the_verbs_are_the_stages_of_step():
    by_verbs, by_steps = pruner_of(network(), SPLAMP(stages=3)), pruner_of(network(), SPLAMP(stages=3))
    for stage in (1, 2, 3):
        by_steps.step()
        by_verbs.cut(by_verbs.propose())
        mine, theirs = ({**pruner.reports[-1].to_dict(), "solution": None} for pruner in (by_verbs, by_steps))  # it has seconds
        assert by_verbs.stage == stage and mine == theirs
    assert delivered(by_verbs.result()) == delivered(by_steps.result())


def test_masks_after_a_cut_are_refused_in_words_and_the_stages_go_on_without():
    pruner = pruner_of(network(), SPLAMP(stages=2))
    pruner.mask(pruner.propose())
    pruner.cut()
    before = copy.deepcopy(pruner.model.state_dict())
    proposal = pruner.propose()
    with pytest.raises(SurgeryError, match=r"never cut.*stage 1 of 2.*cut\(propose\(\)\).*between=\"mask\""):
        pruner.mask(proposal)
    assert same(pruner.model, before) and pruner.masks is None
    with pytest.raises(LatpruneError, match=r"1 of 2.*mask\(\) in between only before the first cut"):
        pruner.result()
    pruner.cut(pruner.propose())
    assert pruner.done and pruner.result().verdict == "under"


def test_a_cut_counts_the_stages_whose_limits_it_was_proposed_under():
    pruner = pruner_of(network(), SPLAMP(stages=2))  # limits of 75 % and 50 %
    dense = pruner.limits.dense
    for share, stages in ((0.9, 0), (0.7, 1), (0.6, 1), (0.5, 2), (0.4, 2)):
        pruner.cut(pruner.propose(share * dense))
        assert pruner.stage == stages and pruner.done == (stages == 2)
    assert [(report.stage, report.limit / dense) for report in pruner.reports] == [(1, pytest.approx(0.6)), (2, pytest.approx(0.4))]
    mask = pruner_of(network(), SPLAMP(stages=2))
    mask.mask(pruner.selection)
    mask.cut()
    with pytest.raises(LatpruneError, match="nor does a cut to units of one's own"):
        mask.result()
    mask.cut(mask.propose(mask.limit))
    assert mask.done and mask.result().record.groups == pruner.result().record.groups


@pytest.mark.parametrize(
    ("budget", "stages", "reached"),
    [("flops=90%", 1, 0), ("flops=40%", 1, 1), ("flops=70%", 2, 1), ("flops=40%", 2, 1), ("params=40%", 2, 0)],
)
def test_a_proposal_of_another_pruner_counts_by_its_limit(budget, stages, reached):
    pruner = pruner_of(network(), SPLAMP(stages=stages))
    pruner.cut(pruner_of(network(), SPLAMP(stages=1), budget).propose())
    assert pruner.stage == reached and pruner.done == (reached == stages)


@pytest.mark.parametrize("limit", ["70%", "flops=70%", 0.7])
def test_a_limit_is_a_number_or_the_text_of_a_budget(limit):
    pruner = pruner_of(network(), SPLAMP(stages=1))
    dense = pruner.limits.dense
    proposal = pruner.propose(limit * dense if isinstance(limit, float) else limit)
    assert proposal.limit == pytest.approx(0.7 * dense)


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ("fast", "is not a budget"),
        ("8ms", r"limit \(='8ms'\) is on latency, and must be on flops"),
        ("flops=1T", "above the dense network"),
        (-1, r"limit \(=-1\) must be a positive number of multiply-adds"),
        (True, r"limit \(=True\) must be"),
        ([1], r"limit \(=\[1\]\) must be"),
    ],
)
def test_a_limit_of_another_kind_is_refused_in_words(limit, words):
    with pytest.raises(InvalidArgumentError, match=words):
        pruner_of(network(), SPLAMP(stages=1)).propose(limit)


def test_what_is_no_proposal_is_refused_in_words_and_nothing_is_cut():
    model = network()
    before = copy.deepcopy(model.state_dict())
    pruner = pruner_of(model, SPLAMP(stages=1))
    for given in ("x", {"a": 1}):
        with pytest.raises(InvalidArgumentError, match=r"proposal \(=.*must be what propose\(\) gave, or None"):
            pruner.cut(given)
        with pytest.raises(InvalidArgumentError, match=r"proposal \(=.*must be what propose\(\) gave, a latprune.Selection"):
            pruner.mask(given)
    with pytest.raises(InvalidArgumentError, match=r"mask\(\) first"):
        pruner.cut(pruner.selection)
    assert same(model, before)


def test_a_result_names_its_model_in_words_that_a_record_holds():
    pruner = pruner_of(network(), SPLAMP(stages=1))
    pruner.step()
    with pytest.raises(InvalidArgumentError, match="constructor .*such as 'latprune.zoo.digits:digits_resnet'"):
        pruner.result(constructor=digits_resnet)
    assert pruner.result(constructor="latprune.zoo:digits_resnet", arguments={"widths": (8, 16, 16)}).record.model.arguments


@pytest.mark.parametrize("inputs", [iter([X]), (x for x in [X]), X.numpy(), None, {1, 2}])
def test_inputs_that_cannot_be_given_twice_are_refused_in_words(inputs):
    with pytest.raises(InvalidArgumentError, match=r"example_inputs \(a \w+\) must be a tensor, a tuple or list"):
        pruner_of(network(), SPLAMP(stages=1), example=inputs)


@pytest.mark.parametrize(("examples", "budget", "said"), [(8, "flops=20M", True), (1, "flops=2.5M", False), (8, "flops=50%", False)])
def test_a_number_of_multiply_adds_is_that_of_the_example_batch_and_says_so(examples, budget, said):
    lines = []
    example = X.repeat(examples, 1, 1, 1)
    result = latprune.prune(
        network(), example, budget=budget, method=SPLAMP(stages=1), measure_latency=False, recover=False, progress=lines.append
    )
    told = [line for line in lines if f"multiply-adds of the whole batch of {examples} example inputs" in line]
    assert len(told) == said
    assert ("FLOPs (multiply-adds, batch of 8 example inputs)" in str(result)) == (examples == 8)


def test_a_result_has_the_recovery_since_the_last_cut_alone():
    pruner = pruner_of(network(), MDP(score=MagnitudeConfig()))
    pruner.step()
    assert pruner.result().record.recovery is None
    report = pruner.recover(batches())
    result = pruner.result()
    assert result.record.recovery == report.to_dict() and compute_recovery(result.record) is not None
    assert pruner.result(recovery={"strategy": "mine"}).record.recovery == {"strategy": "mine"}
    again = pruner_of(network(), MDP(score=MagnitudeConfig()))
    again.load_state_dict(json.loads(json.dumps(pruner.state_dict())))
    assert again.result().record.recovery == result.record.recovery
    pruner.cut(pruner.propose(0.4 * pruner.limits.dense))
    assert pruner.recovery is None and pruner.result().record.recovery is None


@pytest.mark.parametrize("between", ["cut", "mask"])
def test_a_saved_state_is_resumed_under_the_same_settings_only(between):
    method = SPLAMP(stages=3, between=between)
    first = pruner_of(network(), method)
    first.step()
    state = json.loads(json.dumps(first.state_dict()))
    for options, word in (({"seed": 1}, "seed"), ({"keep": ["conv1"]}, "keep"), ({"solver": "exact"}, "solver")):
        with pytest.raises(CheckpointError, match=word):
            pruner_of(network(), method, **options).load_state_dict(state)
    with pytest.raises(CheckpointError, match=r"has criterion 'sp_lamp', this one 'magnitude' \(--criterion\)"):
        pruner_of(network(), SPLAMP(stages=3, between=between, score=MagnitudeConfig())).load_state_dict(state)
    with pytest.raises(CheckpointError, match="version 1"):
        pruner_of(network(), method).load_state_dict({**state, "version": 1})
    second = pruner_of(network(), method)
    second.load_state_dict(state)
    second.model.load_state_dict(first.model.state_dict())
    while not first.done:
        first.step()
        second.step()
    assert same(first.model, second.model.state_dict())


def test_several_budgets_hold_together():
    model = network()
    dense = sum(p.numel() for p in model.parameters())
    result = latprune.prune(model, X, budget=["params=40%", "flops=60%"], method=MDP(score=MagnitudeConfig()), measure_latency=False)
    assert result.record.pruned.macs <= 0.6 * result.record.dense.macs
    assert sum(p.numel() for p in model.parameters()) <= 0.4 * dense
    record, (further,) = result.record, result.record.further_budgets
    assert (record.budget.resource, further.resource) == ("params", "flops")
    assert record.verdicts == {"params=40%": "under", "flops=60%": "under"} and result.verdict == "under"
    assert further.share == record.pruned.macs / further.limit <= 1.0 and further.uncertainty is None


@pytest.mark.parametrize("method", ["uniform", "lamp", "greedy", "sp_lamp"])
def test_several_budgets_hold_for_methods_without_a_joint_problem(method):
    model = network()
    dense = sum(p.numel() for p in model.parameters())
    result = latprune.prune(
        model, X, budget=["params=40%", "flops=60%"], method=method, data=batches(), recover=False, measure_latency=False
    )
    assert result.record.pruned.macs <= 0.6 * result.record.dense.macs and sum(p.numel() for p in model.parameters()) <= 0.4 * dense


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"budget": 1.5}, "must be a share"),
        ({"budget": []}, "list of budgets"),
        ({"budget": ["50%", "8ms"]}, "limits latency twice"),
        ({"target": 3}, "must be a latprune.Target"),
        ({"method": "mpd"}, "must be one of"),
        ({"within": "nowhere"}, "no module of the model"),
    ],
)
def test_arguments_that_break_their_rule_are_told_before_anything_runs(options, words):
    with pytest.raises(InvalidArgumentError, match=words):
        latprune.Pruner(network(), X, **{"budget": "flops=50%", **options})


def test_width_rules_and_within_hold_for_every_method():
    for method in (MDP(score=MagnitudeConfig()), latprune.Uniform(), latprune.Lamp(), SPLAMP(stages=2)):
        model = network()
        rules = latprune.WidthRules(multiple_of=4)
        result = latprune.prune(
            model, X, budget="flops=80%", method=method, widths=rules, within="layer2", measure_latency=False, recover=False
        )
        groups = {group.name: group for group in result.record.groups}
        assert groups and all(name.startswith("layer2") for name in groups)
        assert all(group.kept % 4 == 0 for group in groups.values())


def test_a_fit_under_masks_must_hand_its_optimizer_over():
    def careless(model: torch.nn.Module, context: FitContext) -> None:
        assert context.masked

    with pytest.raises(UnfinishedRunError, match="context.attach"):
        latprune.prune(
            network(), X, budget="flops=50%", method=SPLAMP(stages=2, between="mask"), fit=careless, recover=False, measure_latency=False
        )


def test_scores_of_a_loop_are_those_of_the_same_batches():
    by_loop, by_data = pruner_of(network(), MDP(score=TaylorConfig())), pruner_of(network(), MDP(score=TaylorConfig()))
    for images, labels in batches():
        by_loop.model.zero_grad()
        torch.nn.functional.cross_entropy(by_loop.model(images), labels).backward()
        by_loop.accumulate()
    first, second = by_loop.propose(), by_data.propose(data=batches())
    assert first.proposal.widths == second.proposal.widths
    for name, kept in first.selection.kept.items():
        np.testing.assert_array_equal(kept, second.selection.kept[name])


def test_a_pick_among_near_optimal_answers_takes_the_most_accurate():
    def accuracy(net: torch.nn.Module) -> float:
        # Stands in for a test set: the fewer parameters, the better.
        return 1.0 / (1.0 + sum(p.numel() for p in net.parameters()) / 1e4)

    options = {"budget": "flops=50%", "method": MDP(score=MagnitudeConfig()), "data": batches(), "recover": False, "measure_latency": False}
    plain, picked = network(), network()
    latprune.prune(plain, X, evaluate=accuracy, **options)
    result = latprune.prune(picked, X, evaluate=accuracy, candidates=6, **options)
    assert result.record.pruned.macs <= 0.5 * result.record.dense.macs
    assert sum(p.numel() for p in picked.parameters()) <= sum(p.numel() for p in plain.parameters())
    with pytest.raises(InvalidArgumentError, match="needs data= and evaluate="):
        latprune.prune(network(), X, candidates=6, **options)
    with pytest.raises(InvalidArgumentError, match="solves no problem"):
        latprune.prune(network(), X, evaluate=accuracy, candidates=6, **{**options, "method": "uniform"})


def test_units_by_reconstruction_keep_the_widths():
    options = {"budget": "flops=50%", "data": batches(), "recover": False, "measure_latency": False}
    by_score = latprune.prune(network(), X, method=MDP(score=MagnitudeConfig()), **options)
    by_reconstruction = latprune.prune(network(), X, method=MDP(score=MagnitudeConfig()), units="reconstruction", **options)
    assert [g.kept for g in by_score.record.groups] == [g.kept for g in by_reconstruction.record.groups]
    mine, theirs = by_score.model.state_dict(), by_reconstruction.model.state_dict()
    assert any(not torch.equal(mine[name], theirs[name]) for name in mine)
    with pytest.raises(InvalidArgumentError, match="one stage"):
        latprune.prune(network(), X, method=SPLAMP(stages=2), units="reconstruction", **options)


@pytest.mark.parametrize(
    "method",
    [
        MDP(score=ReconstructionConfig()),
        MDP(score=DivergenceConfig(rank=ReconstructionConfig(), examples=16, priors=(), rivals=())),
        latprune.Lamp(score=ReconstructionConfig()),
    ],
    ids=["mdp", "divergence", "lamp"],
)
def test_reconstruction_ranks_for_any_method(method):
    pruner = pruner_of(network(), method, "flops=60%", recover=False)
    found = pruner.propose(data=batches()).selection
    ranking = reconstruction_ranking(pruner.dense_model, pruner.graph, batches(), seed=0)
    # A channel of a stream ranks by what is left of its score without the removed blocks.
    homes = {name: {member.blocks for member in pruner.graph.groups[name].members} for name in found.kept}
    inside = [name for name, blocks in homes.items() if all(found.removed_blocks.isdisjoint(b) and b for b in blocks)]
    assert inside
    for name in inside:
        np.testing.assert_array_equal(found.kept[name], best_units(pruner.graph.groups[name], ranking[name], found.kept[name].size))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def trained_under_masks(pruner, steps=24, *, ends_after=None, optimizer=None):
    optimizer = optimizer if optimizer is not None else sgd(pruner.model)
    training = pruner.masked_training(steps=steps, optimizers=optimizer)
    for images, labels in batches(ends_after or steps, seed=7):
        training.before_forward()
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(pruner.model.train()(images), labels).backward()
        training.after_backward()
        optimizer.step()
    pruner.model.eval()
    return training


def test_a_mask_with_blocks_keeps_its_problem():
    pruner = pruner_of(network(), MDP(channels=False, soft_masks=SoftMasks(every=2)), budget="flops=70%")
    trained_under_masks(pruner)
    blocks = pruner.selection.removed_blocks
    report = pruner.step()
    assert blocks and pruner.selection.removed_blocks == blocks == set(report.removed_blocks)
    assert report.problem is not None and report.solution is not None


def test_under_soft_masks_a_proposal_is_searched_for_and_only_the_cut_takes_the_mask():
    pruner = pruner_of(network(), SMCP(masks=SoftMasks(every=2)))
    trained_under_masks(pruner)
    pruner.mask(pruner.propose(0.8 * pruner.limits.dense))
    wider = pruner.propose()
    assert selection_to_dict(wider.selection) != selection_to_dict(pruner.selection)
    assert pruner.graph.macs(wider.proposal.widths, ()) <= pruner.limit


def test_a_mask_over_another_limit_is_narrowed_by_the_cut():
    model = network()
    pruner = latprune.Pruner(model, X, budget=["flops=60%", "params=20%"], method=SMCP(masks=SoftMasks(every=2)), measure_latency=False)
    one = latprune.Pruner(network(), X, budget="flops=60%", method=SMCP(masks=SoftMasks(every=2)), measure_latency=False)
    for images, labels in batches(2):
        for each in (pruner, one):
            each.model.zero_grad()
            torch.nn.functional.cross_entropy(each.model(images), labels).backward()
            each.accumulate()
    pruner.mask(one.propose().selection)
    parameters = sum(p.numel() for p in network().parameters())
    assert pruner.graph.parameters(pruner.widths, ()) > 0.2 * parameters
    pruner.step()
    assert sum(p.numel() for p in model.parameters()) <= 0.2 * parameters
