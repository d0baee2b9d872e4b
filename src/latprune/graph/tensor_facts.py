"""The part of the recorder that knows tensors: what is carried beside each, and the labels of parameters and buffers."""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Mapping

import torch
from torch import nn

from latprune.graph.labels import LabelSpace
from latprune.graph.recording import Fields, Info

__all__ = ["TensorFacts"]


class TensorFacts:
    """Labels of a run's tensors; a base of :class:`latprune.graph.recorder.Recorder`."""

    space: LabelSpace

    def _start_tensors(self, model: nn.Module, grouped_weights: Mapping[str, int]) -> None:
        """Begin with the model's parameters and buffers, none of which was seen yet."""
        self._infos: dict[int, tuple[weakref.ref[torch.Tensor], Info]] = {}
        self.tensor_labels: dict[str, list[torch.Tensor | None]] = {}
        self.tensor_shapes: dict[str, tuple[int, ...]] = {}
        self._names: dict[int, str] = {}
        self._own: dict[int, torch.Tensor] = {}
        self.aliases: dict[str, str] = {}
        self._label_owner: list[tuple[int, int, str, int]] = []
        self._step_roles: list[tuple[str, int, str]] = []
        self.parameters: dict[str, torch.Tensor] = {}
        self.buffers: dict[str, torch.Tensor] = {}
        for kind, unique in ((model.named_parameters, self.parameters), (model.named_buffers, self.buffers)):
            for name, tensor in kind(remove_duplicate=False):
                if id(tensor) in self._names:
                    self.aliases[name] = self._names[id(tensor)]
                else:
                    self._names[id(tensor)] = name
                    self._own[id(tensor)] = tensor
                    unique[name] = tensor
        self._groups = grouped_weights

    def info(self, tensor: torch.Tensor) -> Info:
        """What is known of ``tensor``; a parameter gets its labels when it is first seen."""
        found = self._infos.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        name = self._names.get(id(tensor))
        fields: Fields = ()
        if name is not None:
            fields = self._label_tensor(name, tensor)
        info = Info(fields=fields, node=-1, output=0, shape=tuple(tensor.shape), name=name)
        self._infos[id(tensor)] = (weakref.ref(tensor), info)
        return info

    def set(self, tensor: torch.Tensor, info: Info) -> None:
        """Remember ``info`` of ``tensor``."""
        self._infos[id(tensor)] = (weakref.ref(tensor), info)

    def _label_tensor(self, name: str, tensor: torch.Tensor) -> Fields:
        self.tensor_shapes[name] = tuple(tensor.shape)
        labels: list[torch.Tensor | None] = []
        fields: list[torch.Tensor] = []
        if tensor.is_floating_point() or tensor.is_complex():
            for dim, size in enumerate(tensor.shape):
                if size > 1 and dim == 1 and name in self._groups:
                    rows = self.space.fresh(self._groups[name] * size, "tensor", name, dim).reshape(-1, size)
                    labels.append(rows[0])
                    self._label_owner.append((int(rows[0, 0]), rows.numel(), name, dim))
                    fields.append(
                        rows.repeat_interleave(tensor.shape[0] // rows.shape[0], 0).reshape(*tensor.shape[:2], *[1] * (tensor.dim() - 2))
                    )
                elif size > 1:
                    vector = self.space.fresh(size, "tensor", name, dim)
                    labels.append(vector)
                    self._label_owner.append((int(vector[0]), size, name, dim))
                    fields.append(vector.reshape([size if d == dim else 1 for d in range(tensor.dim())]))
                else:
                    labels.append(None)
        self.tensor_labels[name] = labels
        return tuple(fields)

    def state_role(self, labels: torch.Tensor, role: str) -> None:
        """Remember the role of the parameter dimension whose own labels start ``labels``."""
        owner = self.owner(labels)
        if owner is not None:
            self._step_roles.append((*owner, role))

    def owner(self, labels: torch.Tensor) -> tuple[str, int] | None:
        """The parameter and dimension whose own labels start ``labels``."""
        first = int(labels.reshape(-1)[0])
        at = bisect_right(self._label_owner, (first, 1 << 62, "", 0)) - 1
        if at >= 0:
            start, size, name, dim = self._label_owner[at]
            if start <= first < start + size:
                return name, dim
        return None
