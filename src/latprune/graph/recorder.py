"""The recorder: one real run under a dispatch mode, with fields carried beside the tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from latprune.errors import CaptureError, LatpruneError
from latprune.graph.captured import CapturedNetwork
from latprune.graph.fields import varying
from latprune.graph.labels import LabelSpace
from latprune.graph.module_facts import ModuleFacts
from latprune.graph.provenance import CallWatcher, Expression
from latprune.graph.recording import Equation, Fields, Info, Node, PaddingDraft, Recording
from latprune.graph.rules import Step, find_rule
from latprune.graph.rules_compute import ELEMENTWISE_OPERATIONS
from latprune.graph.rules_contract import ATTENTION
from latprune.graph.rules_creating import FROM_NOTHING, FROM_SHAPES, pass_sizes, settle_sizes
from latprune.graph.size_facts import SizeFacts
from latprune.graph.tensors import flatten_tensors, operands
from latprune.graph.uncomputed import ValueRead, reads_values, result_without_computing

__all__ = ["Recorder"]


def _derived_grouped_weights(modules: Iterable[tuple[str, nn.Module]]) -> dict[str, int]:
    """Weights of grouped convolutions whose module computes with them in a forward of its own (standardised weights): their groups.

    There each group of filters has its own input channels from the start, because statistics over a filter must tell them apart.
    """
    found = {}
    for path, module in modules:
        if not isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) or module.groups == 1 or module.weight.shape[1] == 1:
            continue
        if type(module).forward not in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
            found[f"{path}.weight" if path else "weight"] = int(module.groups)
    return found


class Recorder(SizeFacts, ModuleFacts, TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records one run of ``model``; what runs outside of the module ``within`` need not be understood.

    With ``computed`` False the costly operations are not computed; :class:`ValueRead` is raised where the model reads their values.
    """

    def __init__(self, model: nn.Module, watcher: CallWatcher, within: str | None = None, *, computed: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self.program = model if isinstance(model, CapturedNetwork) else None
        self.modules = list(model.named_modules())
        self.watcher = watcher
        self._computed = computed
        watcher.on_values = self.on_values
        self.space = LabelSpace()
        self.nodes: list[Node] = []
        self.random = False
        """Whether an operation drew random numbers."""
        self.roles: dict[tuple[str, int], list[tuple[str, int]]] = {}
        self.grouped: dict[str, torch.Tensor] = {}
        self.pads: dict[str, tuple[PaddingDraft, ...]] = {}
        self._start_modules(within)
        self._start_sizes()
        self._start_tensors(model, _derived_grouped_weights(self.modules) if self.program is None else self.program.grouped_weights())

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        with self.watcher.aside():
            return self._recorded(func, args, kwargs)

    def _recorded(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation's result, with its record."""
        tensors = operands(args, kwargs)
        infos = [self.info(t) for t in tensors]
        mutable = func._schema.is_mutable
        out, uncomputed = (func(*args, **kwargs), False) if self._computed else self._result(func, args, kwargs, infos, mutable)
        self.random |= torch.Tag.nondeterministic_seeded in func.tags and not _drops_nothing(func, args, kwargs)
        outs = [out] if isinstance(out, torch.Tensor) else flatten_tensors(out)
        index = len(self.nodes)
        dynamic = any(i.dynamic for i in infos) and func._schema.name not in FROM_SHAPES
        node = Node(
            index=index,
            op=str(func),
            module=self.module_path,
            inputs=infos,
            outputs=[],
            in_fields=[i.fields for i in infos],
            literals=tuple(a for a in args if not isinstance(a, torch.Tensor)),
            inside=self._depth > 0,
            step=self.program.running if self.program is not None else -1,
        )
        fields: list[Fields] = [()] * len(outs)
        expanded: tuple[tuple[int, Expression], ...] = ()
        places: dict[int, Fields] = {}
        for i in infos:
            if i.places:
                self.places_read(i, f"{func} in '{self.module_path}'")
        labelled = any(i.fields for i in infos)
        # How often a value is repeated matters even where the value carries no channels: it may meet some.
        sized = func._schema.name == "aten::expand" or func._schema.name in FROM_NOTHING
        rule = find_rule(func) if labelled or dynamic or sized else None
        carried: tuple[tuple[int, Expression], ...] = ()
        if any(i.sized for i in infos):
            step = Step(self, func, args, kwargs, out)
            if pass_sizes(step):
                carried = step.sized
            elif func._schema.name.rstrip("_") in ELEMENTWISE_OPERATIONS or func._schema.name in ATTENTION:
                rule = find_rule(func)
            else:
                settle_sizes(step, (*args, *kwargs.values()))
        if labelled or rule is not None:
            step = Step(self, func, args, kwargs, out)
            self._step_roles = []
            if rule is None:
                reason = _without_rule(func, step.place)
                for i in infos:
                    step.freeze(i.fields, reason)
            else:
                result = self._apply(rule, step, infos, node.inside)
                if isinstance(result, list):
                    fields = [self._clean(r) for r in result] + [()] * (len(outs) - len(result))
                elif outs:
                    fields = [self._clean(result), *([()] * (len(outs) - 1))]
            node.kernel, expanded, places = step.kernel, step.expanded, step.places
            carried += step.sized
            for tensor_name, dim, role in self._step_roles:
                self.roles.setdefault((tensor_name, dim), []).append((role, index))
        name = infos[0].name if len(infos) == 1 and not dynamic else None
        for k, t in enumerate(outs):
            info = Info(fields=fields[k], node=index, output=k, shape=tuple(t.shape), name=name, dynamic=dynamic, uncomputed=uncomputed)
            info.expanded, info.places, info.sized = expanded, places.get(k, ()), carried
            if mutable and any(t is a for a in tensors):
                self._mutated(t, info, func)
            self.set(t, info)
            node.outputs.append(info)
        if mutable and not outs and not node.inside:
            for i in infos:
                for f in i.fields:
                    self.space.freeze(f, f"written by {func} outside of '{self._within}'")
        elif mutable and not outs:
            raise CaptureError(f"{func} in '{self.module_path}' writes into its arguments and returns nothing; it cannot be followed")
        self.nodes.append(node)
        return out

    def places_read(self, info: Info, by: str) -> None:
        """Places among channels are used as numbers: what is left of the channels must keep its places."""
        for f in info.places:
            self.space.freeze(f, f"the place of the largest among the channels is read by {by}")

    def keep_sizes(self, info: Info) -> None:
        """A size that the code states is seen outside of the model."""
        for dim, expr in info.sized:
            self.equations.append(Equation(left=expr, right=("const", info.shape[dim]), place="the network's output"))

    def _result(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], infos: list[Info], mutable: bool) -> tuple[Any, bool]:
        """The result of an operation, computed only where that is cheap or needed, and whether its values are arbitrary."""
        if infos and infos[0].dynamic:
            out = result_without_computing(func, args, kwargs)
            if out is not None:
                return out, True
        uncomputed = any(i.uncomputed for i in infos) and func._schema.name not in FROM_SHAPES
        if uncomputed and (reads_values(func, kwargs) or (mutable and not infos[0].uncomputed)):
            raise ValueRead
        if mutable and infos and self._outlives(args[0], infos[0]):
            raise ValueRead  # written once, in the run that is computed
        return func(*args, **kwargs), uncomputed

    def _outlives(self, tensor: Any, info: Info) -> bool:
        """Whether a tensor was there before the run (an input, a buffer), or is a view of one that was."""
        if info.node < 0:
            return True
        base = tensor._base if isinstance(tensor, torch.Tensor) and tensor._is_view() else None
        return base is not None and self.info(base).node < 0

    def on_values(self, tensor: torch.Tensor) -> None:
        """The model takes the values of ``tensor`` out of PyTorch."""
        found = self._infos.get(id(tensor))
        if found is not None and found[0]() is tensor and found[1].uncomputed:
            raise ValueRead

    def _apply(self, rule: Any, step: Step, infos: list[Info], inside: bool) -> Any:
        """What a rule says; outside of the module that is pruned an operation may be more than the rule can take."""
        try:
            return rule(step)
        except Exception as error:  # of any kind: rules come from other packages too, and meet results whose sizes follow the data
            if inside and isinstance(error, (ValueRead, LatpruneError)):
                raise
            if inside:
                told = f"{type(error).__name__}: {error}"
                raise CaptureError(f"{step.place} is of a form that this operation's rule does not take ({told})") from error
            # Nothing is lost but width: all that the operation reads stays whole, with this reason, also where the rule got half way.
            for i in infos:
                step.freeze(i.fields, f"read outside of '{self._within}' by {step.place}")
            return []

    def _clean(self, fields: Fields) -> Fields:
        return tuple(f for f in fields if f.numel() > 1)

    def _mutated(self, tensor: torch.Tensor, info: Info, func: Any) -> None:
        """A write into ``tensor``: what other tensors share its memory must not carry other channels than it did."""
        old = self.info(tensor)
        if not tensor._is_view():
            return
        if tensor._base is not None and info.dynamic and id(tensor._base) not in self._names:
            # What the memory holds now depends on the inputs (a batch that images are copied into).
            whole = self.info(tensor._base)
            uncomputed = whole.uncomputed or info.uncomputed
            self.set(tensor._base, replace(whole, node=info.node, output=info.output, dynamic=True, uncomputed=uncomputed))
        if not old.fields and info.fields and self._adopted(tensor, info):
            return
        before = sorted(tuple(f.shape) for f in old.fields)
        after = sorted(tuple(f.shape) for f in info.fields)
        if before != after:
            reason = f"written through a view by {func} in '{self.module_path}'"
            base = tensor._base
            for fields in (old.fields, info.fields, self.info(base).fields if base is not None else ()):
                for f in fields:
                    self.space.freeze(f, reason)
            info.fields = ()

    def _adopted(self, view: torch.Tensor, info: Info) -> bool:
        """Channels are written into a part of a tensor of one value: the whole of it carries them where the part is as wide as it is."""
        base = view._base
        whole = self.info(base) if base is not None else None
        if base is None or whole is None or whole.fields or not whole.sized or base.dim() != view.dim():
            return False
        dims = {d for f in info.fields for d in varying(f)}
        if not dims <= {d for d, _ in whole.sized} or any(base.shape[d] != view.shape[d] for d in dims):
            return False
        self.set(base, replace(whole, fields=info.fields, sized=tuple(entry for entry in whole.sized if entry[0] not in dims)))
        return True

    def recording(self, inputs: list[Info], outputs: list[Info]) -> Recording:
        """What the run left behind."""
        self.absorb_scales()
        for name in self._groups:
            if name not in self.grouped and name in self.tensor_labels:
                for f in self.info(self.model.get_parameter(name)).fields:
                    self.space.freeze(f, f"'{name}' is not used as the weight of a grouped convolution alone")
        return Recording(
            space=self.space,
            nodes=self.nodes,
            module_calls=self.module_calls,
            inputs=inputs,
            outputs=outputs,
            tensor_labels=self.tensor_labels,
            tensor_shapes=self.tensor_shapes,
            modules=self.modules,
            parameters=self.parameters,
            buffers=self.buffers,
            aliases=self.aliases,
            roles=self.roles,
            grouped=self.grouped,
            pads=self.pads,
            sizes=self.sizes,
            equations=self.equations,
            uses=self.watcher.used,
            attribute_values=self.attribute_values,
            scales=self.scales,
            call_counts=Counter(c.path for c in self.module_calls),
        )


def _without_rule(func: Any, place: str) -> str:
    """Why what an operation reads stays whole where no rule says what becomes of its channels."""
    if "quantize" in func._schema.name:
        return f"a quantised part reads them ({place}), whose scales and packed weights stay whole; to cut it, prune before quantising"
    return f"no rule for {place}; register one with latprune.graph.register_rule"


def _drops_nothing(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operation that may drop values at random (attention) was told to drop none."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.name == "dropout_p":
            value = args[place] if place < len(args) else kwargs.get("dropout_p", argument.default_value)
            return bool(value == 0)
    return False
