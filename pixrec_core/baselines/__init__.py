"""Methods without a model that every variant is measured against: one module a baseline.

A baseline module has one function:

`fit(train_data: TrainData) -> FittedModel`
    learns from training sequences, texts and photos, and may choose its settings by validation
    targets, never by test ones. It returns a function from a batch of B histories to float32 scores
    (B, n), higher is better, and what it has chosen. Equal scores are ordered by training
    popularity, then by item id, so a user about whom a baseline knows nothing gets the popularity
    order. The same train_data gives the same scores.

Its file name is its name in rankings, metrics and the report. Modules are imported only when they
are fitted: this package loads without torch.
"""

import logging
import time
from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files
from pixrec_core.baselines._contract import TrainData, before_target, indexed
from pixrec_core.baselines._item_lists import ItemLists, Scorer
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.ranking_table import popularity_places, to_ranking, top_items, write_ranking
from pixrec_core.schemas import ITEM, TEST, USER
from pixrec_core.settings import RetrievalSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

SCORES_AT_A_TIME = 4_000_000  # users x items in a batch; some 150 MB while it is sorted


def rank_all(settings: RetrievalSettings, paths: DatasetPaths) -> Stats:
    """Rank the catalogue for every test user with every baseline.

    The folder of rankings is replaced as a whole, so one of a removed baseline does not linger.

    Raises:
        MissingArtefactError: the sequences have not been made.
    """
    train_data = TrainData.read(paths)
    item_ids, test = read_items(paths)[ITEM], read_sequences(paths, TEST)
    histories = indexed(before_target(test), item_ids)
    seconds, chosen = {}, {}
    with files.replacing(paths.baselines) as folder:
        for name in plugin_names(__name__):
            start = time.monotonic()
            fitted = load_plugin(__name__, name).fit(train_data)
            batches = rank(
                fitted.score, train_data.train, histories, users=test[USER], item_ids=item_ids, depth=settings.depth
            )
            rows = write_ranking(folder / f"{name}.parquet", batches)
            seconds[name] = round(time.monotonic() - start, 3)
            chosen[name] = dict(fitted.chosen)
            log.info("baseline %s: %s rows in %.1f s%s", name, f"{rows:,}", seconds[name], _told(fitted.chosen))
    return {
        "users": test.height,
        "items": len(item_ids),
        "baselines": sorted(seconds),
        "seconds": seconds,
        "chosen": {name: settings for name, settings in chosen.items() if settings},
    }


def _told(chosen: Mapping[str, float]) -> str:
    """Chosen settings as the end of a log line."""
    return "".join(f", {name} {value:g}" for name, value in chosen.items())


def rank(
    scorer: Scorer, train: ItemLists, histories: ItemLists, *, users: pl.Series, item_ids: pl.Series, depth: int
) -> Iterator[pl.DataFrame]:
    """Frames of `RANKING_SCHEMA`: for each user `depth` items and one more for each different item of the history."""
    n_items = len(item_ids)
    places = popularity_places(np.bincount(train.values, minlength=n_items))
    for batch, some in histories.batches(max(1, SCORES_AT_A_TIME // n_items)):
        lengths: NDArray[np.int64] = depth + np.diff(some.incidence(n_items).indptr)
        indices, scores = top_items(scorer(some), lengths, places)
        yield to_ranking(users[batch], item_ids, indices, scores)
