"""Training of networks that read a sequence of items and predict the next one.

Each item of a training sequence but the first is a target, with cross-entropy over all known items. One sampled
negative per target, as in the paper of SASRec, is far worse (Klenitskiy and Vasilev 2023, "Turning Dross Into Gold
Loss"). With more than `FULL_SOFTMAX` items the softmax is over a sample. Training stops after `PATIENCE` epochs
without a better validation NDCG@10 and keeps the best epoch. Items with equal timestamps are shuffled in each epoch,
since their order in the file has no meaning.

Items without training interactions are left out of histories and ranked last. A history with only such items gets the
popularity order.
"""

import copy
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pixrec_core.recommenders._tuning import NDCG, validation_ndcg
from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData

# Chosen on validation targets of fashion purchases and of film ratings.
WIDTH = 64  # of an item's embedding
LEARNING_RATE = 2e-3
DROPOUT = 0.3
EPOCHS = 60  # at most
PATIENCE = 6  # epochs without a better validation NDCG@10
STEPS_PER_EPOCH = 500  # at most, so that large data are validated in between
FULL_SOFTMAX = 20_000  # items; with more, each step contrasts targets with `NEGATIVES` sampled items
NEGATIVES = 4096
WINDOW = 100  # items; a network reads the newest ones, and a longer training sequence is cut into several windows
STEPS_WANTED = 256  # per epoch, with a number of targets per step within `TARGETS`
TARGETS = (128, 1024)
POOL = 1280  # windows that are sorted by length together, to reduce padding
HISTORIES_PER_BATCH = 256
SEED = 0

log = logging.getLogger(__name__)


def embedding_rows(lists: ItemLists, known: NDArray[np.int64]) -> ItemLists:
    """Return lists of items as embedding rows, without unknown items: `known` (m,) is sorted, `known[i]` has row i + 1.

    Row 0 is padding.
    """
    rows = np.searchsorted(known, lists.values)
    is_known = np.append(known, -1)[rows] == lists.values
    return replace(lists, values=rows + 1).filter(is_known)


