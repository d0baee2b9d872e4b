"""A captured program as a module: it runs the recorded steps on parameters that keep their names, without the class that they came from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from latprune.errors import CaptureError, InvalidArgumentError
from latprune.graph.captured import CapturedNetwork
from latprune.program.binding import Frame, Part, ProgramScope, bind
from latprune.program.liveness import live_steps, without_branch
from latprune.program.steps import Held, Program, Step, Value
from latprune.program.structure import build_structure, collect
from latprune.program.traced import grouped_weights, lost_tensors, name_sizes, scales_shortcut

__all__ = ["ProgramModule", "ProgramScope"]


class ProgramModule(CapturedNetwork):
    """A captured network: the steps of one run, which surgery can change in every size.

    It has the parameters, buffers and module paths of the model that it was captured from, takes the same arguments, and returns its
    tensors in plain tuples, lists and dicts. Training works: batch norms use and update statistics, and dropout that the model called
    through PyTorch's functions is there. Steps that only run in training (drop path, noise of the model's own) are not.

    Attributes:
        program: The steps, as data.
        size_literals: The integers that state sizes in the steps; surgery changes them.
        cumulative_statistics: Batch norms in training mode average over all batches since their counters were reset.

    Example:
        >>> program = latprune.capture(model, x)
        >>> "conv1.weight" in program.code
        True
    """

    def __init__(self, program: Program, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.program = program
        self.size_literals = list(program.sizes)
        self.cumulative_statistics = False
        self._running = -1
        self._compiled: Part | None = None
        paths = {step.module for step in program.steps} | {name.rpartition(".")[0] for name in program.tensors}
        for path in sorted({".".join(p.split(".")[:k]) for p in paths if p for k in range(1, p.count(".") + 2)}):
            parent, _, leaf = path.rpartition(".")
            try:
                self.get_submodule(parent).add_module(leaf, ProgramScope(program.kinds.get(path, "")))
            except KeyError as error:
                raise CaptureError(f"a module of the model is called '{path}', which a program cannot have: {error}") from error
        placed: dict[str, torch.Tensor] = {}
        for name, kind in program.tensors.items():
            placed[name] = placed[kind.alias_of] if kind.alias_of is not None else self._new(tensors[name], kind)
            self._place(name, placed[name], kind.kind)

    @staticmethod
    def _new(tensor: torch.Tensor, kind: Any) -> torch.Tensor:
        if kind.kind == "parameter":
            return nn.Parameter(tensor.detach().clone(), requires_grad=kind.requires_grad)
        return tensor.detach().clone()

    def _place(self, name: str, tensor: torch.Tensor, kind: str) -> None:
        path, _, leaf = name.rpartition(".")
        holder = self.get_submodule(path)
        try:
            if isinstance(tensor, nn.Parameter):
                holder.register_parameter(leaf, tensor)
            else:
                holder.register_buffer(leaf, tensor, persistent=kind == "buffer")
        except KeyError as error:
            raise CaptureError(f"a {kind} of the model is called '{name}', which a program cannot have: {error}") from error

    # -- running ---------------------------------------------------------------------------------------------------

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program.

        Raises:
            InvalidArgumentError: The arguments are not those of the captured run, or have other sizes.
        """
        found: dict[int, torch.Tensor] = {}
        positional, keywords = self.program.arguments["args"], self.program.arguments["kwargs"]
        collect(positional, args, found, "arguments")
        collect(keywords, kwargs, found, "keyword arguments")
        inputs = [found[k] for k in range(len(self.program.inputs))]
        batch = self._batch(inputs)
        values: list[Any] = inputs + [None] * (self._count() - len(inputs))
        frame = Frame(self, values, batch)
        self._bound().run(self, frame)
        returned = [frame.values[r.number] if isinstance(r, Value) else self._held(r.name) for r in self.program.outputs["returned"]]
        return build_structure(self.program.outputs["structure"], returned)

    def _batch(self, inputs: list[torch.Tensor]) -> Any:
        """The batch size, after a look at the sizes."""
        checked = not (torch._C._get_tracing_state() is not None or torch.compiler.is_compiling() or torch.compiler.is_exporting())
        batch: Any = None
        for tensor, expected in zip(inputs, self.program.inputs, strict=True):
            first = 1 if expected.batched else 0
            if expected.batched and batch is None:
                batch = tensor.shape[0]
            if not checked:
                continue
            fits = tensor.dim() == len(expected.shape) and tuple(tensor.shape[first:]) == expected.shape[first:]
            if not fits or (expected.batched and tensor.shape[0] != batch):
                shown = ("batch", *expected.shape[1:]) if expected.batched else expected.shape
                sizes = ", ".join(str(n) for n in shown)
                why = f" ({self.program.batch_reason})" if self.program.batch_reason and not expected.batched else ""
                raise InvalidArgumentError(
                    f"input '{expected.name}' has shape {tuple(tensor.shape)}; this program was captured with ({sizes}) and runs at those "
                    f"sizes only{why}"
                )
        return batch

    def _count(self) -> int:
        return 1 + max((n for step in self.program.steps for n in step.results if n is not None), default=len(self.program.inputs))

    def norm_scopes(self) -> list[Any]:
        """Stand-ins of batch norms that keep statistics and count their batches."""
        wanted = ("running_mean", "running_var", "num_batches_tracked")
        return [m for m in self.modules() if all(m._buffers.get(name) is not None for name in wanted)]

    def norm_eps(self, path: str) -> float | None:
        """What the batch norm of a module adds to its variance; None where it has none."""
        for step in self.program.steps:
            if step.operator == "batch_norm" and step.arguments[2] == Held(f"{path}.running_var"):
                return float(step.arguments[7])
        return None

    def main_tensor(self) -> torch.Tensor | None:
        """The parameter (or buffer) whose type and device are the program's."""
        for tensor in self.parameters():
            if tensor.is_floating_point():
                return tensor
        return next(iter(self.buffers()), None)

    def _held(self, name: str) -> torch.Tensor:
        path, _, leaf = name.rpartition(".")
        found: torch.Tensor = getattr(self.get_submodule(path), leaf)
        return found

    def _bound(self) -> Part:
        """The steps, bound to this module's tensors."""
        if self._compiled is None:
            self._compiled = bind(self)
        return self._compiled

    def __getstate__(self) -> dict[str, Any]:
        """What copies and pickles hold: all but the bound steps, which belong to this object."""
        return {**self.__dict__, "_compiled": None}

    def note_running(self, number: int) -> None:
        """A step begins."""
        self._running = number

    @property
    def running(self) -> int:
        """Number of the step that runs now, or ran last."""
        return self._running

    # -- tracing ---------------------------------------------------------------------------------------------------

    def grouped_weights(self) -> dict[str, int]:
        """Weights of grouped convolutions that are computed from a parameter first (standardised weights): their groups."""
        return grouped_weights(self.program, self.size_literals, self.get_parameter)

    def name_sizes(self, reason: str) -> str:
        """A reason, with the numbers that state sizes named by the step that states them."""
        return name_sizes(self.program, reason)

    def scales_shortcut(self, join: int, operand: int) -> bool:
        """Whether the sum at step ``join`` would keep a factor on its shortcut once the branch, its operand ``operand``, is gone."""
        return scales_shortcut(self.program, join, operand)

    def lost_tensors(self, join: int, operand: int, skipped: Sequence[int]) -> tuple[str, ...]:
        """Parameters, buffers and constants that only the branch reads; see :meth:`remove_branch`."""
        return lost_tensors(self.program, join, operand, skipped)

    # -- surgery ---------------------------------------------------------------------------------------------------

    def remove_branch(self, join: int, operand: int, skipped: Iterable[int] = ()) -> None:
        """Put the other operand in the place of the sum ``join``; ``skipped`` steps after it hand their argument on.

        Raises:
            SurgeryError: There is no such sum.
        """
        steps, returned = without_branch(list(self.program.steps), list(self.program.outputs["returned"]), join, operand, skipped)
        self._change(steps, returned)

    def remove_dead(self, tensors: Iterable[str]) -> None:
        """Drop the steps that nothing depends on, and ``tensors`` that went with them."""
        returned = self.program.outputs["returned"]
        self._change(live_steps(list(self.program.steps), list(returned)), returned)
        gone = set(tensors)
        for name in gone:
            path, _, leaf = name.rpartition(".")
            holder = self.get_submodule(path)
            holder._parameters.pop(leaf, None)
            if leaf in holder._buffers:
                del holder._buffers[leaf]
                holder._non_persistent_buffers_set.discard(leaf)
        self.program = replace(self.program, tensors={n: t for n, t in self.program.tensors.items() if n not in gone})

    def _change(self, steps: list[Step], returned: list[Any]) -> None:
        self.program = replace(self.program, steps=tuple(steps), outputs={**self.program.outputs, "returned": returned})
        self._compiled = None

    def current(self) -> Program:
        """The program with the sizes that it has now, for saving."""
        return replace(self.program, sizes=tuple(int(n) for n in self.size_literals))

    def stored(self) -> dict[str, torch.Tensor]:
        """All tensors by name: parameters, buffers, and the constants that a state dict leaves out."""
        return {name: self._held(name) for name in self.program.tensors}

    # -- for people ------------------------------------------------------------------------------------------------

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs, in the order of the captured model's forward."""
        return tuple(entry.name for entry in self.program.inputs)

    @property
    def only_batch(self) -> int | None:
        """The batch size that it runs at alone; None where it runs at any, or where its inputs have none."""
        if any(entry.batched for entry in self.program.inputs):
            return None
        return next((entry.shape[0] for entry in self.program.inputs if entry.shape), None)

    @property
    def code(self) -> str:
        """The steps as readable lines."""
        from latprune.program.text import as_text

        return as_text(self)
