"""The state of the process's random generators, to be put back or written down."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

__all__ = ["RandomState"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RandomState:
    """States of torch (CPU and every CUDA device), numpy's global generator and Python's ``random``."""

    torch_cpu: torch.Tensor
    torch_cuda: tuple[torch.Tensor, ...]
    numpy_keys: torch.Tensor
    numpy_rest: tuple[int, int, float]
    python_keys: torch.Tensor
    python_gauss: float | None

    @classmethod
    def capture(cls) -> RandomState:
        """The states as they are now."""
        cuda = bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]
        _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
        _, python_keys, python_gauss = random.getstate()
        return cls(
            torch_cpu=torch.get_rng_state(),
            torch_cuda=tuple(torch.cuda.get_rng_state_all()) if cuda else (),
            numpy_keys=torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            numpy_rest=(int(position), int(has_gauss), float(cached)),
            python_keys=torch.tensor(python_keys, dtype=torch.int64),
            python_gauss=python_gauss,
        )

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(list(self.torch_cuda)[: torch.cuda.device_count()])
        position, has_gauss, cached = self.numpy_rest
        np.random.set_state(("MT19937", self.numpy_keys.numpy().astype(np.uint32), position, has_gauss, cached))
        random.setstate((3, tuple(self.python_keys.tolist()), self.python_gauss))

    @staticmethod
    def seed(seed: int, *stream: int) -> None:
        """Seed all generators by ``seed`` and the numbers of a stream; different streams are independent."""
        words = np.random.SeedSequence((seed % 2**64, *stream)).generate_state(3, np.uint64)
        torch.manual_seed(int(words[0] >> np.uint64(1)))
        np.random.seed(int(words[1] % np.uint64(2**32)))
        random.seed(int(words[2]))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The part of the state that is tensors, by name."""
        named = {"torch": self.torch_cpu, "numpy": self.numpy_keys, "python": self.python_keys}
        return named | {f"cuda.{index}": state for index, state in enumerate(self.torch_cuda)}

    def scalars(self) -> dict[str, Any]:
        """The rest of the state, as a JSON object."""
        return {"numpy": list(self.numpy_rest), "python_gauss": self.python_gauss}

    @classmethod
    def load(cls, tensors: dict[str, torch.Tensor], scalars: dict[str, Any]) -> RandomState:
        """Put together what :meth:`tensors` and :meth:`scalars` gave."""
        position, has_gauss, cached = scalars["numpy"]
        cuda = sorted((name for name in tensors if name.startswith("cuda.")), key=lambda name: int(name.removeprefix("cuda.")))
        return cls(
            torch_cpu=tensors["torch"],
            torch_cuda=tuple(tensors[name] for name in cuda),
            numpy_keys=tensors["numpy"],
            numpy_rest=(int(position), int(has_gauss), float(cached)),
            python_keys=tensors["python"],
            python_gauss=scalars["python_gauss"],
        )
