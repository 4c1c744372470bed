"""One trainer for networks that read a sequence of items and name the next one.

Every item of a training sequence but the first is a target, with cross-entropy over all items that
training knows: with one sampled negative a target, as first published, SASRec falls far behind
(Klenitskiy and Vasilev 2023, "Turning Dross Into Gold Loss"). Past `FULL_SOFTMAX` items the softmax
is over a sample. Training stops when validation NDCG@10 has not risen for `PATIENCE` epochs and
keeps the best one; the dropout is chosen by the same figure.

Items that training never saw are left out of histories and ranked last; a history of such items
alone tells nothing, and gets the popularity order.
"""

import copy
import logging
import math
from collections.abc import Callable
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pixrec_core.baselines._contract import FittedModel, TrainData
from pixrec_core.baselines._item_lists import ItemLists, Scorer, Scores
from pixrec_core.baselines._sequence_windows import Vocabulary, Windows
from pixrec_core.baselines._tuning import Validation, best

# Chosen on validation targets of fashion purchases, of film ratings and of the sample, with the batch of
# `_sequence_windows`: 32 windows at 1e-3 and 128 at 3e-3 are within a standard error of it, more dropout is no better.
WIDTH = 64  # numbers in an item's vector
LEARNING_RATE = 2e-3
DROPOUTS = (0.1, 0.3)  # tried in turn
EPOCHS = 60  # at most
PATIENCE = 6  # epochs without a better validation NDCG@10
STEPS_AN_EPOCH = 1000  # at most: large data are validated in between
FULL_SOFTMAX = 20_000  # items; past it a target is told from `NEGATIVES` items drawn anew for each step
NEGATIVES = 4096
SCORED_AT_A_TIME = 256  # histories
SEED = 0

#: From its dropout (0 to 1), a network from vectors of items in order, (B, L, WIDTH), to vectors of what
#: comes next after each, (B, L, WIDTH), none of which sees an item further on.
MakeEncoder = Callable[[float], nn.Module]
log = logging.getLogger(__name__)


class NextItem(nn.Module):
    """Item vectors around an encoder: the same ones are read and are told apart at the end.

    Args:
        n_known: k, rows besides row 0, which is padding.
        encoder: as `MakeEncoder` makes it.
    """

    def __init__(self, n_known: int, encoder: nn.Module) -> None:
        super().__init__()
        self.items = nn.Embedding(n_known + 1, WIDTH, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        self.encoder = encoder

    @property
    def known(self) -> Tensor:
        """(k, WIDTH) vectors of the known items."""
        return self.items.weight[1:]

    def forward(self, rows: Tensor) -> Tensor:
        """(B, L) rows, 0 from where each sequence ends -> (B, L, WIDTH)."""
        after: Tensor = self.encoder(self.items(rows) * math.sqrt(WIDTH))
        return after

    def loss(self, rows: Tensor) -> Tensor:
        """Mean cross-entropy of all items but the first of (B, L) rows."""
        targets = rows[:, 1:]
        real = targets > 0
        after, own = self(rows[:, :-1])[real], targets[real] - 1
        if len(self.known) <= FULL_SOFTMAX:
            return functional.cross_entropy(after @ self.known.T, own)
        return sampled_loss(after, own, self.known, torch.randint(len(self.known), (NEGATIVES,)))


def sampled_loss(after: Tensor, own: Tensor, items: Tensor, drawn: Tensor) -> Tensor:
    """Cross-entropy against a uniform sample, each of which stands for k / S of all items.

    Args:
        after: (M, WIDTH).
        own: (M,) target of each, a row of `items`.
        items: (k, WIDTH).
        drawn: (S,) rows of `items`; the target itself does not count among them.
    """
    right = (after * items[own]).sum(dim=1, keepdim=True)
    others = after @ items[drawn].T + math.log(len(items) / len(drawn))
    others = others.masked_fill(drawn == own[:, None], -torch.inf)
    return functional.cross_entropy(torch.cat([right, others], dim=1), torch.zeros_like(own))


def fit(make_encoder: MakeEncoder, train_data: TrainData) -> FittedModel:
    """Train a network with each of `DROPOUTS`; the one that validates best is kept."""
    vocabulary = Vocabulary.of(train_data.train, train_data.n_items)
    windows = Windows.to_learn(vocabulary.rows(train_data.train))
    validation = Validation(train_data)

    def train(dropout: float) -> Scorer:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model = NextItem(len(vocabulary.known), make_encoder(dropout))
            scorer = _scorer(model, vocabulary)
            _train(model, windows, lambda: validation.ndcg(scorer))
        return scorer

    return best((({"dropout": dropout}, train(dropout)) for dropout in DROPOUTS), train_data)


def _train(model: NextItem, windows: Windows, validate: Callable[[], float]) -> None:
    """Train in place until validation no longer rises; ends with the weights that validated best."""
    random = np.random.default_rng(SEED)
    optimiser = torch.optim.Adam(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98))
    highest, kept, since = -1.0, model.state_dict(), 0
    for epoch in range(EPOCHS):
        model.train()
        for rows in islice(windows.shuffled(random), STEPS_AN_EPOCH):
            optimiser.zero_grad()
            model.loss(rows).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        ndcg = validate()
        log.debug("epoch %d: validation NDCG@10 %.4f", epoch + 1, ndcg)
        since += 1
        if ndcg > highest:
            highest, kept, since = ndcg, copy.deepcopy(model.state_dict()), 0
        if since == PATIENCE:
            break
    model.load_state_dict(kept)


def _scorer(model: NextItem, vocabulary: Vocabulary) -> Scorer:
    """Scores by the model as it is when they are asked for."""

    @torch.inference_mode()
    def score(histories: ItemLists) -> Scores:
        model.eval()
        windows = Windows.newest(vocabulary.rows(histories))
        scores = np.zeros((len(histories), len(vocabulary.row)), np.float32)
        told = np.flatnonzero(windows.lengths)
        for start in range(0, len(told), SCORED_AT_A_TIME):
            users = told[start : start + SCORED_AT_A_TIME]
            newest = torch.from_numpy(windows.lengths[users] - 1)
            after = model(windows.padded(users))[torch.arange(len(users)), newest]
            logits = (after @ model.known.T).numpy()
            scores[users] = logits.min(axis=1, keepdims=True) - 1
            scores[np.ix_(users, vocabulary.known)] = logits
        return scores

    return score
