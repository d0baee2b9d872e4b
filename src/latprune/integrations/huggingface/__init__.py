"""Pruned models of Hugging Face's ``transformers``: their folder, their model card, the Hub, and pruning inside a ``Trainer``.

A folder holds ``model.safetensors`` and ``result.json`` (a checkpoint of latprune), ``config.json`` and ``README.md`` (the model card).
Where a configuration of the model's class can state the pruned widths, ``config.json`` is that one, and ``AutoModel.from_pretrained`` loads
the folder without latprune; where none can, it holds the dense model's, which :func:`from_pretrained` builds to replay the edits on.
"""

from __future__ import annotations

from latprune.integrations.huggingface.card import model_card
from latprune.integrations.huggingface.folder import from_pretrained, save_pretrained
from latprune.integrations.huggingface.hub import push_to_hub
from latprune.integrations.huggingface.trainer import pruning_callback

__all__ = ["from_pretrained", "model_card", "pruning_callback", "push_to_hub", "save_pretrained"]
