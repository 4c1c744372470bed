"""Semantic ids: a network writes the code of the next item, token by token (TIGER, arXiv 2305.05065).

The code of an item is its text features, quantised by residual k-means, and a last token that tells apart the items
whose other tokens are equal. Beam search over the codes of the catalogue finds the items with the most likely codes.

TIGER (Rajput et al. 2023) reads the tokens of a history as one sequence with the encoder of T5, and its decoder writes
the next code. Here an item of the history is the sum of the embeddings of its tokens, as in the network for which such
codes were invented (Lee et al. 2022, arXiv 2203.01941); self-attention reads the items as in SASRec; and a GRU writes
the code after the state of the history. So one pass learns from every item of a history, and a beam is one state,
without a key-value cache.

Shapes: B histories, L items, M targets, C tokens per code, V different tokens per position, m known items, W beams.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pixrec_core.blas import faiss
from pixrec_core.recommenders._sequence_training import DROPOUT, WIDTH, SequenceModel, SequenceNetwork
from pixrec_core.recommenders.base import TrainData, position_in_run
from pixrec_core.recommenders.sasrec import SelfAttention

TOKENS = 3  # of the quantisation, as in TIGER; one more follows
BITS = 8  # per token, so 256 different ones, as in TIGER; fewer with fewer texts
BEAMS = 32
LOGITS_PER_BLOCK = 8_000_000  # 32 MB; items that share a text need as many last tokens
CODES = "codes"  # name in the network's state dict


class CodeTree(NamedTuple):
    """The prefixes of all codes; those of one length are numbered in lexical order.

    Attributes:
        keys: for each length from 1 to C, V * (number of the prefix without its last token) + its last token, sorted.
            The position of a key is the number of its prefix.
        items: (m,) number of the whole code of each known item.
    """

    keys: list[Tensor]
    items: Tensor

    @classmethod
    def from_codes(cls, codes: Tensor, size: int) -> "CodeTree":
        """Build the tree of different codes (m, C), with tokens below `size`, which is V."""
        keys, numbers = list[Tensor](), torch.zeros(len(codes), dtype=torch.long)
        for tokens in codes.T:
            distinct, numbers = torch.unique(size * numbers + tokens, return_inverse=True)
            keys.append(distinct)
        return cls(keys, numbers)


class CodeNetwork(SequenceNetwork):
    """An encoder of histories, and a GRU that writes codes.

    Args:
        codes: (m + 1, C) codes of the known items after a row for padding.
        size: V, higher than every token.
        encoder: causal; maps (B, L, WIDTH) embeddings of items to states of the history.
        dropout: of the GRU, 0 to 1.
    """

    codes: Tensor

    def __init__(self, codes: Tensor, size: int, encoder: nn.Module, dropout: float) -> None:
        super().__init__()
        self.register_buffer(CODES, codes)
        self.tokens = nn.Parameter(torch.empty(codes.shape[1], size, WIDTH).normal_(std=0.02))
        self.encoder = encoder
        self.dropout = nn.Dropout(dropout)
        self.unit = nn.GRUCell(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    @cached_property
    def tree(self) -> CodeTree:
        """The codes of the known items."""
        return CodeTree.from_codes(self.codes[1:], self.tokens.shape[1])

    def forward(self, rows: Tensor) -> Tensor:
        items = self.tokens[torch.arange(len(self.tokens)), self.codes[rows]].sum(dim=-2)
        states: Tensor = self.encoder(items * math.sqrt(WIDTH))
        return states

    def logits(self, states: Tensor, position: int) -> Tensor:
        """Map states (..., WIDTH) to logits (..., V) of the token at a position of the code."""
        logits: Tensor = self.norm(self.dropout(states)) @ self.tokens[position].T
        return logits

    def write(self, states: Tensor, position: int, tokens: Tensor) -> Tensor:
        """Return the states (M, WIDTH) after a token (M,) at a position of the code."""
        following: Tensor = self.unit(self.dropout(self.tokens[position, tokens] * math.sqrt(WIDTH)), states)
        return following

    def loss(self, rows: Tensor) -> Tensor:
        labels = rows[:, 1:]
        real = labels > 0
        states, total = self(rows[:, :-1])[real], rows.new_zeros((), dtype=torch.float32)
        for position, tokens in enumerate(self.codes[labels[real]].T):
            total = total + functional.cross_entropy(self.logits(states, position), tokens)
            states = self.write(states, position, tokens)
        return total

    def item_scores(self, states: Tensor) -> Tensor:
        """Return log-probabilities (B, m) of the known items that beam search finds: all after the last beams.

        Other items have one score, below those.
        """
        users = max(1, LOGITS_PER_BLOCK // (BEAMS * self.tokens.shape[1]))
        starts = range(0, len(states), users)
        return torch.cat([self._search(states[start : start + users]) for start in starts])

    def _search(self, states: Tensor) -> Tensor:
        """Return `item_scores` of states (B, WIDTH), with beams x V logits of each in memory."""
        size, beams = self.tokens.shape[1], states[:, None]
        numbers = torch.zeros(len(states), 1, dtype=torch.long)
        scores = states.new_zeros(len(states), 1)
        for position, keys in enumerate(self.tree.keys):
            if position:
                scores, best = scores.topk(min(BEAMS, len(self.tree.keys[position - 1])))
                numbers = numbers.gather(1, best)
                parents = beams.gather(1, (best // size)[..., None].expand(-1, -1, WIDTH))
                written = self.write(parents.flatten(0, 1), position - 1, (best % size).flatten())
                beams = written.view(*best.shape, WIDTH)
            extended = scores[..., None] + self.logits(beams, position).log_softmax(dim=-1)
            wanted = size * numbers[..., None] + torch.arange(size)
            numbers = torch.searchsorted(keys, wanted).clamp(max=len(keys) - 1)
            scores = extended.where(keys[numbers] == wanted, -torch.inf).flatten(1)
            numbers = numbers.flatten(1)
        of_codes = torch.full((len(states), len(keys)), -torch.inf).scatter_reduce(1, numbers, scores, "amax")
        of_items = of_codes[:, self.tree.items]
        is_found = of_items.isfinite()
        lowest = of_items.where(is_found, torch.inf).amin(dim=1, keepdim=True)
        return of_items.where(is_found, lowest - 1)


def semantic_ids(features: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return different codes (m, TOKENS + 1) of items with features (m, F)."""
    bits = max(1, min(BITS, int(math.log2(len(np.unique(features, axis=0))))))
    quantiser = faiss.ResidualQuantizer(features.shape[1], TOKENS, bits)
    quantiser.cp.min_points_per_centroid = 1  # FAISS prints a warning below 39
    # Plain k-means of what the tokens so far leave: on the texts of a shop faster and closer than the default.
    quantiser.train_type, quantiser.max_beam_size = faiss.ResidualQuantizer.Train_default, 1
    quantiser.train(np.resize(features, (max(2, len(features)), features.shape[1])))  # two means need two rows
    tokens = faiss.unpack_bitstrings(quantiser.compute_codes(features), TOKENS, bits).astype(np.int64)
    _, groups = np.unique(tokens, axis=0, return_inverse=True)
    order = np.argsort(groups, kind="stable")
    last = np.empty(len(tokens), np.int64)
    last[order] = position_in_run(groups[order])
    return np.column_stack([tokens, last])


@dataclass(frozen=True, eq=False, kw_only=True)
class SemanticIds(SequenceModel):
    """A trained network; its codes are among its weights."""

    encoder = SelfAttention
    item_rows = CODES

    @classmethod
    def fit(cls, train: TrainData) -> Self:
        """Quantise the texts of the items with training interactions, then train a network on their codes."""
        known = np.unique(train.train.values)
        codes = semantic_ids(train.text_features().values[known])
        rows, size = torch.from_numpy(np.pad(codes, ((1, 0), (0, 0)))), int(codes.max()) + 1
        return cls.train(train, known, lambda: CodeNetwork(rows, size, cls.encoder(DROPOUT), DROPOUT))

    def create_network(self) -> CodeNetwork:
        """Return a network with the codes and the shapes of `weights`, without dropout."""
        size = self.weights["tokens"].shape[1]
        return CodeNetwork(torch.from_numpy(self.weights[CODES]), size, type(self).encoder(0.0), 0.0)


fit, load = SemanticIds.fit, SemanticIds.load
