"""Content tower: a linear dual tower over latent semantic analysis of the full item texts.

The features of a text are its vector by `model.text_encoder`. One linear map per tower turns features into vectors; the
user vector is the weighted mean over the history, with a learned weight per position from the newest item. Training is
a softmax over the texts of all sold items. Items without sales have vectors too, from their text.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pixrec_core.recommenders._sequence_training import FULL_SOFTMAX, NEGATIVES
from pixrec_core.recommenders._tuning import choose_model, validation_ndcg
from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData

# The best of few settings on validation targets of one data set, fashion purchases.
MAX_HISTORY = 50  # newest items that are read
LEARNING_RATE = 3e-3
DROPOUT = 0.1  # of features
BATCH = 256  # targets, at most
LEAST_BATCH, LEAST_STEPS = 16, 32  # small data have smaller batches, so that an epoch has as many steps
EPOCHS = 30  # at most
STEPS_PER_EPOCH = 300  # at most: large data are validated in between
PATIENCE = 4  # epochs without a better validation NDCG@10
SEED = 0

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False, kw_only=True)
class ContentTower(Model):
    """Vectors of all texts for both towers.

    Attributes:
        text_rows: (n,) row of each item's text; items of one text share it, so that their scores are equal.
        item_vectors: (t, D); their length is the inverse temperature of the softmax, or 0 without a word.
        user_vectors: (t, D) of unit length, of items in a history, or 0 without a word.
        position_weights: (MAX_HISTORY,) weight of an item by the number of items after it.
    """

    text_rows: NDArray[np.int64]
    item_vectors: NDArray[np.float32]
    user_vectors: NDArray[np.float32]
    position_weights: NDArray[np.float32]

    def scores(self, histories: ItemLists) -> Scores:
        positions = histories.from_newest
        weights = np.where(
            positions < MAX_HISTORY, self.position_weights[np.minimum(positions, MAX_HISTORY - 1)], np.float32(0)
        )
        texts = replace(histories, values=self.text_rows[histories.values])
        sums = np.asarray(texts.matrix(len(self.user_vectors), weights) @ self.user_vectors)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        users = np.divide(sums, norms, out=np.zeros_like(sums), where=norms > 1e-6)
        scores: Scores = (users @ self.item_vectors.T)[:, self.text_rows]
        return scores


load = ContentTower.load


def fit(train: TrainData) -> Model:
    """Train with either kind of example and return the model with the better validation NDCG@10.

    `in_order`: a target follows its history. Otherwise the history of a target is the rest of the user's sequence,
    which suits baskets: their items have no order.
    """
    _, first, text_rows = np.unique(np.array(train.texts, np.object_), return_index=True, return_inverse=True)
    features = torch.from_numpy(train.text_features().values[first])
    return choose_model((_fit(features, text_rows, train, in_order=in_order) for in_order in (False, True)), train)


class _Towers(nn.Module):
    """The learned parts: a map per tower, position weights and the temperature.

    Args:
        features: (t, F) of all texts.
    """

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features
        self.dropout = nn.Dropout(DROPOUT)
        size = features.shape[1]
        self.item_map, self.user_map = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)
        with torch.no_grad():  # both towers start as the features themselves: cosine similarity of texts
            self.item_map.weight.copy_(torch.eye(size))
            self.user_map.weight.copy_(torch.eye(size))
        self.position_logits = nn.Parameter(-0.5 * torch.log1p(torch.arange(MAX_HISTORY, dtype=torch.float32)))
        self.log_scale = nn.Parameter(torch.tensor(10.0).log())

    def item_vectors(self, texts: Tensor) -> Tensor:
        """Return (len(texts), D)."""
        return self.log_scale.exp() * functional.normalize(self.item_map(self.dropout(self.features[texts])), dim=1)

    def history_vectors(self, texts: Tensor) -> Tensor:
        """Return (len(texts), D)."""
        return functional.normalize(self.user_map(self.dropout(self.features[texts])), dim=1)

    def user_vectors(self, rows: Tensor, texts: Tensor, positions: Tensor, n_users: int) -> Tensor:
        """Return (n_users, D), given the user, text and position from the newest of each history entry."""
        distinct, inverse = torch.unique(texts, return_inverse=True)
        weighted = self.position_logits[positions].exp()[:, None] * self.history_vectors(distinct)[inverse]
        sums = torch.zeros(n_users, weighted.shape[1]).index_add(0, rows, weighted)
        return functional.normalize(sums, dim=1)

    @torch.no_grad()
    def model(self, text_rows: NDArray[np.int64], train: TrainData, *, in_order: bool) -> ContentTower:
        """Return the model with the present weights."""
        self.eval()
        texts = torch.arange(len(self.features))
        return ContentTower(
            popularity_ranks=train.popularity_ranks,
            chosen={"in_order": in_order},
            text_rows=text_rows,
            item_vectors=self.item_vectors(texts).numpy(),
            user_vectors=self.history_vectors(texts).numpy(),
            position_weights=self.position_logits.exp().numpy(),
        )


def _fit(features: Tensor, text_rows: NDArray[np.int64], train: TrainData, *, in_order: bool) -> ContentTower:
    """Train until validation NDCG@10 has not risen for `PATIENCE` epochs; return the best epoch."""
    random = np.random.default_rng(SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        towers = _Towers(features)
        lists = replace(train.train, values=text_rows[train.train.values])
        sold = torch.from_numpy(np.unique(lists.values))
        optimiser = torch.optim.AdamW(towers.parameters(), LEARNING_RATE, weight_decay=0.0)
        best = towers.model(text_rows, train, in_order=in_order)
        highest, epochs_since = validation_ndcg(best, train), 0
        for epoch in range(EPOCHS):
            towers.train()
            batches = _batches(lists, train.times, random, in_order=in_order)
            for batch in islice(batches, STEPS_PER_EPOCH):
                optimiser.zero_grad()
                _loss(towers, batch, sold).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            model = towers.model(text_rows, train, in_order=in_order)
            ndcg = validation_ndcg(model, train)
            log.debug("epoch %d: validation NDCG@10 %.4f", epoch + 1, ndcg)
            epochs_since += 1
            if ndcg > highest:
                best, highest, epochs_since = model, ndcg, 0
            if epochs_since == PATIENCE:
                break
    return best


@dataclass(frozen=True)
class _Batch:
    """Histories and targets; the first three have one value per history entry.

    Attributes:
        rows: which target.
        texts: of the history's items.
        positions: number of items after it in the history.
        targets: (B,) texts.
    """

    rows: NDArray[np.int64]
    texts: NDArray[np.int64]
    positions: NDArray[np.int64]
    targets: NDArray[np.int64]


def _loss(towers: _Towers, batch: _Batch, sold: Tensor) -> Tensor:
    """Return the mean cross-entropy of the targets over all `sold` texts (s,), sorted; or over a sample of many."""
    rows, texts, positions, targets = map(torch.from_numpy, (batch.rows, batch.texts, batch.positions, batch.targets))
    users = towers.user_vectors(rows, texts, positions, len(targets))
    if len(sold) <= FULL_SOFTMAX:
        return functional.cross_entropy(users @ towers.item_vectors(sold).T, torch.searchsorted(sold, targets))
    sample = sold[torch.randint(len(sold), (NEGATIVES,))]
    positive = (users * towers.item_vectors(targets)).sum(dim=1, keepdim=True)
    # Each sampled text stands for len(sold) / NEGATIVES texts.
    others = users @ towers.item_vectors(sample).T + math.log(len(sold) / NEGATIVES)
    others = others.masked_fill(sample == targets[:, None], -torch.inf)
    return functional.cross_entropy(torch.cat([positive, others], dim=1), torch.zeros_like(targets))


def _batches(
    lists: ItemLists, times: NDArray[np.int64], random: np.random.Generator, *, in_order: bool
) -> Iterator[_Batch]:
    """Yield every target of the training sequences once, in random order; items of one time get a random order."""
    rows = lists.rows
    values = lists.values[np.lexsort((random.random(len(rows)), times, rows))]
    starts, ends = lists.offsets[:-1][rows], lists.offsets[1:][rows]
    entries = np.arange(len(values))
    examples = np.flatnonzero(entries > starts if in_order else ends - starts > 1)
    size = min(BATCH, max(LEAST_BATCH, len(examples) // LEAST_STEPS))
    order = random.permutation(examples)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        last = chosen if in_order else ends[chosen]
        first = np.maximum(starts[chosen], last - MAX_HISTORY - (0 if in_order else 1))
        lengths = last - first
        target_rows = np.repeat(np.arange(len(chosen)), lengths)
        entry = np.arange(len(target_rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[target_rows]
        target_entry = chosen[target_rows]
        # A target that is taken out of the list brings the items before it one position closer to the end.
        positions = last[target_rows] - 1 - entry - (0 if in_order else entry < target_entry)
        keep = (entry != target_entry) & (positions < MAX_HISTORY)
        yield _Batch(target_rows[keep], values[entry[keep]], positions[keep].astype(np.int64), values[chosen])
