"""Changing consumers in a copy of the dense network, cutting the copy, and taking its values over."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from latprune.copying import copied
from latprune.errors import InvalidArgumentError
from latprune.recovery.contract import Situation
from latprune.surgery import prune as cut

__all__ = ["through_dense"]


def through_dense(situation: Situation, change: Callable[[nn.Module], None]) -> None:
    """Let ``change`` edit the weights of a copy of the dense network, cut the copy, and copy its values into the pruned network.

    Raises:
        InvalidArgumentError: The pruned network is not what the selection gives.
    """
    network = copied(situation.dense)
    with torch.no_grad():
        change(network)
    cut(network, situation.graph, situation.selection)
    new = dict(network.named_parameters())
    old = dict(situation.pruned.named_parameters())
    differ = [n for n in old if n not in new or new[n].shape != old[n].shape]
    if differ or len(new) != len(old):
        raise InvalidArgumentError(f"pruned is not what the selection gives of the dense network: '{(differ or ['?'])[0]}' differs")
    with torch.no_grad():
        for name, value in old.items():
            value.copy_(new[name])
