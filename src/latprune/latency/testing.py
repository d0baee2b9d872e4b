"""The contract test of an engine adapter: subclass it, name the engine, and run it with pytest.

Example:
    >>> class TestMyEngine(EngineContract):
    ...     engine_name = "my-engine"
"""

from __future__ import annotations

import copy
from typing import ClassVar

import numpy as np
import torch
from torch import nn

from latprune.errors import EngineError, InvalidArgumentError
from latprune.latency.engines import CompiledNetwork, Engine, get_engine
from latprune.latency.engines.torch_network import flatten_outputs
from latprune.latency.measuring.module_timers import Profiler
from latprune.latency.target import Target

__all__ = ["EngineContract", "contract_network"]


class _ContractNetwork(nn.Module):
    """Two residual convolutions with norms, pooling and a linear layer: what every engine has to fuse, name and time."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.body = nn.ModuleDict({"first": nn.Conv2d(32, 32, 3, padding=1), "second": nn.Conv2d(32, 32, 3, padding=1)})
        self.norm = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stem = self.stem(x)
        branch = self.norm(self.body["second"](torch.relu(self.body["first"](stem))))
        features = torch.relu(stem + branch).mean(dim=(2, 3))
        return self.head(features), features


def contract_network(seed: int = 0) -> tuple[nn.Module, torch.Tensor]:
    """The network of the contract test with random norms, in train mode, and its input of batch 2."""
    generator = torch.Generator().manual_seed(seed)
    network = _ContractNetwork()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + 0.02)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return network, torch.randn(2, 3, 32, 32, generator=generator)


class EngineContract:
    """Checks of the ``Engine`` contract. Every test compiles a small residual network on one thread."""

    engine_name: ClassVar[str]
    """Name in the registry."""
    device: ClassVar[str] = "cpu"
    """Device to test on."""
    tolerance: ClassVar[float] = 1e-4
    """Largest difference from PyTorch's outputs, relative to their largest value."""

    @property
    def engine(self) -> Engine:
        """The adapter under test."""
        return get_engine(self.engine_name)

    def target(self, batch: int = 1) -> Target:
        """Conditions of the tests."""
        return Target(engine=self.engine_name, device=self.device, threads=1, batch=batch)

    def compiled(self, *, batch: int = 1, profile: bool = False) -> CompiledNetwork:
        """The contract network on the engine."""
        network, inputs = contract_network()
        return self.engine.compile(network, inputs, self.target(batch), profile=profile)

    def test_states_what_it_is(self) -> None:
        """Name, version, fusion and pinned conditions are given in words."""
        stated = self.engine.describe()
        assert stated["name"] == self.engine_name
        assert stated["version"] and stated["fuses"] and stated["pins"]

    def test_takes_its_own_target(self) -> None:
        """What ``compile`` runs, ``check`` does not refuse."""
        self.engine.check(self.target())

    def test_outputs_equal_the_module(self) -> None:
        """All outputs are PyTorch's, at the batch asked for, and the module stays as it was."""
        network, inputs = contract_network()
        before = copy.deepcopy(network.state_dict())
        for batch in (1, 2, 3):
            with self.engine.compile(network, inputs, self.target(batch)) as compiled:
                outputs = compiled.outputs()
            rows = inputs.repeat(2, 1, 1, 1)[:batch]
            with torch.no_grad():
                expected = flatten_outputs(copy.deepcopy(network).eval()(rows))
            assert len(outputs) == len(expected)
            for output, wanted in zip(outputs, expected, strict=True):
                assert output.shape == wanted.shape
                assert float(np.abs(output - wanted).max()) <= self.tolerance * float(np.abs(wanted).max())
        assert network.training
        assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())

    def test_times_are_positive_and_repeat(self) -> None:
        """A run takes time, in milliseconds, and the network can be run again and again."""
        with self.compiled() as compiled:
            times = [compiled.timed_run() for _ in range(20)]
        assert all(0.0 < time < 1000.0 for time in times)

    def test_profile_names_every_contraction(self) -> None:
        """Each convolution and linear layer is in the profile under its own path, and the profile adds up to about the whole.

        The profile is the one that tables are made from: the modules' times where the engine has none of its own.
        """
        network, inputs = contract_network()
        with Profiler(self.engine, self.target()).compile(network, inputs) as compiled:
            entries = compiled.profile(20)
            whole = float(np.median([compiled.timed_run() for _ in range(20)]))
        paths = {entry.path for entry in entries}
        assert {"stem.0", "body.first", "body.second", "head"} <= paths
        assert len({entry.name for entry in entries}) == len(entries)
        assert [entry.order for entry in entries] == sorted(entry.order for entry in entries)
        assert all(entry.ms >= 0.0 for entry in entries)
        # Loose on purpose: other processes may run meanwhile, and small kernels are timed coarsely.
        assert 0.1 * whole < sum(entry.ms for entry in entries) < 10.0 * whole

    def test_refuses_a_profile_that_was_not_asked_for(self) -> None:
        """Without ``profile=True`` there is no profile, and the engine says so."""
        with self.compiled() as compiled:
            try:
                compiled.profile(3)
            except EngineError:
                return
        raise AssertionError("profile() of a network compiled without profile=True must raise EngineError")

    def test_an_engine_without_a_profile_does_not_compile_for_one(self) -> None:
        """What ``profile`` would refuse later is refused at once."""
        if self.engine.profiles_kernels:
            return
        try:
            self.compiled(profile=True).close()
        except EngineError as error:
            assert "profile" in str(error)
            return
        raise AssertionError("compile(..., profile=True) of an engine whose profiles_kernels is False must raise EngineError")

    def test_refuses_an_unknown_device(self) -> None:
        """A device that does not exist is refused with its name."""
        network, inputs = contract_network()
        target = Target(engine=self.engine_name, device="no-such-device", threads=1, batch=1)
        try:
            self.engine.compile(network, inputs, target).close()
        except (EngineError, InvalidArgumentError) as error:
            assert "no-such-device" in str(error).lower()
            return
        raise AssertionError("an unknown device must raise EngineError")

    def test_closed_networks_do_not_run(self) -> None:
        """``close`` may be called twice; afterwards a run is refused."""
        compiled = self.compiled()
        compiled.run()
        compiled.close()
        compiled.close()
        try:
            compiled.run()
        except EngineError:
            return
        raise AssertionError("a closed network must raise EngineError")
