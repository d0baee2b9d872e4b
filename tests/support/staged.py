"""Chains of selections, each a part of the one before, and networks that were cut along them compared with ones that were cut once."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import torch
from torch import nn

from latprune.graph import ModelGraph, Selection
from latprune.program.format import program_to_dict
from latprune.program.module import ProgramModule
from latprune.surgery import ArchitectureEdits, RemovedPart, prune, replay

__all__ = ["assert_same_network", "assert_staged_equals_once", "chain", "narrower"]


def narrower(graph: ModelGraph, before: Selection, rng: np.random.Generator, *, blocks: float = 0.3, low: float = 0.0) -> Selection:
    """A random part of a selection, with further blocks removed, each with a probability of ``blocks``."""
    kept = {}
    for name, group in graph.groups.items():
        there = np.asarray(before.kept.get(name, np.arange(group.units)))
        rows = [there[there // group.columns == row] for row in range(group.rows)]
        smallest = min(max(group.min_width, round(low * group.columns)), rows[0].size)
        width = int(rng.integers(smallest, rows[0].size + 1))
        kept[name] = np.sort(np.concatenate([rng.permutation(row)[:width] for row in rows])).astype(np.int64)
    removable = [name for name, block in graph.blocks.items() if block.removable]
    return Selection(kept=kept, removed_blocks=before.removed_blocks | {name for name in removable if rng.random() < blocks})


def chain(graph: ModelGraph, rng: np.random.Generator, steps: int, *, blocks: float = 0.2, low: float = 0.0) -> list[Selection]:
    """``steps`` selections, each a part of the one before."""
    found = [Selection(kept={})]
    for _ in range(steps):
        found.append(narrower(graph, found[-1], rng, blocks=blocks, low=low))
    return found[1:]


def _attributes(module: nn.Module) -> dict[str, Any]:
    values = module.was if isinstance(module, RemovedPart) else vars(module)
    return {name: value for name, value in values.items() if isinstance(value, (bool, int, float, str, tuple, list)) or value is None}


def assert_same_network(one: nn.Module, other: nn.Module, *, rescaled: frozenset[str] = frozenset()) -> None:
    """Same modules, same attributes, same tensors to the bit (those of ``rescaled``, which were multiplied in steps, to rounding)."""
    state, wanted = one.state_dict(), other.state_dict()
    assert list(state) == list(wanted)
    for name, tensor in wanted.items():
        assert state[name].shape == tensor.shape, name
        if name in rescaled:
            torch.testing.assert_close(state[name], tensor, rtol=4 * torch.finfo(tensor.dtype).eps, atol=0.0)
        else:
            assert torch.equal(state[name], tensor), name
    modules, others = dict(one.named_modules()), dict(other.named_modules())
    assert {name: type(m) for name, m in modules.items()} == {name: type(m) for name, m in others.items()}
    for name, module in modules.items():
        mine, theirs = _attributes(module), _attributes(others[name])
        ignored = {"_compiled", "_running", "program"}
        assert {k: v for k, v in mine.items() if k not in ignored} == {k: v for k, v in theirs.items() if k not in ignored}, name
    if isinstance(one, ProgramModule) and isinstance(other, ProgramModule):
        assert program_to_dict(one.current()) == program_to_dict(other.current())


def assert_staged_equals_once(
    model: nn.Module, graph: ModelGraph, selections: list[Selection], *, fresh: nn.Module | None = None
) -> nn.Module:
    """Cut a copy along the selections and another to the last at once: they are equal. So is ``fresh`` after the replay of all edits."""
    staged, once = copy.deepcopy(model), copy.deepcopy(model)
    edits = ArchitectureEdits()
    since = None
    for selection in selections:
        edits = edits.then(prune(staged, graph, selection, since=since))
        since = selection
    prune(once, graph, selections[-1])
    rescaled = frozenset(s.name for step in edits.steps for s in step.scales)
    assert_same_network(staged, once, rescaled=rescaled)
    if fresh is not None:
        replay(fresh, ArchitectureEdits.from_dict(json.loads(json.dumps(edits.to_dict()))))
        fresh.load_state_dict(staged.state_dict(), strict=True)
        fresh.train(staged.training)
        assert_same_network(fresh, staged)
    return staged
