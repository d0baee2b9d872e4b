"""One pass: what the removed input channels carried is predicted from the kept ones, and the prediction is folded into the consumer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from latprune.argument_rules import check_number, check_whole
from latprune.graph import Selection
from latprune.recovery.backing_off import Change, kept_where_it_helps
from latprune.recovery.contract import Recovery, Situation, register_strategy
from latprune.recovery.pairing import UNKNOWN, Pairing
from latprune.recovery.parameter_names import ParameterNames
from latprune.recovery.report import LayerRecovery
from latprune.recovery.rows import from_matrix, to_matrix
from latprune.recovery.sites import Site, find_sites
from latprune.recovery.stepper import Stepper, record_operations
from latprune.recovery.transfer import through_dense
from latprune.recovery.values import Values
from latprune.surgery.masked import keep_mask

__all__ = ["OnePassMap"]


@register_strategy
@dataclass(frozen=True, kw_only=True)
class OnePassMap(Recovery):
    """Ridge regression of each consumer's removed input channels on its kept ones, from the Gram matrix of the dense inputs.

    With ``X_r = X_k M + c``, the consumer's weight ``W_k`` becomes ``W_k + M W_r``; ``c W_r`` goes into its bias or the shift of the norm
    behind it. Nothing is fitted in the pruned network: errors of earlier layers and removed blocks are not seen. (The Gram matrix and the
    map folded into the consumer are GRAIL's, CPAL 2026.)

    Attributes:
        ridge: Strength of the pull to 0, relative to the mean square of the kept channels.
        rows: Places of the input per kept channel, at most.
    """

    name = "map"

    ridge: float = 1e-3
    rows: int = 200

    def __post_init__(self) -> None:
        check_number("ridge", self.ridge, "be a number of at least 0", 0.0)
        check_whole("rows", self.rows, least=1)

    def settings(self) -> dict[str, Any]:
        """The options, for the record."""
        return asdict(self)

    def run(self, situation: Situation) -> list[LayerRecovery]:
        """Map all consumers."""
        found: list[Change] = []
        start = Values(situation.pruned)

        def change(network: nn.Module) -> None:
            names = ParameterNames(network.named_parameters())
            run = record_operations(network, situation.fitted[0], situation.within)
            pairing = Pairing(situation.graph, Selection(kept=situation.selection.kept), run, run, network, network)
            stepper = Stepper(network, situation.fitted, situation.within, run)
            generator = torch.Generator().manual_seed(situation.seed)
            work: list[tuple[Site, Tensor, Tensor]] = []
            for site in find_sites(run, network):
                call = pairing.call_of.get(site.index)
                fields = situation.graph.calls[call].all_fields[site.inputs] if call is not None and not site.reason else ()
                masks = [m for f in fields if (m := keep_mask(f, pairing.kept)) is not None]
                reason = site.reason or (_unfit(site, masks) if call is not None else UNKNOWN)
                if reason:
                    found.append(Change(entry=LayerRecovery(layer=site.name, reason=reason)))
                    continue
                keep = masks[0].reshape(-1)
                with stepper.ready():
                    for k in range(len(stepper)):
                        stepper.advance(k, site.index)
                rows = torch.cat([_channels(site, stepper.arguments(k)[site.inputs]) for k in range(len(stepper))])
                wanted = max(4096, self.rows * int(keep.sum()))
                if rows.shape[0] > wanted:
                    rows = rows[torch.randperm(rows.shape[0], generator=generator)[:wanted].to(rows.device)]
                # Written after the walk, so that every map is fitted to the dense network's own inputs.
                work.append((site, keep.to(rows.device), rows))
                work[-1] = (site, work[-1][1], self._map(work[-1][2], work[-1][1]))
                written = frozenset(name for t in site.tensors() if (name := names.of(t)) is not None)
                found.append(Change(entry=LayerRecovery(layer=site.name, action="map"), tensors=written))
                situation.say(f"recovery: {site.name} mapped")
            for site, keep, solved in work:
                _fold(site, keep, solved)

        through_dense(situation, change)
        return kept_where_it_helps(situation, start, found)

    def _map(self, rows: Tensor, keep: Tensor) -> Tensor:
        """``(kept + 1, removed)`` float64: the map, and the constants in its last row."""
        rows = rows.double()
        mean = rows.mean(0)
        centred = rows - mean
        kept, removed = centred[:, keep], centred[:, ~keep]
        gram = kept.T @ kept / rows.shape[0]
        gram.diagonal().add_(self.ridge * gram.diagonal().mean().clamp_min(1e-12))
        solved = torch.linalg.solve(gram, kept.T @ removed / rows.shape[0])
        return torch.cat([solved, (mean[~keep] - mean[keep] @ solved)[None]])


def _unfit(site: Site, masks: list[Tensor]) -> str:
    if not masks:
        return "all its inputs are kept"
    if len(masks) > 1 or sum(n > 1 for n in masks[0].shape) != 1:
        return "its input's channels lie on several dimensions"
    if site.convolution and int(site.options[5]) > 1:
        return "each of its groups reads its own channels: nothing else can stand in for them"
    return ""


def _channels(site: Site, x: Tensor) -> Tensor:
    """``(places, channels)``."""
    if not site.convolution:
        return x.reshape(-1, x.shape[-1])
    return x.flatten(2).transpose(1, 2).reshape(-1, x.shape[1])


def _fold(site: Site, keep: Tensor, solved: Tensor) -> None:
    assert site.weight is not None
    matrix = to_matrix(site)[0]  # (channels * taps, outputs)
    by_channel = matrix.reshape(keep.numel(), -1)  # (channels, taps * outputs)
    taps = by_channel.shape[1] // site.outputs
    gone = by_channel[~keep]
    by_channel[keep] += solved[:-1] @ gone
    constant = (solved[-1] @ gone).reshape(taps, site.outputs).sum(0)
    scale, _ = site.rescale()
    site.weight.detach().copy_(from_matrix(site, by_channel.reshape(1, *matrix.shape)).to(site.weight))
    site.take_constant(constant * scale)
