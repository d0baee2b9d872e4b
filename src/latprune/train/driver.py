"""What takes part in a training run beside model and optimizer: masks that are solved for while the network trains."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

__all__ = ["Driver", "DriverState", "ResumableDriver"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DriverState:
    """Where a driver stands between two steps, as a checkpoint keeps it.

    Attributes:
        data: A JSON object; empty where the driver has nothing to keep.
        tensors: What of it are tensors, by name.
    """

    data: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Driver(Protocol):
    """What is called around each optimizer step. One that has a state of its own is a :class:`ResumableDriver`."""

    def before_forward(self) -> None:
        """Called before a batch's forward pass."""

    def after_backward(self) -> None:
        """Called after its backward pass, before the optimizer's step."""


@runtime_checkable
class ResumableDriver(Driver, Protocol):
    """A driver whose state checkpoints keep, so that a resumed run goes on to the bit.

    A checkpoint is written between two steps: the model's state dict within :meth:`dense_values`, the optimizer's, and :meth:`state`. It is
    read into a driver that was made anew: the model's state dict within :meth:`dense_values`, the optimizer's, then :meth:`load_state`.
    """

    def dense_values(self) -> AbstractContextManager[None]:
        """For a while the parameters hold the values that are to be kept, not the masked ones."""

    def state(self) -> DriverState:
        """Where it stands."""

    def load_state(self, state: DriverState) -> None:
        """Take up a saved state.

        Raises:
            CheckpointError: It is that of another run: something that decides the outcome is not as it was.
        """
