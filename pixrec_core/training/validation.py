"""How an epoch is judged: validation targets ranked among the whole catalogue."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from pixrec_core import schemas
from pixrec_core.data.sequences import read_sequences
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.evaluation import metrics
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.photo_store import PhotoStore, features_now
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import DatasetPaths
from pixrec_core.retrieval import encode

USERS = 2000  # at most; a standard error of about one point of Recall@10
SCORES = 2**25  # of users for items in memory at a time, 128 MiB


class Validation:
    """Ranks the validation targets of some users, the same ones after every epoch.

    Args:
        paths: of the dataset.
        inputs: what the towers read.
        photos: features under a frozen vision tower, pixels under one that learns; None for a variant without any.
        max_history_len: newest items of a history that are read.
        engine: what encodes.

    Attributes:
        users: how many are ranked for.
    """

    def __init__(
        self,
        paths: DatasetPaths,
        inputs: TowerInputs,
        photos: PhotoStore | None,
        max_history_len: int,
        engine: Engine = LOCAL,
    ) -> None:
        users = read_sequences(paths, schemas.VALIDATION)
        users = users.sample(min(USERS, users.height), seed=0).sort(schemas.USER)
        self.users = users.height
        sequences = inputs.numbers(users[schemas.ITEMS]).to_list()
        self._histories = [sequence[-1 - max_history_len : -1] for sequence in sequences]
        self._targets = np.array([sequence[-1] for sequence in sequences])
        self._inputs = inputs
        self._photos = photos
        self._engine = engine

    def __call__(self, model: DualTower) -> dict[str, float]:
        """Recall@10 and NDCG@10 over the whole catalogue, items of the history included."""
        photos = features_now(model, self._photos, self._engine) if self._photos else None
        encoder = encode.Encoder(model, self._inputs, photos)
        items = encoder.item_vectors(self._engine)
        users = encoder.user_vectors(self._histories, self._engine)
        ranks = target_ranks(users, items, self._targets)
        return {"recall@10": float(metrics.recall(ranks, 10).mean()), "ndcg@10": float(metrics.ndcg(ranks, 10).mean())}


class MeanValidation:
    """Judges a joint training: the mean over datasets, however many users each has, and each one's own metrics.

    Args:
        datasets: the validation of each, by name.
    """

    def __init__(self, datasets: Mapping[str, Validation]) -> None:
        self._datasets = datasets

    def __call__(self, model: DualTower) -> dict[str, float]:
        """Mean Recall@10 and NDCG@10, then `<dataset>/recall@10` and so on."""
        each = {name: validate(model) for name, validate in self._datasets.items()}
        means = {metric: float(np.mean([own[metric] for own in each.values()])) for metric in ("recall@10", "ndcg@10")}
        return means | {f"{name}/{metric}": value for name, own in each.items() for metric, value in own.items()}


def target_ranks(users: encode.Vectors, items: encode.Vectors, targets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rank of each user's target, from 1; equal scores, or none, stand before it: a collapsed model ranks last.

    Args:
        users: (U, D).
        items: (N, D).
        targets: (U,) rows of `items`.
    """
    ranks = np.empty(len(users))
    step = max(1, SCORES // len(items))
    for start in range(0, len(users), step):
        scores = users[start : start + step] @ items.T
        own = np.take_along_axis(scores, targets[start : start + step, None], axis=1)
        ranks[start : start + step] = (~(scores < own)).sum(axis=1)
    return ranks
