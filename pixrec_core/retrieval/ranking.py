"""The ranking stage: each test user's nearest items and, for a sample of users, lists by generative rankers."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from pixrec_core import files
from pixrec_core.data.sequences import read_measured_sequences, read_sequences
from pixrec_core.engine import Engine
from pixrec_core.evaluation.validation import stacking_users
from pixrec_core.paths import VariantPaths
from pixrec_core.plugins import load_plugin
from pixrec_core.progress import track
from pixrec_core.ranking_table import DENSE, SPEEDS, row_batches, to_ranking, write_ranking
from pixrec_core.retrieval import rankers
from pixrec_core.retrieval.index import ItemIndex, ListsRequest
from pixrec_core.retrieval.rankers import RankedItems, Ranker, UserBatch
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.schemas import ITEM, ITEMS, RANK, RANKING_SCHEMA, SCORE, TIMESTAMPS, USER, VALIDATION
from pixrec_core.settings import GenerativeSettings, RetrievalSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

USERS_PER_SEARCH = 1024  # exact search takes several times as long per user with 512
CELLS_PER_SEARCH = 1_024_000  # users x items of the longest list
USERS_PER_RANKER_BATCH = 8
SEED = 0


def rank_test_users(
    settings: RetrievalSettings, generative: GenerativeSettings, paths: VariantPaths, engine: Engine
) -> Stats:
    """Write rankings of test users and stacking users: `depth` items, and one more per distinct item of the history.

    The test users sampled by `generative` also get a list of the same length from each of its rankers.

    Raises:
        MissingArtefactError: there is no checkpoint or no index.
        ArtefactError: the index is damaged, or belongs to other vectors or another checkpoint.
    """
    retriever, test = Retriever.load(paths), read_measured_sequences(paths.dataset)
    validation = read_sequences(paths.dataset, VALIDATION)
    stacking = validation.filter(stacking_users(validation.height))
    files.remove(paths.validation_ranking)
    if stacking.height:  # the encoder takes no empty batch
        lists = _encode_users(retriever, stacking, settings.depth, engine)
        write_ranking(paths.validation_ranking, _dense_frames(retriever.item_index, stacking[USER], lists, engine))
    start = time.monotonic()
    lists = _encode_users(retriever, test, settings.depth, engine)
    rows = write_ranking(paths.ranking, _dense_frames(retriever.item_index, test[USER], lists, engine))
    vectors, lengths, histories, *_ = lists
    speeds = {DENSE: len(histories) / (time.monotonic() - start)}

    files.remove(paths.generative)
    if generative.rankers:
        sample = sample_users(generative, len(histories))
        batch = retriever.user_batch(
            [histories[user] for user in sample], vectors[sample], np.maximum(lengths[sample], generative.candidates)
        )
        request = RankRequest(test[USER][sample], lengths[sample], speeds[DENSE])
        speeds = _rank_generatively(generative, retriever, batch, request, paths)
    return {"users": len(histories), "rows": rows, "users_per_second": speeds}


def _encode_users(retriever: Retriever, sequences: pl.DataFrame, depth: int, engine: Engine) -> ListsRequest:
    """Return the request for lists of `depth` unseen items after the items before each target."""
    histories = [sequence[:-1] for sequence in retriever.encoder.numbers(sequences[ITEMS]).to_list()]
    times = [each[:-1] for each in sequences[TIMESTAMPS].to_list()]
    lengths = np.array([depth + len(set(history)) for history in histories], np.int64)
    vectors = retriever.encoder.user_vectors(histories, engine, times)
    return ListsRequest(vectors, lengths, histories, retriever.seen_offset, retriever.popularity_ranks)


def _dense_frames(
    item_index: ItemIndex, user_ids: pl.Series, request: ListsRequest, engine: Engine
) -> Iterator[pl.DataFrame]:
    """Rankings of all users, at most `USERS_PER_SEARCH` of them at a time."""
    items = pl.Series(item_index.items)
    parts = list(row_batches(request.lengths, USERS_PER_SEARCH, CELLS_PER_SEARCH))
    requests = [
        request._replace(queries=request.queries[p], lengths=request.lengths[p], seen=request.seen[p]) for p in parts
    ]
    found = engine.map_shards(item_index.nearest_lists, requests)
    for part, (rows, cosines) in zip(parts, found, strict=True):
        yield to_ranking(user_ids[part], items, rows, cosines)


def sample_users(settings: GenerativeSettings, users: int) -> NDArray[np.int64]:
    """Sorted indices of the users that generative rankers rank for; the same for every variant and run."""
    if not settings.users or settings.users >= users:
        return np.arange(users)
    return np.sort(np.random.default_rng(SEED).choice(users, settings.users, replace=False))


@dataclass(frozen=True)
class RankRequest:
    """The lists that each ranker has to fill.

    Attributes:
        users: (B,) ids.
        lengths: (B,) items in each user's list.
        dense_speed: users per second of the dense ranking, which is the input of every ranker.
    """

    users: pl.Series
    lengths: NDArray[np.int64]
    dense_speed: float


def _rank_generatively(
    settings: GenerativeSettings, retriever: Retriever, batch: UserBatch, request: RankRequest, paths: VariantPaths
) -> dict[str, float]:
    """Write the dense ranking of these users and that of each ranker, and return users per second by ranker.

    The time to prepare a ranker does not count.
    """
    catalogue, speeds = retriever.ranker_catalogue(paths), {DENSE: request.dense_speed}
    dense = [RankedItems(*each) for each in zip(batch.nearest, batch.cosines, strict=True)]
    with files.replacing(paths.generative) as folder:
        folder.mkdir()
        write_ranking(folder / f"{DENSE}.parquet", _list_frames(dense, batch, request, catalogue.items))
        for name in settings.rankers:
            ranker = load_plugin(rankers.__name__, name).create_ranker(catalogue, settings)
            start = time.monotonic()
            lists = rank_in_batches(ranker, batch, name)
            seconds = time.monotonic() - start + len(batch) / request.dense_speed
            speeds[name] = len(batch) / seconds
            rows = write_ranking(folder / f"{name}.parquet", _list_frames(lists, batch, request, catalogue.items))
            log.info("%s: %s rows, %.3g users/s", name, f"{rows:,}", speeds[name])
        files.write_json(folder / SPEEDS, speeds)
    return speeds


@torch.inference_mode()
def rank_in_batches(ranker: Ranker, users: UserBatch, name: str) -> list[RankedItems]:
    """A ranker's list of each user, in the users' order; batches hold histories of similar length."""
    found: dict[int, RankedItems] = {}
    order = np.argsort([len(history) for history in users.histories], kind="stable").tolist()
    starts = range(0, len(order), USERS_PER_RANKER_BATCH)
    batches = [order[start : start + USERS_PER_RANKER_BATCH] for start in starts]
    for rows in track(batches, f"{name}, batches of users", len(batches), log):
        found.update(zip(rows, ranker(users.take(rows)), strict=True))
    return [found[row] for row in range(len(users))]


def complete_list(ranked: RankedItems, nearest: NDArray[np.int64], length: int) -> RankedItems:
    """A list of `length` items: those of a ranker, then the nearest other items with score NaN.

    `nearest` has `length` or more items in dense order; -1 pads the end.
    """
    others = nearest[(nearest >= 0) & ~np.isin(nearest, ranked.items)]
    items = np.concatenate([ranked.items, others])[:length]
    scores = np.full(len(items), np.nan, np.float32)
    scores[: len(ranked.scores)] = ranked.scores[:length]
    return RankedItems(items, scores)


def _list_frames(
    lists: Sequence[RankedItems], batch: UserBatch, request: RankRequest, item_ids: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """Completed lists as one frame of `RANKING_SCHEMA` per user."""
    items = pl.Series(item_ids)
    for user, *each in zip(request.users, lists, batch.nearest, request.lengths, strict=True):
        rows, scores = complete_list(*each)
        columns = {USER: [user] * len(rows), RANK: np.arange(1, len(rows) + 1), ITEM: items.gather(rows), SCORE: scores}
        yield pl.DataFrame(columns, schema_overrides=RANKING_SCHEMA, nan_to_null=True)
