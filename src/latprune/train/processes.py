"""What processes that train together have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["take_buffers_of_first"]


@torch.no_grad()
def take_buffers_of_first(model: nn.Module, accelerator: Accelerator) -> None:
    """Give every process the main one's buffers; all of them must call this at the same step.

    Gradients keep parameters equal, but each process gathers the running statistics of batch norms over its own share of the batches.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import broadcast

    for buffer in model.buffers():
        # Bytes and a copy of our own: not every backend sends booleans, and none sends what is not contiguous.
        sent = (buffer.to(torch.uint8) if buffer.dtype == torch.bool else buffer.detach()).clone(memory_format=torch.contiguous_format)
        buffer.copy_(broadcast(sent))
