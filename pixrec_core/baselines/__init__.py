"""Methods without a model that every variant is measured against: one module a baseline.

A baseline module has one function:

`fit(train, n_items) -> Scorer`
    learns from the training sequences alone and returns a function from a batch of B histories to
    float32 scores (B, n_items), higher is better. Equal scores are ordered by training popularity,
    then by item id, so a user about whom a baseline knows nothing gets the popularity order.

Its file name is its name in rankings, metrics and the report.
"""

import logging
import time
from collections.abc import Iterator

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files
from pixrec_core.baselines._item_lists import ItemLists, Scorer
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.ranking_table import popularity_places, to_ranking, top_items, write_ranking
from pixrec_core.schemas import ITEM, ITEMS, TEST, TRAIN, USER
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
    item_ids = read_items(paths)[ITEM]
    train, test = read_sequences(paths, TRAIN), read_sequences(paths, TEST)
    learned = indexed(train[ITEMS], item_ids)
    before_target = pl.col(ITEMS).list.slice(0, pl.col(ITEMS).list.len() - 1)
    histories = indexed(test.select(before_target)[ITEMS], item_ids)
    seconds = {}
    with files.replacing(paths.baselines) as folder:
        for name in plugin_names(__name__):
            start = time.monotonic()
            scorer = load_plugin(__name__, name).fit(learned, len(item_ids))
            batches = rank(scorer, learned, histories, users=test[USER], item_ids=item_ids, depth=settings.depth)
            rows = write_ranking(folder / f"{name}.parquet", batches)
            seconds[name] = round(time.monotonic() - start, 3)
            log.info("baseline %s: %s rows in %.1f s", name, f"{rows:,}", seconds[name])
    return {"users": test.height, "items": len(item_ids), "baselines": sorted(seconds), "seconds": seconds}


def indexed(lists: pl.Series, item_ids: pl.Series) -> ItemLists:
    """Lists of item ids as indices into `item_ids`, which is sorted and holds each of them."""
    values = lists.explode(empty_as_null=False).cast(pl.Enum(item_ids)).to_physical()
    return ItemLists.of(values.to_numpy(), lists.list.len().to_numpy())


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
