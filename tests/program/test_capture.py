"""Capturing: what a program computes, how it trains, and what is refused in words."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import latprune
from latprune.errors import CaptureError, InvalidArgumentError, SurgeryError
from latprune.graph import Selection, trace
from latprune.program import ProgramModule, capture
from latprune.surgery import prune
from support.programs import ConvNet, SeveralInputs


def test_the_state_keeps_its_keys_and_the_model_is_left_alone() -> None:
    model = ConvNet().train()
    before = copy.deepcopy(model.state_dict())
    program = capture(model, torch.randn(2, 3, 6, 6))
    assert model.training and program.training
    assert set(program.state_dict()) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    program.load_state_dict(before)
    program.get_submodule("stem.0").weight.data.zero_()
    assert bool(model.stem[0].weight.any())


def test_tied_parameters_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
            self.out.weight = self.words.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.tanh(self.words(ids)))

    program = capture(Tied(), torch.randint(0, 7, (2, 3)))
    assert program.out.weight is program.words.weight
    assert copy.deepcopy(program).out.weight is not program.out.weight


def test_batch_norms_train() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    model.dropout.p = 0.0
    x = torch.randn(4, 3, 6, 6)
    program = capture(model, x).train()
    model.train()
    torch.testing.assert_close(program(x), model(x))
    theirs = model.state_dict()
    for name, value in program.state_dict().items():
        torch.testing.assert_close(value, theirs[name])
    program.stem.eval()
    mean = program.get_submodule("stem.1").running_mean.clone()
    program(x)
    assert torch.equal(program.get_submodule("stem.1").running_mean, mean), "a part in evaluation mode keeps its statistics"


def test_dropout_is_there_in_training_only() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 6, 6))
    program.eval()
    for scope in (program.stem, program.branch, program.norm):
        scope.eval()
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(program(x), program(x))
    program.dropout.train()
    assert not torch.equal(program(x), program(x))


def test_a_pruned_program_learns() -> None:
    torch.manual_seed(0)
    x, labels = torch.randn(32, 3, 6, 6), torch.randint(0, 3, (32,))
    program = capture(ConvNet(), x)
    graph = trace(program, x)
    kept = {n: torch.arange(0, g.units, 2).numpy() for n, g in graph.groups.items()}
    prune(program, graph, latprune.graph.Selection(kept=kept))
    program.train()
    optimizer = torch.optim.Adam(program.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(program(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert int(program.get_submodule("stem.1").num_batches_tracked) == 30


def test_inputs_and_outputs_keep_their_structure() -> None:
    model = SeveralInputs().eval()
    inputs = {"x": torch.randn(2, 5), "others": [torch.randn(2, 6), torch.randn(2, 6)], "double": True}
    program = capture(model, inputs).eval()
    out = program(**inputs)
    assert list(out) == ["logits", "others", "name"] and out["name"] == "both"
    assert torch.equal(out["others"][1][0], inputs["x"])
    with pytest.raises(InvalidArgumentError, match="keyword arguments\\['double'\\] .*False.* was True in the captured run"):
        program(**{**inputs, "double": False})
    with pytest.raises(InvalidArgumentError, match="must be \\['double', 'others', 'x'\\]"):
        program(x=inputs["x"])


def test_other_image_sizes_are_refused_in_words() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 6, 6))
    with pytest.raises(InvalidArgumentError, match=r"input 'x' has shape \(2, 3, 7, 6\); .* captured with \(batch, 3, 6, 6\)"):
        program(torch.randn(2, 3, 7, 6))


def test_a_program_follows_its_type_and_device() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x + torch.arange(4, dtype=torch.float32) + torch.tensor([0.5, 1.0, 2.0, 3.0]))

    model = Positions().eval()
    x = torch.randn(2, 4)
    program = capture(model, x).double()
    assert program(x.double()).dtype == torch.float64
    torch.testing.assert_close(program(x.double()), model(x).double(), rtol=1e-5, atol=1e-5)


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Selecting(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[x > 0].sum()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x * self.calls


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand(x.shape)


class Outside(nn.Module):
    """The course depends on values that are read without PyTorch's knowledge."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.numpy()[0, 0] == 7.0 else x * 3


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (Branching(), "reads a value that depends on the inputs .*form='class'"),
        (Selecting(), "size of a tensor depends on the values"),
        (Counting(), "writes into 'calls'"),
        (Noisy(), "operator 'aten.rand.default' in '' is not one that a captured program may hold"),
    ],
)
def test_what_has_no_place_in_a_program_is_refused(model: nn.Module, words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        capture(model, torch.randn(3, 4))


def test_a_course_that_values_decide_is_found_by_comparing() -> None:
    x = torch.randn(3, 4)
    x[0, 0] = 7.0
    with pytest.raises(CaptureError, match="does not compute what the model computes"):
        capture(Outside(), x)


def test_a_batch_size_that_cannot_follow_is_said() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            for row in x.unbind(0):
                y = y + row
            return y

    program = capture(Fixed(), torch.randn(2, 4))
    assert "batch size" in program.program.batch_reason
    with pytest.raises(InvalidArgumentError, match="captured with \\(2, 4\\) and runs at those sizes only \\(it follows the batch size"):
        program(torch.randn(3, 4))


class Written(nn.Module):
    """Writes: into a result that is read later, into a part of a tensor, over a whole one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        z = y.view(-1, 2, 3)
        y.relu_()
        out = torch.zeros(y.shape[0], 2, 3)
        out[:, :1] = z[:, 1:]
        out[:, 1] += z.sum(1)
        w = torch.empty_like(out)
        w.copy_(out)
        return w.mul_(2) + out


def test_writes_arrive() -> None:
    model = Written().eval()
    x = torch.randn(3, 4)
    program = capture(model, x)
    for batch in (1, 3, 5):
        x = torch.randn(batch, 4)
        torch.testing.assert_close(program(x), model(x))


def test_arguments_are_checked() -> None:
    model, x = ConvNet(), torch.randn(2, 3, 6, 6)
    with pytest.raises(InvalidArgumentError, match="form \\(='graph'\\) must be one of class, program"):
        trace(model, x, form="graph")
    with pytest.raises(InvalidArgumentError, match="within \\(='branch'\\) needs form='class'"):
        trace(model, x, form="program", within="branch")
    graph = trace(model, x, form="program")
    with pytest.raises(SurgeryError, match="prune graph.program"):
        prune(model, graph, Selection(kept={}))


def test_code_reads_like_a_listing() -> None:
    program = capture(ConvNet(), torch.randn(2, 3, 6, 6))
    lines = program.code.splitlines()
    assert lines[0] == "v0 = input 'x'  # (batch, 3, 6, 6) float32"
    assert lines[1] == "v1 = conv2d(v0, stem.0.weight, stem.0.bias, [1, 1], [1, 1], [1, 1], 1)  # stem.0"
    assert lines[-1].startswith("return v")
    assert "Conv2d" in str(program)


def test_a_program_is_copied_and_pickled() -> None:
    x = torch.randn(2, 3, 6, 6)
    program = capture(ConvNet(), x).eval()
    expected = program(x)
    for other in (copy.deepcopy(program), pickle.loads(pickle.dumps(program))):
        other.stem.requires_grad_(False).get_submodule("0").weight.zero_()
        assert not torch.equal(other(x), expected)
    assert torch.equal(program(x), expected)


def test_keep_names_modules_of_the_model() -> None:
    program: Any = capture(ConvNet(), torch.randn(2, 3, 6, 6))
    assert isinstance(program, ProgramModule)
    graph = trace(program, torch.randn(2, 3, 6, 6), keep=["branch.1"], min_widths={"stem*": 2})
    assert [(g.columns, g.min_width) for g in graph.groups.values()] == [(8, 2)]


def test_batch_norms_are_recalibrated() -> None:
    from latprune.train import recalibrate_batch_norm

    torch.manual_seed(0)
    model = ConvNet()
    batches = [(torch.randn(4, 3, 6, 6), torch.zeros(4)) for _ in range(3)]
    program = capture(model, batches[0][0])
    assert recalibrate_batch_norm(program, batches) == recalibrate_batch_norm(model, batches) == 3
    theirs = model.state_dict()
    for name, value in program.state_dict().items():
        torch.testing.assert_close(value, theirs[name])


def test_operators_of_other_libraries_need_a_rule() -> None:
    from latprune.graph import register_rule

    @torch.library.custom_op("latprune_tests::doubled", mutates_args=())
    def doubled(x: Tensor) -> Tensor:
        return x * 2

    class Doubling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(doubled(self.a(x)))

    model, x = Doubling().eval(), torch.randn(3, 4)
    with pytest.raises(CaptureError, match="operator 'latprune_tests.doubled.default' in '' is not one"):
        capture(model, x)
    register_rule("latprune_tests::doubled")(lambda step: step.elementwise())
    program = capture(model, x).eval()
    torch.testing.assert_close(program(x), model(x))
    assert [g.columns for g in trace(program, x).groups.values()] == [6]


def test_a_program_is_exported_and_compiled() -> None:
    x = torch.randn(2, 3, 6, 6)
    program = capture(ConvNet(), x).eval()
    exported = torch.export.export(program, (x,)).module()
    torch.testing.assert_close(exported(x), program(x))
    torch.testing.assert_close(torch.compile(program, backend="eager")(x), program(x))


def test_fields_of_an_answer_that_were_never_set_are_left_out() -> None:
    @dataclasses.dataclass
    class Answer:
        scores: Tensor
        late: Tensor = dataclasses.field(init=False)

    class Answering(nn.Linear):
        def forward(self, x: Tensor) -> Answer:  # type: ignore[override]
            return Answer(super().forward(x))

    model, x = Answering(4, 2), torch.randn(3, 4)
    assert torch.equal(capture(model, x)(x)["scores"], model(x).scores)
