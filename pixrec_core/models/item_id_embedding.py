"""The collaborative residual: what only behaviour knows of an item, beside what its text and photo tell."""

import torch
from torch import Tensor, nn


class ItemIdEmbedding(nn.Module):
    """Two learned vectors an item, added to its content vector: one where it is read in a history, one where ranked.

    They start at zero, so content leads and an item that never occurs in training keeps to its
    content. In each step some items lose both, so that content alone must serve as well: else what
    is learnt of warm items would be missing where a cold one stands.

    Args:
        items: N, of the catalogue.
        embedding_dim: D.
        dropout: share of the items (0 to 1) that go without in a training step.
    """

    def __init__(self, items: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.history = nn.Embedding(items, embedding_dim)
        self.candidate = nn.Embedding(items, embedding_dim)
        self.dropout = dropout

    def dropout_mask(self) -> Tensor | None:
        """(N, 1) of zeros and ones, drawn for one step; None outside training, where every item keeps its own."""
        if not self.training:
            return None
        weight = self.history.weight
        return (torch.rand(len(weight), 1, device=weight.device) >= self.dropout).to(weight.dtype)

    @staticmethod
    def lookup(table: nn.Embedding, numbers: Tensor, kept: Tensor | None) -> Tensor:
        """(T, D) rows of a table for (T,) item numbers, zero for those that are not kept."""
        vectors: Tensor = table(numbers)
        return vectors if kept is None else vectors * kept[numbers]
