"""Attributes that no size of the recorded run came from, and that equal a size which may shrink: other methods read them.

(``switch_to_deploy`` builds a convolution of ``self.in_channels``, ``reset_classifier`` a layer of ``self.num_features``, a configuration
says ``hidden_size``.) Where what such an attribute means is certain it follows the widths, else it is listed. Certain is

- the channels of what the module is given, or returns, under a name that says so (``in_channels``, ``out_features``);
- the features that the last layer reads (``num_features`` of a module that ends in a linear layer);
- what modules inside have under the same name with the same value, where all of them follow one size (``groups``, ``num_heads``);
- a width by its name (``hidden_size``), as long as all dimensions of that size inside the module stay alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from torch import nn

from latprune.graph.axes import Axes
from latprune.graph.polynomials import Polynomial
from latprune.graph.provenance import Expression, leaves
from latprune.graph.recording import Info, Recording
from latprune.graph.surgery_plan import FollowingAttribute, UntouchedAttribute
from latprune.graph.types import WidthAxis

__all__ = ["untouched_attributes"]

Key = tuple[str, str]

_GIVEN = re.compile(r"in_?(channels|planes|chs|chans|features|dim|dims)|input_(channels|features|dim)")
_RETURNED = re.compile(r"out_?(channels|planes|chs|chans|features|dim|dims)|output_(channels|features|dim)")
_LAST = re.compile(r"num_features|num_ftrs|head_hidden_size|feat(ure)?_dim|classifier_(in_)?features")
_WIDTH = re.compile(
    r"(\w+_)?(hidden|intermediate|embedding|embed|inner|ffn|mlp|feedforward|model|bottleneck)_?(size|dim|width|channels|features)s?"
    r"|d_(model|ff|inner|hidden)|n_(embd|embed|inner|hidden)|(\w+_)?ffn_dim|dims?|widths?|channels|num_channels|planes|features|width"
)
_NO_WIDTH = re.compile(
    r"kernel|stride|pad|dilat|imag|img|patch|window|resolution|class|label|vocab|position|seq|length|depth|layers|blocks|stages?$|seed|"
    r"token|axis|index|version|step|epoch|batch|rank|(^|_)ids?$|scale|factor|ratio|(^|_)eps|height|num_samples|iter"
)
_LAYERS: tuple[tuple[type[nn.Module], Mapping[str, tuple[str, int]]], ...] = (
    (nn.Linear, {"out_features": ("weight", 0), "in_features": ("weight", 1)}),
    (nn.modules.batchnorm._NormBase, {"num_features": ("weight", 0)}),
    (nn.GroupNorm, {"num_channels": ("weight", 0)}),
    (nn.Embedding, {"embedding_dim": ("weight", 1)}),
)
"""Sizes that PyTorch's layers keep beside their weights, and the dimension that each of them is the size of."""


def untouched_attributes(
    recording: Recording, axes: Axes, settled: Mapping[Key, Polynomial], tensor_axes: Mapping[str, tuple[WidthAxis, ...]]
) -> tuple[tuple[FollowingAttribute, ...], tuple[UntouchedAttribute, ...]]:
    """The attributes that follow a size although no run read them, and those that may be stale after pruning.

    Args:
        recording: The settled recording.
        axes: Names of the groups filled.
        settled: Attributes that follow the widths as the run showed.
        tensor_axes: Of every parameter and buffer.
    """
    finder = _Finder(recording, axes, settled, tensor_axes)
    following, open_ = [], []
    for key, value in recording.attribute_values.items():
        if value < 2 or key in finder.touched or finder.of_a_layer(key):
            continue
        places = finder.places_of_size(key[0], value)
        certain = finder.meaning(key, value)
        if certain is not None:
            if certain.pieces:
                following.append(FollowingAttribute(module=key[0], attribute=key[1], axis=certain))
        elif any(tensor_axes[name][dim].pieces for name, dim in places) and not _NO_WIDTH.search(_plain_name(key[1])):
            uniform = _WIDTH.fullmatch(_plain_name(key[1])) is not None
            open_.append(UntouchedAttribute(module=key[0], attribute=key[1], value=value, dims=places, uniform=uniform))
    return tuple(following), tuple(open_)


def _plain_name(entry: str) -> str:
    """``hidden_sizes`` of ``config.hidden_sizes[1]``."""
    return entry.rpartition(".")[2].partition("[")[0].lower()


