"""Rankings by the language model beside the dense one: the same users, histories, window and list lengths."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from pixrec_core import files
from pixrec_core.plugins import load_plugin
from pixrec_core.progress import track
from pixrec_core.ranking_table import DENSE, SPEEDS, write_ranking
from pixrec_core.retrieval import rankers
from pixrec_core.retrieval.rankers import Catalogue, RankedItems, Ranker, UserBatch
from pixrec_core.schemas import ITEM, RANK, RANKING_SCHEMA, SCORE, USER
from pixrec_core.settings import GenerativeSettings

log = logging.getLogger(__name__)

USERS_AT_A_TIME = 8  # whose texts are read side by side
SEED = 0


def drawn(settings: GenerativeSettings, users: int) -> NDArray[np.int64]:
    """Numbers of the users that are ranked for, in order: the same for every variant and day."""
    if not settings.users or settings.users >= users:
        return np.arange(users)
    return np.sort(np.random.default_rng(SEED).choice(users, settings.users, replace=False))


@dataclass(frozen=True)
class RankRequest:
    """What each ranker is to write.

    Attributes:
        users: (B,) ids.
        lengths: (B,) items in each user's list.
        dense_speed: users a second of the dense ranking, which every ranker starts from.
    """

    users: pl.Series
    lengths: NDArray[np.int64]
    dense_speed: float


def rank(
    settings: GenerativeSettings, catalogue: Catalogue, users: UserBatch, wanted: RankRequest, folder: Path
) -> dict[str, float]:
    """Write to a folder the dense ranking of these users, one of each ranker, and their speeds.

    Returns:
        Users a second by ranker, the dense one among them, without what is prepared once.
    """
    items, speeds = pl.Series(catalogue.items), {DENSE: wanted.dense_speed}
    with files.replacing(folder) as temporary:
        temporary.mkdir()
        own = [RankedItems(*each) for each in zip(users.nearest, users.cosines, strict=True)]
        write_ranking(temporary / f"{DENSE}.parquet", _frames(_completed(own, users, wanted), wanted.users, items))
        for name in settings.rankers:
            ranker = load_plugin(rankers.__name__, name).make(catalogue, settings)
            start = time.monotonic()
            lists = _completed(ranked(ranker, users, name), users, wanted)
            seconds = time.monotonic() - start + len(users) / wanted.dense_speed
            speeds[name] = len(users) / seconds
            rows = write_ranking(temporary / f"{name}.parquet", _frames(lists, wanted.users, items))
            log.info("%s: %s rows, %.3g users/s", name, f"{rows:,}", speeds[name])
        files.write_json(temporary / SPEEDS, speeds)
    return speeds


@torch.inference_mode()
def ranked(ranker: Ranker, users: UserBatch, name: str) -> list[RankedItems]:
    """What a ranker makes of all users, in batches of like length, in their order."""
    found: dict[int, RankedItems] = {}
    order = np.argsort([len(history) for history in users.histories], kind="stable").tolist()
    batches = [order[start : start + USERS_AT_A_TIME] for start in range(0, len(order), USERS_AT_A_TIME)]
    for rows in track(batches, f"{name}, batches of users", len(batches), log):
        found.update(zip(rows, ranker(users.take(rows)), strict=True))
    return [found[row] for row in range(len(users))]


def complete(own: RankedItems, nearest: NDArray[np.int64], length: int) -> RankedItems:
    """A list of `length` items: a ranker's own, then the nearest others, which have no score (NaN).

    Args:
        own: the ranker's.
        nearest: items in dense order, `length` of them or more; -1 past their end.
        length: items wanted.
    """
    others = nearest[(nearest >= 0) & ~np.isin(nearest, own.items)]
    items = np.concatenate([own.items, others])[:length]
    scores = np.full(len(items), np.nan, np.float32)
    scores[: len(own.scores)] = own.scores[:length]
    return RankedItems(items, scores)


def _completed(lists: Sequence[RankedItems], users: UserBatch, wanted: RankRequest) -> list[RankedItems]:
    return [complete(*each) for each in zip(lists, users.nearest, wanted.lengths, strict=True)]


def _frames(lists: Sequence[RankedItems], users: pl.Series, items: pl.Series) -> Iterator[pl.DataFrame]:
    """One frame of `RANKING_SCHEMA` a user."""
    for user, (rows, scores) in zip(users, lists, strict=True):
        columns = {USER: [user] * len(rows), RANK: np.arange(1, len(rows) + 1), ITEM: items.gather(rows), SCORE: scores}
        yield pl.DataFrame(columns, schema_overrides=RANKING_SCHEMA, nan_to_null=True)
