"""Whatever interrupts a recovery, wherever: both networks are as they were."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.errors import SurgeryError
from latprune.graph import trace
from latprune.pruning import pruner
from latprune.recovery import Refit, recover
from latprune.surgery import prune
from recovery.nets import half, settled


class Counting(TorchDispatchMode):
    """Interrupts at an operation."""

    def __init__(self, at: int = 0) -> None:
        super().__init__()
        self.seen, self.at = 0, at

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        self.seen += 1
        if self.seen == self.at:
            raise KeyboardInterrupt
        return func(*args, **(kwargs or {}))


class Moving(nn.Module):
    """A buffer moves on with each run, in evaluation mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.b(torch.relu(self.n(self.a(x))))


@pytest.mark.parametrize("strategy", [Refit(rounds=1), "norms", "fold"], ids=["refit", "norms", "fold"])
def test_an_interruption_in_the_last_operations_leaves_both_networks_as_they_were(strategy: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    model = settled(Moving(), x)
    graph = trace(model, x[:2])
    model.n.train()
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))

    def run(net: nn.Module, at: int) -> int:
        with Counting(at) as counting:
            recover(net, model, [x], graph=graph, selection=half(graph), strategy=strategy)
        return counting.seen

    before = [value.clone() for net in (network, model) for value in net.state_dict().values()]
    modes = [module.training for net in (network, model) for module in net.modules()]
    total = run(copy.deepcopy(network), 0)
    for at in (31, total // 3, 2 * total // 3, *range(total - 10, total + 1)):
        with pytest.raises(KeyboardInterrupt):
            run(network, at)
        now = [value for net in (network, model) for value in net.state_dict().values()]
        assert all(map(torch.equal, now, before)), f"{at} of {total}"
        assert [module.training for net in (network, model) for module in net.modules()] == modes, f"{at} of {total}"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_not_accepted_is_put_back(error: type[BaseException]) -> None:
    torch.manual_seed(0)
    x = torch.randn(40, 4)
    model = settled(Moving(), x)
    graph = trace(model, x[:2])
    network = copy.deepcopy(model)
    prune(network, graph, half(graph))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    seen: list[bool] = []

    def refuse() -> None:
        seen.append(not torch.equal(network.b.weight, before["b.weight"]))
        raise error("no")

    def accept() -> None:
        seen.append(True)

    given: Callable[[], None]
    for given in (refuse, accept):
        try:
            recover(network, model, [x], graph=graph, selection=half(graph), accept=given)
        except error:
            assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert seen == [True, True] and not torch.equal(network.b.weight, before["b.weight"])


def test_weights_are_put_back_where_the_network_is_not_the_masked_one(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cut:
        """What :meth:`Pruner.recover` reads of a pruner."""

        _masks, edits, _progress, seed = None, ["a cut"], None, 0
        recover = pruner.Pruner.recover

    def refuse(checked: Any) -> None:
        raise SurgeryError("they differ")

    torch.manual_seed(0)
    x = torch.randn(40, 4)
    made: Any = Cut()
    made.dense_model = settled(Moving(), x)
    made.graph = trace(made.dense_model, x[:2])
    made.cut_to = half(made.graph)
    made.model = copy.deepcopy(made.dense_model)
    made.clock = pruner.Clock(None)
    prune(made.model, made.graph, made.cut_to)
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    monkeypatch.setattr(pruner, "check_present", refuse)
    with pytest.raises(SurgeryError, match="they differ"):
        made.recover([x], strategy="refit")
    assert all(torch.equal(value, before[name]) for name, value in made.model.state_dict().items())