class _Finder:
    def __init__(
        self, recording: Recording, axes: Axes, settled: Mapping[Key, Polynomial], tensor_axes: Mapping[str, tuple[WidthAxis, ...]]
    ) -> None:
        self.recording = recording
        self.axes = axes
        self.settled = settled
        self.tensor_axes = tensor_axes
        self.modules = dict(recording.modules)
        self.touched = set(_touched(recording))
        self.named: dict[str, list[Key]] = {}
        for key in recording.attribute_values:
            self.named.setdefault(key[1], []).append(key)
        self.sizes: dict[int, list[tuple[str, int]]] = {}
        for name, tensor in (recording.parameters | recording.buffers).items():
            for dim, size in enumerate(tensor.shape):
                self.sizes.setdefault(int(size), []).append((name, dim))

    def of_a_layer(self, key: Key) -> bool:
        """Whether it is an attribute that a layer of PyTorch itself declares: surgery sets those by the layer's weights."""
        kind = type(self.modules[key[0]])
        name = key[1].partition("[")[0]
        if "." in name or issubclass(kind, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            return False
        own = [base for base in kind.__mro__ if base.__module__.startswith("torch.nn.")]
        return kind.__module__.startswith("torch.") or any(name in getattr(base, "__constants__", ()) for base in own)

    def places_of_size(self, path: str, value: int) -> tuple[tuple[str, int], ...]:
        """Dimensions of that size of the tensors inside of a module."""
        start = f"{path}." if path else ""
        return tuple((name, dim) for name, dim in self.sizes.get(value, ()) if name.startswith(start))

    def meaning(self, key: Key, value: int) -> WidthAxis | None:
        """The size that an attribute certainly is, or None."""
        path, entry = key
        if "[" in entry or "." in entry:
            return None
        name = entry.lower()
        if _GIVEN.fullmatch(name):
            return self._border(path, name, value, given=True)
        if _RETURNED.fullmatch(name):
            return self._border(path, name, value, given=False)
        if _LAST.fullmatch(name) and (found := self._last_layer(path, value)) is not None:
            return found
        return self._inside(key, value)

    def _border(self, path: str, name: str, value: int, *, given: bool) -> WidthAxis | None:
        """The channels of a module's one input, or of its one output, at all of its calls."""
        found: list[WidthAxis] = []
        for call in self.recording.module_calls:
            if call.path != path:
                continue
            tensors = call.inputs[:1] if given else call.outputs
            if len(tensors) != 1:
                return None
            axis = self._channels(tensors[0], name, value)
            if axis is None or (found and axis != found[0]):
                return None
            found.append(axis)
        return found[0] if found else None

    def _channels(self, info: Info, name: str, value: int) -> WidthAxis | None:
        rank = len(info.shape)
        dims = [d for d in dict.fromkeys((1, rank - 1)) if 0 < d < rank and info.shape[d] == value]
        if len(dims) > 1:  # as many positions as channels: the name says which
            dims = [rank - 1 if "features" in name or "dim" in name else 1]
        if not dims:
            return None
        along = [f for f in info.fields if f.shape[dims[0]] > 1]
        if not along:
            return WidthAxis(constant=value)
        if len(along) > 1 or along[0].numel() != value:
            return None
        return self.axes.axis(along[0], exact=False)

    def _last_layer(self, path: str, value: int) -> WidthAxis | None:
        """What the linear layer (or convolution) reads whose result a module returns."""
        for call in self.recording.module_calls:
            if call.path != path or len(call.outputs) != 1:
                continue
            for inner in self.recording.module_calls:
                module = self.modules[inner.path]
                if isinstance(module, nn.Linear) and inner.outputs and inner.outputs[0] is call.outputs[0] and module.in_features == value:
                    return self.tensor_axes[f"{inner.path}.weight"][1]
        return None

    def _inside(self, key: Key, value: int) -> WidthAxis | None:
        """What all modules inside that have the name and the value follow."""
        path, name = key
        start = f"{path}." if path else ""
        found: list[WidthAxis] = []
        for other in self.named.get(name, ()):
            if other == key or not other[0].startswith(start) or self.recording.attribute_values[other] != value:
                continue
            axis = self._known(other)
            if axis is None or (found and axis != found[0]):
                return None
            found.append(axis)
        return found[0] if found else None

    def _known(self, key: Key) -> WidthAxis | None:
        if key in self.settled:
            return self.axes.polynomial_axis(self.settled[key])
        if key in self.touched:
            return WidthAxis(constant=self.recording.attribute_values[key])
        module = self.modules[key[0]]
        for kind, sizes in _LAYERS:
            if isinstance(module, kind) and key[1] in sizes:
                leaf, dim = sizes[key[1]]
                weight = self.tensor_axes.get(f"{key[0]}.{leaf}" if key[0] else leaf)
                return None if weight is None else weight[dim]
        return None


def _touched(recording: Recording) -> Iterator[Key]:
    """Attributes that a size, a scale or a comparison of the run came from."""
    expressions: list[Expression] = [side for e in recording.equations for side in (e.left, e.right)]
    expressions += [*recording.uses, *recording.uses.loops]
    expressions += [side for _, left, right, _ in recording.uses.compared for side in (left, right)]
    expressions += [use.base for use in recording.scales]
    yield from _attributes(expressions)
    for drafts in recording.pads.values():
        for draft in drafts:
            yield draft.module, draft.attribute


def _attributes(expressions: Iterable[Expression]) -> Iterator[Key]:
    for expr in expressions:
        for leaf in leaves(expr):
            if leaf[0] == "attr":
                yield str(leaf[1]), str(leaf[2])
