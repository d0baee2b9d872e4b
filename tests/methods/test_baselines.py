"""The baselines: shares that are even, walks that end just under the limit, structures with fresh weights."""

import pytest
import torch
from torch import nn

import latprune
from latprune.errors import BudgetInfeasibleError, InvalidArgumentError
from latprune.importance import L1Config, MagnitudeConfig, RandomConfig
from latprune.methods import HALP, MDP, SPLAMP, FromScratch, Method, SoftMasks, get_method
from latprune.methods.base import StageContext
from latprune.methods.from_scratch import reinitialise
from latprune.report import html_page
from latprune.resources import MultiplyAdds
from latprune.zoo import digits_resnet


@pytest.fixture(scope="module")
def context() -> StageContext:
    torch.manual_seed(0)
    graph = latprune.trace(digits_resnet(blocks=3, widths=(16, 32, 64)).eval(), torch.randn(1, 1, 32, 32))
    return StageContext(
        graph=graph,
        importance=None,
        resource=MultiplyAdds(graph),
        choices={name: tuple(range(4, group.columns + 1, 4)) for name, group in graph.groups.items()},
        widths=graph.dense_widths(),
    )


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_by_random_scores_a_block_takes_its_share_with_it(share: float) -> None:
    model, x = digits_resnet(blocks=3).eval(), torch.randn(1, 1, 16, 16)
    removable = [block for block in latprune.trace(model, x).blocks.values() if block.removable]
    result = latprune.prune(model, x, budget=f"flops={share:.0%}", method=MDP(score=RandomConfig()), measure_latency=False)
    assert 0.95 * share <= result.record.pruned.macs / result.record.dense.macs <= share
    assert len(result.record.blocks_removed) < len(removable)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.62, 0.9])
def test_uniform_keeps_one_share_everywhere_and_uses_the_limit_up(context, share):
    found = get_method("uniform").prepare(context).propose(share * context.current)
    assert 0.97 * share * context.current <= found.predicted <= share * context.current
    # One share explains every width, to less than a channel.
    groups = context.graph.groups
    assert max((found.widths[name] - 1) / group.columns for name, group in groups.items()) < min(
        (found.widths[name] + 1) / group.columns for name, group in groups.items()
    )
    assert len({found.widths[name] for name, group in groups.items() if group.columns == 64}) <= 2


@pytest.mark.parametrize("method", ["uniform", "random"])
def test_walks_end_under_the_limit_and_refuse_one_below_their_end(context, method):
    proposer = get_method(method).prepare(context)
    assert proposer.propose(0.5 * context.current).predicted <= 0.5 * context.current
    with pytest.raises(BudgetInfeasibleError) as caught:
        proposer.propose(1.0)
    assert caught.value.floor["flops"] > 1.0


X = torch.zeros(1, 1, 16, 16)
STRUCTURES = [
    MDP(score=MagnitudeConfig()),
    SPLAMP(stages=1),
    HALP(stages=1, score=MagnitudeConfig()),
    SPLAMP(stages=2),
    HALP(stages=2, score=MagnitudeConfig()),
]


def pruned(method: Method, *, seed: int = 0) -> latprune.Pruner:
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
    pruner = latprune.Pruner(model, X, budget="flops=50%", method=method, measure_latency=False, seed=seed)
    while not pruner.done:
        pruner.step()
    return pruner


