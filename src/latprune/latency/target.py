"""The target: the engine that will run the network, and the conditions it will run under."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from latprune.argument_rules import check_instance, check_one_of, check_whole
from latprune.errors import InvalidArgumentError

__all__ = ["PRECISIONS", "Target"]

PRECISIONS = ("fp32", "tf32", "bf16", "fp16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Engine, device and conditions of every measurement; recorded in every table and result.

    Attributes:
        engine: Registered name of the engine: ``openvino``, ``onnxruntime``, ``executorch``, ``torch``, ``torch_compile``.
        device: The one device that runs all of the network, in the engine's words: ``cpu``, ``cuda:0``, ``GPU.0``, an execution provider.
        threads: Threads that one inference may use; pinned.
        batch: Batch size; the example inputs' first dimension is brought to it.
        precision: What the engine computes in: ``fp32``, ``bf16``, ``fp16``, or ``tf32`` (fp32 tensors, multiplied in TF32; CUDA only).
            A device that would compute in another one is refused.
    """

    engine: str = "openvino"
    device: str = "cpu"
    threads: int = 1
    batch: int = 1
    precision: str = "fp32"

    def __post_init__(self) -> None:
        for name in ("engine", "device"):
            check_instance(name, getattr(self, name), str, "a name")
        for name in ("threads", "batch"):
            check_whole(name, getattr(self, name), least=1)
        check_one_of("precision", self.precision, PRECISIONS)

    @classmethod
    def of(cls, target: Target | str) -> Target:
        """``target``, or the target of that engine with default conditions.

        Raises:
            InvalidArgumentError: It is neither a target nor a name.

        Example:
            >>> Target.of("onnxruntime").threads
            1
        """
        if isinstance(target, Target):
            return target
        if isinstance(target, str):
            return cls(engine=target)
        raise InvalidArgumentError(f"target (={target!r}) must be a latprune.Target or the name of an engine, such as 'openvino'")

    def to_dict(self) -> dict[str, Any]:
        """The target as a JSON object."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people: ``openvino on cpu, 1 thread, batch 1, fp32``."""
        return f"{self.engine} on {self.device}, {self.threads} thread{'s' * (self.threads > 1)}, batch {self.batch}, {self.precision}"
