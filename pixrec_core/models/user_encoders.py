"""User encoders: from the vectors of the items of a history to one vector per user.

Shapes: B sequences of at most L items, right-padded, D embedding size.

Each encoder has two methods. `before_each` returns a vector per item of a sequence, made from the items that may be
known before it: one pass trains on every item as a target. `newest` returns the vectors of whole histories.
"""

from math import gcd
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from pixrec_core.schemas import DAY_MS

HEADS: Final = 4  # at most; as many as divide the dimension
LAYERS: Final = 2
INPUT_NORM: Final = 4.0  # of item vectors as inputs of a network; unit vectors would hardly move its gates


def visible_before(times: Tensor, lengths: Tensor, *, ties: bool) -> Tensor:
    """Return (B, L, L) bool: whether item j may be in the history of item i as a target.

    Args:
        times: (B, L), not decreasing.
        lengths: (B,) items of each sequence; the rest is padding.
        ties: the other items of the same time are visible too: items of a basket have no order.
    """
    index = torch.arange(times.shape[1], device=times.device)
    visible = (index < index[:, None]).expand(len(times), -1, -1)
    if ties:
        visible = visible | ((times[:, None] == times[:, :, None]) & (index != index[:, None]))
    return visible & (index < lengths[:, None])[:, None]


class PooledHistory(nn.Module):
    """The weighted sum of the item vectors.

    The log of an item's weight is the sum of a learned value per position from the newest item, a learned multiple of
    the log of the days between it and the newest item, and a learned linear function of its vector (attention with one
    learned query). Only positions matter at the start, with weight 1 / sqrt(1 + position).

    Items older than `max_history_len` positions do not count.
    """

    def __init__(self, dim: int, max_history_len: int) -> None:
        super().__init__()
        positions = torch.empty(max_history_len)
        if not positions.is_meta:  # there, `arange` would import torch's compiler, which takes a second
            positions = -0.5 * torch.log1p(torch.arange(max_history_len, dtype=torch.float32))
        self.positions = nn.Parameter(positions)
        self.gap = nn.Parameter(torch.zeros(()))
        self.query = nn.Parameter(torch.zeros(dim))

    def before_each(self, items: Tensor, times: Tensor, lengths: Tensor, *, ties: bool = False) -> Tensor:
        """Return (B, L, D): for each item the vector of the items that `visible_before` allows; 0 without one."""
        return self._pool(items, times, visible_before(times, lengths, ties=ties))

    def newest(self, items: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, D): the vector of each whole history."""
        real = torch.arange(items.shape[1], device=items.device) < lengths[:, None]
        return self._pool(items, times, real[:, None])[:, 0]

    def _pool(self, items: Tensor, times: Tensor, visible: Tensor) -> Tensor:
        """Return (B, Q, D) from items (B, L, D), times (B, L) and `visible` (B, Q, L)."""
        positions = visible.flip(2).cumsum(2).flip(2) - 1  # visible items after each one
        newest = torch.where(visible, times[:, None], torch.iinfo(times.dtype).min).amax(2, keepdim=True)
        gaps = torch.where(visible, newest - times[:, None], 0).float() / DAY_MS
        logits = self.positions[positions.clamp(0, len(self.positions) - 1)] + self.gap * gaps.log1p()
        logits = logits + (items @ self.query)[:, None]
        visible = visible & (positions < len(self.positions))
        weights: Tensor = logits.masked_fill(~visible, -torch.inf).exp()
        return weights @ items


class CausalHistory(nn.Module):
    """A causal network over the item vectors, added to their weighted sum at length 1.

    The last layer of the network starts at zero, so that training starts from `PooledHistory`. An input is an item
    vector, plus a learned vector times the log of the days since the item before it. Dropout applies to inputs and
    outputs.
    """

    def __init__(self, dim: int, max_history_len: int, dropout: float) -> None:
        super().__init__()
        self.pooled = PooledHistory(dim, max_history_len)
        self.gap = nn.Parameter(torch.zeros(dim))
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.out.weight)

    def states(self, inputs: Tensor) -> Tensor:
        """Return (B, L, D), the state after each of the inputs (B, L, D)."""
        raise NotImplementedError

    def before_each(self, items: Tensor, times: Tensor, lengths: Tensor, *, ties: bool = False) -> Tensor:
        """Return (B, L, D): for each item the vector of the items before it; 0 for the first.

        `ties` has no effect: a network reads tied items in the given order.
        """
        del ties
        outputs = functional.pad(self._outputs(items[:, :-1], times[:, :-1]), (0, 0, 1, 0))
        return functional.normalize(self.pooled.before_each(items, times, lengths), dim=-1) + outputs

    def newest(self, items: Tensor, times: Tensor, lengths: Tensor) -> Tensor:
        """Return (B, D): the vector of each whole history."""
        outputs = self._outputs(items, times)[torch.arange(items.shape[0], device=items.device), lengths - 1]
        return functional.normalize(self.pooled.newest(items, times, lengths), dim=-1) + outputs

    def _outputs(self, items: Tensor, times: Tensor) -> Tensor:
        gaps = functional.pad(times.diff(dim=1).clamp(min=0), (1, 0)).float() / DAY_MS  # padding may go back in time
        inputs = items * INPUT_NORM + gaps.log1p()[..., None] * self.gap
        outputs: Tensor = self.out(self.dropout(self.states(self.dropout(inputs))))
        return outputs


class GruHistory(CausalHistory):
    """One layer of gated recurrent units, as in GRU4Rec (arXiv 1511.06939)."""

    def __init__(self, dim: int, max_history_len: int, dropout: float) -> None:
        super().__init__(dim, max_history_len, dropout)
        self.units = nn.GRU(dim, dim, batch_first=True)

    def states(self, inputs: Tensor) -> Tensor:
        states: Tensor = self.units(inputs)[0]
        return states


class TransformerHistory(CausalHistory):
    """Causal self-attention with a learned vector per position, as in SASRec (arXiv 1808.09781)."""

    def __init__(self, dim: int, max_history_len: int, dropout: float) -> None:
        super().__init__(dim, max_history_len, dropout)
        self.positions = nn.Embedding(max_history_len, dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            dim, gcd(dim, HEADS), 2 * dim, dropout, functional.gelu, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(dim), enable_nested_tensor=False)

    def states(self, inputs: Tensor) -> Tensor:
        length = inputs.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length, inputs.device)
        states: Tensor = self.layers(inputs + self.positions.weight[:length], mask=mask, is_causal=True)
        return states


UserEncoder = PooledHistory | CausalHistory


def create_user_encoder(kind: str, dim: int, max_history_len: int, dropout: float) -> UserEncoder:
    """Return a new user encoder; `kind` is a value of the setting `user_pooling`."""
    if kind == "mean":
        return PooledHistory(dim, max_history_len)
    classes = {"gru": GruHistory, "transformer": TransformerHistory}
    return classes[kind](dim, max_history_len, dropout)