@pytest.mark.parametrize("structure", STRUCTURES, ids=lambda method: f"{method.name}, {method.schedule.count} stages")
def test_from_scratch_takes_a_methods_network_and_none_of_its_weights(structure):
    own, fresh = pruned(structure), pruned(FromScratch(structure=structure))
    assert fresh.stages == structure.schedule.count and fresh.widths == own.widths
    assert fresh.selection.removed_blocks == own.selection.removed_blocks
    before, after = own.model.state_dict(), fresh.model.state_dict()
    assert after.keys() == before.keys()
    weights = [name for name, value in before.items() if value.dim() > 1]
    assert weights and not any(torch.allclose(after[name], before[name]) for name in weights)
    norms = [module for module in fresh.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(torch.all(norm.weight == 1) and torch.all(norm.running_mean == 0) for norm in norms)


@pytest.mark.parametrize("accuracy", [None, lambda model: 0.1])
def test_fresh_weights_that_nothing_trained_are_told(accuracy):
    def run(**options):
        x = torch.randn(1, 1, 32, 32)
        model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
        method = FromScratch(structure="uniform")
        return latprune.prune(model, x, budget="flops=60%", method=method, measure_latency=False, evaluate=accuracy, **options)

    told = run()
    assert [note for note in told.record.notes if note.startswith("the weights are fresh: they were drawn anew after the cut")]
    for shown in (str(told), html_page(told.record)):
        assert "ext: train the network (--epochs or --recipe with --data, fit=): its weights are fresh" in shown
    trained = run(fit=lambda model, context: None)
    assert not any("fresh" in note for note in trained.record.notes) and "fresh" not in str(trained)


class Layers(nn.Module):
    """One of each layer that draws its weights in its own way, with biases and statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 32, padding_idx=0)
        self.first, self.rms, self.slope = nn.Linear(32, 64), nn.RMSNorm(64), nn.PReLU(1)
        self.lstm = nn.LSTM(64, 48, batch_first=True)
        self.conv, self.bn = nn.Conv1d(48, 64, 3, groups=2), nn.BatchNorm1d(64)
        self.up, self.gn = nn.ConvTranspose1d(64, 48, 3), nn.GroupNorm(4, 48)
        self.ln, self.last = nn.LayerNorm(48), nn.Linear(48, 40)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.lstm(self.slope(self.rms(self.first(self.embed(x)))))[0].transpose(1, 2)
        x = self.gn(self.up(self.bn(self.conv(x)).relu()))
        return self.last(self.ln(x.transpose(1, 2)).mean(1))


def trained(model: nn.Module) -> nn.Module:
    """Parameters and statistics are far from what fresh ones are."""
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(3 + 2 * torch.randn(tensor.shape).abs() if tensor.is_floating_point() else torch.full_like(tensor, 7))
    return model.eval()


@pytest.mark.parametrize("form", ["class", "program"])
def test_fresh_weights_of_either_form_are_those_of_pytorchs_layers(form):
    torch.manual_seed(0)
    model = trained(Layers())
    if form == "program":
        model = latprune.capture(model, torch.randint(1, 50, (2, 9)))
    reinitialise(model, seed=1)
    torch.manual_seed(0)
    expected, found = Layers().state_dict(), model.state_dict()
    assert found.keys() == expected.keys()
    for name, like in expected.items():
        value, spread = found[name].float(), float(like.float().std(correction=0))
        if spread == 0.0:
            assert torch.equal(value, like.float()), name
        else:
            assert float(value.std(correction=0)) == pytest.approx(spread, rel=0.35), name
            assert abs(float(value.mean())) < 0.5 * spread and float(value.abs().max()) < 6 * spread, name
    assert not found["embed.weight"][0].any()


@pytest.mark.parametrize("form", ["class", "program"])
def test_nothing_of_the_dense_networks_statistics_is_left_after_the_cut(form):
    torch.manual_seed(0)
    model = trained(digits_resnet(blocks=1, widths=(8, 16, 16)))
    structure = FromScratch(structure="uniform")
    pruner = latprune.Pruner(model, X, budget="flops=50%", method=structure, measure_latency=False, form=form)
    while not pruner.done:
        pruner.step()
    state = pruner.model.state_dict()
    norms = [name.removesuffix(".running_mean") for name in state if name.endswith(".running_mean")]
    assert norms
    for norm in norms:
        for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1), ("num_batches_tracked", 0)):
            assert torch.all(state[f"{norm}.{part}"] == value), (norm, part)
    for name, value in state.items():
        if value.dim() > 1:
            bound = value[0].numel() ** -0.5
            assert 0.5 * bound < float(value.abs().max()) <= bound and float(value.std()) == pytest.approx(bound / 3**0.5, rel=0.3), name


def test_a_product_with_a_matrix_is_a_linear_layer_and_tied_weights_are_drawn_once():
    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.full((64, 32), 3.0)), nn.Parameter(torch.full((32,), 3.0))
            self.embed, self.head = nn.Embedding(20, 64), nn.Linear(32, 16)
            self.embed_too, self.tied = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
            self.tied.weight = self.embed_too.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tied(self.head(self.embed(x) @ self.weight + self.bias) + self.embed_too(x))

    program = latprune.capture(Products().eval(), torch.randint(0, 20, (2, 5)))
    reinitialise(program, seed=0)
    found = program.state_dict()
    for name in ("weight", "bias"):
        assert 0.1 < float(found[name].abs().max()) <= 64**-0.5
    assert program.tied.weight is program.embed_too.weight and float(found["tied.weight"].abs().max()) <= 16**-0.5


class Placed(nn.Module):
    """A parameter of its own beside its layers, and one that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.places, self.spare = nn.Parameter(torch.randn(1, 8)), nn.Parameter(torch.randn(4))
        self.linear, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.linear(x + self.places))


