"""Choice of settings by validation NDCG@10, the same for every method that has settings."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeVar

import numpy as np

from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.validation import target_ranks
from pixrec_core.recommenders.base import ItemLists, Model, Scores, TrainData

USERS_PER_BATCH = 256
NDCG = "validation_ndcg@10"

AnyModel = TypeVar("AnyModel", bound=Model)


def validation_ndcg(model: Model, train: TrainData) -> float:
    """Return the mean NDCG@10 over validation targets among the whole catalogue; 0 without validation users."""
    (ndcg,) = validation_ndcgs(1, train, USERS_PER_BATCH, lambda histories: [model.scores(histories)])
    return ndcg


def validation_ndcgs(
    models: int, train: TrainData, users_per_batch: int, score: Callable[[ItemLists], Iterable[Scores]]
) -> list[float]:
    """Return the `validation_ndcg` of several models; `score` yields the scores of each for a batch of histories."""
    total = np.zeros(models)
    for users, histories in train.validation.batches(users_per_batch):
        ranks = [target_ranks(scores, train.targets[users], train.popularity_ranks) for scores in score(histories)]
        total += metrics.ndcg(np.stack(ranks), 10).sum(axis=1)
    means: list[float] = (total / max(1, len(train.validation))).tolist()
    return means


def choose_model(models: Iterable[AnyModel], train: TrainData) -> AnyModel:
    """Return the model with the highest validation NDCG@10, the first of equal ones; or that of `train.chosen`.

    `models` yields one model per setting, with the setting in `chosen`; at most two are in memory.

    Raises:
        ArtefactError: no model has the setting of `train.chosen`.
    """
    if train.chosen is not None:
        wanted = {name: value for name, value in train.chosen.items() if name != NDCG}
        found = next((model for model in models if dict(model.chosen) == wanted), None)
        if found is None:
            raise ArtefactError(f"a model was fitted with {wanted}, which this version does not try; run `pixrec run`")
        return replace(found, chosen=train.chosen)
    return best_model((model, validation_ndcg(model, train)) for model in models)


def best_model(measured: Iterable[tuple[AnyModel, float]]) -> AnyModel:
    """Return the model with the highest validation NDCG@10, the first of equal ones, with the metric in `chosen`."""
    with_metric = (replace(model, chosen={**model.chosen, NDCG: ndcg}) for model, ndcg in measured)
    return max(with_metric, key=lambda model: model.chosen[NDCG])