@dataclass(frozen=True)
class Windows:
    """Slices of embedding rows: window w is `values[starts[w]:ends[w]]`.

    Attributes:
        values: rows of all lists.
        starts: (windows,).
        ends: (windows,).
        instants: (values,) equal for adjacent values of one user and time, and not decreasing.
    """

    values: NDArray[np.int64]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    instants: NDArray[np.int64]

    @classmethod
    def to_train(cls, rows: ItemLists, times: NDArray[np.int64]) -> "Windows":
        """Cut lists, from the newest item back, so that each item but the first of a list is a target once.

        A window has up to `WINDOW` items and one more target. `times` (values,) do not decrease within a list.
        """
        is_new = (np.diff(times, prepend=-1) != 0) | (np.diff(rows.rows, prepend=-1) != 0)
        bounds = [
            (max(start, end - WINDOW - 1), end)
            for start, stop in pairwise(rows.offsets.tolist())
            for end in range(stop, start + 1, -WINDOW)
        ]
        starts, ends = np.array(bounds, np.int64).reshape(-1, 2).T
        return cls(rows.values, starts, ends, np.cumsum(is_new))

    @classmethod
    def newest(cls, rows: ItemLists) -> "Windows":
        """Return the last `WINDOW` items of each list."""
        starts = np.maximum(rows.offsets[:-1], rows.offsets[1:] - WINDOW)
        return cls(rows.values, starts, rows.offsets[1:], np.arange(len(rows.values)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        return self.ends - self.starts

    def padded(self, selected: NDArray[np.int64]) -> Tensor:
        """Return (B, L) rows of the selected windows, with 0 after the end of each."""
        columns = np.arange(self.lengths[selected].max())
        real = columns < self.lengths[selected, None]
        rows = np.zeros(real.shape, np.int64)
        rows[real] = self.values[(self.starts[selected, None] + columns)[real]]
        return torch.from_numpy(rows)

    def shuffled(self, random: np.random.Generator) -> Iterator[Tensor]:
        """Yield all windows once, in batches of similar lengths and numbers of targets.

        So each target has a similar weight in the training. Items of one instant get a random order.
        """
        values = self.values[np.lexsort((random.random(len(self.values)), self.instants))]
        windows = replace(self, values=values)
        order = random.permutation(len(self.starts))
        targets, targets_per_step, batches = self.lengths - 1, self.targets_per_step, []
        for start in range(0, len(order), POOL):
            pool = order[start : start + POOL]
            pool = pool[np.argsort(targets[pool], kind="stable")]
            batch = (np.cumsum(targets[pool]) - 1) // targets_per_step
            batches += np.split(pool, np.flatnonzero(np.diff(batch)) + 1)
        for index in random.permutation(len(batches)):
            yield windows.padded(batches[index])

    @property
    def targets_per_step(self) -> int:
        """About the number of targets in a batch; a window is not divided."""
        return int(np.clip((self.lengths - 1).sum() // STEPS_WANTED, *TARGETS))


class SequenceNetwork(nn.Module, ABC):
    """Maps (B, L) rows of known items, 0 after the end of each sequence, to states (B, L, WIDTH) of the history."""

    @abstractmethod
    def item_scores(self, states: Tensor) -> Tensor:
        """Map states (B, WIDTH) to scores (B, m) of the known items as the next one."""

    @abstractmethod
    def loss(self, rows: Tensor) -> Tensor:
        """Return the mean loss of all items but the first of (B, L) rows."""


class NextItemNetwork(SequenceNetwork):
    """An encoder between tied input and output embeddings of items.

    Args:
        n_known: m, embedding rows besides row 0, which is padding.
        encoder: causal; maps (B, L, WIDTH) embeddings to vectors of the item that follows each of them.
    """

    def __init__(self, n_known: int, encoder: nn.Module) -> None:
        super().__init__()
        self.items = nn.Embedding(n_known + 1, WIDTH, padding_idx=0)
        nn.init.normal_(self.items.weight, std=0.02)
        self.encoder = encoder

    @property
    def known(self) -> Tensor:
        """(m, WIDTH) embeddings of the known items."""
        return self.items.weight[1:]

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.encoder(self.items(rows) * math.sqrt(WIDTH))
        return outputs

    def item_scores(self, states: Tensor) -> Tensor:
        return states @ self.known.T

    def loss(self, rows: Tensor) -> Tensor:
        labels = rows[:, 1:]
        real = labels > 0
        outputs, targets = self(rows[:, :-1])[real], labels[real] - 1
        if len(self.known) <= FULL_SOFTMAX:
            return functional.cross_entropy(outputs @ self.known.T, targets)
        return sampled_loss(outputs, targets, self.known, torch.randint(len(self.known), (NEGATIVES,)))


def sampled_loss(outputs: Tensor, targets: Tensor, items: Tensor, negatives: Tensor) -> Tensor:
    """Return the cross-entropy against a uniform sample; each negative has the weight of m / S items.

    Args:
        outputs: (M, WIDTH).
        targets: (M,) rows of `items`.
        items: (m, WIDTH).
        negatives: (S,) rows of `items`; one that is the target does not count.
    """
    # One look-up, since the gradient of each has the size of `items`.
    rows = items[torch.cat([targets, negatives])]
    positive = (outputs * rows[: len(targets)]).sum(dim=1, keepdim=True)
    others = outputs @ rows[len(targets) :].T
    others += math.log(len(items) / len(negatives))
    others.masked_fill_(negatives == targets[:, None], -torch.inf)
    return functional.cross_entropy(torch.cat([positive, others], dim=1), torch.zeros_like(targets))


@dataclass(frozen=True, eq=False, kw_only=True)
class SequenceModel(Model):
    """A trained network.

    Attributes:
        encoder: class of the encoder, which takes its dropout (0 to 1); fixed by the subclass.
        item_rows: name of the weights (m + 1, ...) with a row per known item after that of padding.
        known: (m,) sorted indices of the items that the network knows.
        weights: the network's state dict.
    """

    encoder: ClassVar[type[nn.Module]]
    item_rows: ClassVar[str] = "items.weight"
    known: NDArray[np.int64]
    weights: Mapping[str, NDArray[Any]]

    @classmethod
    def fit(cls, train: TrainData) -> Self:
        """Train a network until validation no longer improves, or for the chosen number of epochs."""
        known = np.unique(train.train.values)
        return cls.train(train, known, lambda: NextItemNetwork(len(known), cls.encoder(DROPOUT)))

    @classmethod
    def train(cls, train: TrainData, known: NDArray[np.int64], create: Callable[[], SequenceNetwork]) -> Self:
        """Train the network that `create` returns with new weights. It knows the items of `known` (m,), sorted."""
        windows = Windows.to_train(embedding_rows(train.train, known), train.times)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = create()
            weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
            # `weights` shares memory with `network`, so `model` always has the trained weights.
            model = cls(popularity_ranks=train.popularity_ranks, known=known, weights=weights)
            if train.chosen is None:
                epoch, ndcg = _train_to_best(network, windows, lambda: validation_ndcg(replace(model), train))
                return replace(model, chosen={"epochs": epoch, NDCG: ndcg})
            for _ in islice(_epochs(network, windows), int(train.chosen["epochs"])):
                pass
            return replace(model, chosen=train.chosen)

    def for_catalogue(self, positions: NDArray[np.int64], ranks: NDArray[np.int64]) -> Self:
        """Return the model for a later catalogue with other popularity ranks; its new items are unknown to the model.

        `positions` (n,) is the index of each item in the later catalogue, -1 for a removed one; they ascend.
        """
        known = positions[self.known]
        left = np.flatnonzero(known < 0) + 1  # row 0 is padding
        weights = {**self.weights, self.item_rows: np.delete(self.weights[self.item_rows], left, axis=0)}
        return replace(self, popularity_ranks=ranks, known=known[known >= 0], weights=weights)

    @cached_property
    def network(self) -> SequenceNetwork:
        """The network with its weights, in evaluation mode."""
        network = self.create_network()
        network.load_state_dict({name: torch.from_numpy(array) for name, array in self.weights.items()})
        return network.eval()

    def create_network(self) -> SequenceNetwork:
        """Return a network of the shapes of `weights`, without dropout."""
        return NextItemNetwork(len(self.known), type(self).encoder(0.0))

    @torch.inference_mode()
    def scores(self, histories: ItemLists) -> Scores:
        windows = Windows.newest(embedding_rows(histories, self.known))
        scores = np.zeros((len(histories), self.n_items), np.float32)
        readable = np.flatnonzero(windows.lengths)
        for start in range(0, len(readable), HISTORIES_PER_BATCH):
            users = readable[start : start + HISTORIES_PER_BATCH]
            newest = torch.from_numpy(windows.lengths[users] - 1)
            outputs = self.network(windows.padded(users))[torch.arange(len(users)), newest]
            of_known = self.network.item_scores(outputs).numpy()
            scores[users] = of_known.min(axis=1, keepdims=True) - 1
            scores[np.ix_(users, self.known)] = of_known
        return scores


def _epochs(network: SequenceNetwork, windows: Windows) -> Iterator[int]:
    """Train in place; yield the number of each epoch, from 1, when it ends."""
    random = np.random.default_rng(SEED)
    optimiser = torch.optim.Adam(network.parameters(), LEARNING_RATE, betas=(0.9, 0.98), fused=True)
    for epoch in range(1, EPOCHS + 1):
        network.train()
        for rows in islice(windows.shuffled(random), STEPS_PER_EPOCH):
            optimiser.zero_grad()
            network.loss(rows).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        yield epoch


def _train_to_best(network: SequenceNetwork, windows: Windows, validate: Callable[[], float]) -> tuple[int, float]:
    """Train in place until validation no longer improves; end with the weights of the best epoch.

    Returns:
        The best epoch, from 1, and its validation NDCG@10.
    """
    highest, best_epoch, best_state = -1.0, 0, network.state_dict()
    for epoch in _epochs(network, windows):
        ndcg = validate()
        log.debug("epoch %d: validation NDCG@10 %.4f", epoch, ndcg)
        if ndcg > highest:
            highest, best_epoch, best_state = ndcg, epoch, copy.deepcopy(network.state_dict())
        if epoch - best_epoch == PATIENCE:
            break
    network.load_state_dict(best_state)
    return best_epoch, highest
