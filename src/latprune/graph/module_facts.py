"""The part of the recorder that follows modules: which one runs, and the tensors at the borders of each."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from latprune.graph.recording import Info, ModuleCall, Node
from latprune.graph.tensor_facts import TensorFacts
from latprune.graph.tensors import flatten_tensors, structure

__all__ = ["ModuleFacts"]


class ModuleFacts(TensorFacts):
    """Calls of a run's modules; a base of :class:`latprune.graph.recorder.Recorder`."""

    modules: list[tuple[str, nn.Module]]
    nodes: list[Node]
    _paused: bool

    def _start_modules(self, within: str | None) -> None:
        """Begin outside of all modules; what runs in ``within`` (None: all of it) is inside."""
        self.module_calls: list[ModuleCall] = []
        self._stack: list[int] = []
        self.module_path = ""
        self.failed_in = ""
        self._within = within
        self._depth = 0 if within else 1

    @contextmanager
    def watch_modules(self) -> Iterator[None]:
        """Keep the path of the running module and the tensors at the borders of every module.

        The call of modules is wrapped for the while, which sees what hooks see first and last and costs less than two hooks on each.
        """
        paths = {id(m): path for path, m in self.modules if not isinstance(m, torch.jit.ScriptModule)}
        plain = nn.Module.__call__

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            path = paths.get(id(module))
            if path is None:
                return plain(module, *args, **kwargs)
            self._enter(path, args, kwargs)
            try:
                output = plain(module, *args, **kwargs)
            except BaseException:
                self.failed_in = self.failed_in or self.module_path
                self._left()
                raise
            self._leave(output)
            return output

        nn.Module.__call__ = call  # type: ignore[method-assign]
        try:
            yield
        finally:
            nn.Module.__call__ = plain  # type: ignore[method-assign]

    def _tensor_infos(self, values: Any) -> list[Info]:
        paused, self._paused = self._paused, True  # as quiet(), which costs more than what it guards here
        try:
            if type(values) is tuple and all(type(v) is torch.Tensor for v in values):
                return [self.info(t) for t in values]
            return [self.info(t) for t in flatten_tensors(values)]
        finally:
            self._paused = paused

    def _enter(self, path: str, args: Any, kwargs: Any) -> None:
        parent = self._stack[-1] if self._stack else -1
        self.module_calls.append(
            ModuleCall(
                path=path,
                start=len(self.nodes),
                stop=-1,
                inputs=self._tensor_infos((args, kwargs) if kwargs else args),
                outputs=[],
                parent=parent,
            )
        )
        self._stack.append(len(self.module_calls) - 1)
        self.module_path = path
        self._depth += path == self._within

    def _leave(self, output: Any) -> None:
        call = self._left()
        call.outputs = self._tensor_infos(output)
        call.structure = structure(output)

    def _left(self) -> ModuleCall:
        call = self.module_calls[self._stack.pop()]
        call.stop = len(self.nodes)
        self.module_path = self.module_calls[self._stack[-1]].path if self._stack else ""
        self._depth -= call.path == self._within
        return call
