"""A recurrent language model: a network whose recurrent layers stay whole while the rest is pruned."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from latprune.errors import InvalidArgumentError

__all__ = ["RecurrentLanguageModel", "recurrent_language_model"]


class RecurrentLanguageModel(nn.Module):
    """Embedding, LSTM, a feed-forward layer, and the scores of the next word."""

    def __init__(self, *, vocabulary: int, dim: int, hidden: int, layers: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.recurrent = nn.LSTM(dim, dim, num_layers=layers, batch_first=True)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.out = nn.Linear(dim, vocabulary)

    def forward(self, words: Tensor) -> Tensor:
        """``(n, length)`` word indices -> ``(n, length, vocabulary)`` logits."""
        x, _ = self.recurrent(self.embedding(words))
        logits: Tensor = self.out(x + self.fc2(F.relu(self.fc1(x))))
        return logits


def recurrent_language_model(vocabulary: int = 200, dim: int = 64, hidden: int = 256, layers: int = 2) -> RecurrentLanguageModel:
    """An LSTM language model.

    Args:
        vocabulary: Number of words.
        dim: Width of embedding and recurrent state.
        hidden: Width of the feed-forward layer.
        layers: LSTM layers.
    """
    for name, value in (("vocabulary", vocabulary), ("dim", dim), ("hidden", hidden), ("layers", layers)):
        if value < 1:
            raise InvalidArgumentError(f"{name} (={value}) must be at least 1")
    return RecurrentLanguageModel(vocabulary=vocabulary, dim=dim, hidden=hidden, layers=layers)
