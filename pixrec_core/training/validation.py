"""Validation during training: the targets of the tuning users, ranked among the whole catalogue."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixrec_core import schemas
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.validation import target_ranks, tuning_users
from pixrec_core.models.dual_tower import Tower
from pixrec_core.paths import DatasetPaths
from pixrec_core.ranking_table import id_lists, popularity_ranks
from pixrec_core.retrieval.encode import ItemsEncoder
from pixrec_core.retrieval.token_encoder import Encoder

SCORES_PER_BLOCK = 2**25  # users x items that are scored at once, 128 MiB
#: Candidates for `TowerConfig.seen_offset`. With the last one, seen items come last.
SEEN_OFFSETS = (0.0, -0.05, -0.1, -0.2, -0.4, -2.0)


class Validation:
    """Computes validation metrics of a model, for the same users after every epoch.

    `encoder` returns the encoder of a model, which reads the newest `max_history_len` items of a history. `users` is
    the number of users.
    """

    def __init__(
        self,
        paths: DatasetPaths,
        encoder: Callable[[Any], Encoder | ItemsEncoder],
        max_history_len: int,
        engine: Engine = LOCAL,
    ) -> None:
        users = read_sequences(paths, schemas.VALIDATION)
        users = users.filter(tuning_users(users.height))
        self.users = users.height
        catalogue = read_items(paths)
        sequences = id_lists(users[schemas.ITEMS], catalogue[schemas.ITEM]).to_list()
        self._histories = [sequence[-1 - max_history_len : -1] for sequence in sequences]
        self._seen = [sequence[:-1] for sequence in sequences]
        self._times = [times[-1 - max_history_len : -1] for times in users[schemas.TIMESTAMPS].to_list()]
        self._targets = np.array([sequence[-1] for sequence in sequences])
        self._popularity_ranks = popularity_ranks(catalogue[schemas.TRAIN_COUNT].to_numpy())
        self._encoder = encoder
        self._engine = engine

    def __call__(self, model: Tower) -> dict[str, float]:
        """Return Recall@10 and NDCG@10 over the whole catalogue, seen items allowed.

        They are those of the entry `seen_offset`, the one of `SEEN_OFFSETS` with the highest NDCG@10.
        """
        encoder = self._encoder(model)
        items = encoder.item_vectors(self._engine)
        users = encoder.user_vectors(self._histories, self._engine, self._times)
        size = max(1, SCORES_PER_BLOCK // len(items))
        blocks = [slice(start, start + size) for start in range(0, self.users, size)]
        ranks = np.concatenate([self._ranks_by_offset(users[b] @ items.T, b) for b in blocks], axis=1)
        ndcg = metrics.ndcg(ranks, 10).mean(axis=1)
        best = int(ndcg.argmax())
        return {
            "recall@10": float(metrics.recall(ranks[best], 10).mean()),
            "ndcg@10": float(ndcg[best]),
            "seen_offset": SEEN_OFFSETS[best],
        }

    def _ranks_by_offset(self, scores: NDArray[np.float32], block: slice) -> NDArray[np.float64]:
        """Return the ranks (offsets, B) of the targets of a block of users, given their scores (B, N)."""
        seen = self._seen[block]
        rows, columns = np.repeat(np.arange(len(seen)), list(map(len, seen))), np.concatenate(seen)
        plain, ranks = scores[rows, columns], []
        for offset in SEEN_OFFSETS:
            scores[rows, columns] = plain + np.float32(offset)
            ranks.append(target_ranks(scores, self._targets[block], self._popularity_ranks))
        return np.stack(ranks)


class MeanValidation:
    """Computes validation metrics of a joint training: of each dataset, and their mean with equal weights."""

    def __init__(self, datasets: Mapping[str, Validation]) -> None:
        self._datasets = datasets

    def __call__(self, model: Tower) -> dict[str, float]:
        """Return mean Recall@10, NDCG@10 and seen offset, then `<dataset>/recall@10` and so on."""
        by_dataset = {name: validate(model) for name, validate in self._datasets.items()}
        metric_names = next(iter(by_dataset.values()))
        means = {name: float(np.mean([values[name] for values in by_dataset.values()])) for name in metric_names}
        return means | {f"{name}/{metric}": v for name, values in by_dataset.items() for metric, v in values.items()}