def test_what_no_layer_reads_is_refused_in_a_program_before_anything_changes_and_drawn_in_a_class():
    x = torch.randn(2, 8)
    options = {"budget": "flops=60%", "method": FromScratch(structure="uniform"), "measure_latency": False}
    with pytest.raises(InvalidArgumentError, match=r"^1 parameter.* no layer of PyTorch's \(first 'places'\).*form='class'"):
        latprune.Pruner(Placed().eval(), x, form="program", **options)
    latprune.Pruner(Placed().eval(), x, **options)
    program = latprune.capture(Placed().eval(), x)
    before = {name: value.clone() for name, value in program.state_dict().items()}
    with pytest.raises(InvalidArgumentError, match="first 'places'"):
        reinitialise(program, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in program.state_dict().items())


@pytest.mark.parametrize("form", ["class", "program"])
@pytest.mark.parametrize(
    "device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"))]
)
def test_every_generator_is_as_before(device, form, monkeypatch):
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
    model = (model if form == "class" else latprune.capture(model, X)).to(device)
    seeded: list[int] = []
    # It seeds every device's generator, also those that begin to be used later.
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state(), torch.cuda.get_rng_state_all() if device == "cuda" else []
    reinitialise(model, seed=3)
    first = {name: value.clone() for name, value in model.state_dict().items()}
    after = torch.get_rng_state(), torch.cuda.get_rng_state_all() if device == "cuda" else []
    assert not seeded and torch.equal(before[0], after[0]) and all(map(torch.equal, before[1], after[1]))
    reinitialise(model, seed=3)
    assert all(torch.equal(value, first[name]) for name, value in model.state_dict().items())


def test_the_seed_decides_the_fresh_weights_and_the_process_draws_on_as_before():
    method = FromScratch(structure="uniform")
    one, same, other = (pruned(method, seed=seed).model.state_dict() for seed in (0, 0, 1))
    weights = [name for name, value in one.items() if value.dim() > 1]
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in weights)
    model = digits_resnet(blocks=1, widths=(8, 16, 16))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    method.finish(model, seed=1)
    assert torch.equal(torch.rand(3), expected)


def test_stages_before_the_last_are_recovered_and_fresh_weights_are_not():
    torch.manual_seed(0)
    model = digits_resnet(blocks=1, widths=(8, 16, 16)).eval()
    told = []
    data = [(torch.randn(32, 1, 16, 16), torch.zeros(32, dtype=torch.int64))]
    result = latprune.prune(
        model,
        X,
        budget="flops=50%",
        method=FromScratch(structure=SPLAMP(stages=2)),
        data=data,
        fit=lambda network, context: told.append((context.stage, context.recovered)),
        measure_latency=False,
    )
    assert [stage for stage, _ in told] == [1, 2] and not told[1][1]
    assert result.record.recovery is None


def test_fresh_weights_that_would_never_train_are_refused():
    with pytest.raises(InvalidArgumentError, match="would then never train"):
        latprune.Pruner(digits_resnet(), X, budget="flops=50%", method=FromScratch(structure="uniform"), schedule=SoftMasks())


def test_from_scratch_needs_the_tables_that_its_structure_needs():
    assert FromScratch().needs_tables and not FromScratch(structure=SPLAMP(contributions="whole-network")).needs_tables


def test_from_scratch_takes_its_structures_options_as_plain_values():
    assert get_method("from_scratch", structure="halp", score="l1").importance == L1Config()
    made = get_method("from_scratch", structure={"name": "sp_lamp", "stages": 1, "score": "magnitude"})
    assert made.chooser == SPLAMP(stages=1, score=MagnitudeConfig())
    with pytest.raises(InvalidArgumentError, match="'random' has no option 'score'"):
        get_method("from_scratch", structure="random", score="l1")
    with pytest.raises(InvalidArgumentError, match="method .=None. must be a method's name"):
        get_method("from_scratch", structure={"stages": 1})
