"""How much of a layer's change is written: what held-out images bear out."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from latprune.recovery.refit import settle
from latprune.recovery.regression import Fit
from latprune.recovery.sites import find_sites
from latprune.recovery.stepper import record_operations
from latprune.recovery.walk import Layer, Rows


@pytest.mark.parametrize(("truth", "share"), [(1.0, 1.0), (0.4, 0.5), (0.2, 0.25), (0.05, 0.0), (-1.0, 0.0)])
def test_the_largest_part_of_a_change_that_helps_on_held_out_images_is_written(truth: float, share: float) -> None:
    """The fit says that every weight is too small by 1; on held-out images ``truth`` is what they lack."""
    model = nn.Sequential(nn.Linear(3, 2)).eval()
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    (site,) = find_sites(record_operations(model, x), model)
    before = model[0].weight.detach().clone()
    with torch.no_grad():
        present = model(x)

    def rows(lack: float) -> Rows:
        return Rows(x=x[:, None], present=present, target=present + lack * x.sum(1, keepdim=True), offset=None)

    layer = Layer(site=site, fitted=rows(1.0), held_out=rows(truth))
    fit = Fit(weight=torch.ones(1, 3, 2, dtype=torch.float64), constant=torch.zeros(2, dtype=torch.float64))
    entry = settle(layer, fit, action="refit", constant=True)
    assert torch.allclose(model[0].weight, before + share, atol=1e-6)
    assert bool(entry.action) == (share > 0) and ("held-out" in entry.reason) == (share == 0)
