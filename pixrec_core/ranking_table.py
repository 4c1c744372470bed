"""The ranking table: from scores to ranked lists to Parquet, the same for every method.

Legend: B users in a batch, n items of the catalogue, k items of the longest list of a batch.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyarrow import parquet

from pixrec_core import files
from pixrec_core.schemas import ITEM, RANK, RANKING_SCHEMA, SCORE, USER

#: Files in a folder of rankings of the same users: the ranking by nearest vectors, and users per second by ranking.
DENSE: Final = "dense"
SPEEDS: Final = "speeds.json"
ITEMS_PER_CHUNK: Final = 16  # see `_promising`


def popularity_ranks(train_counts: NDArray[Any]) -> NDArray[np.int64]:
    """Return the position of each item, from 0, in the popularity order: by training count, then by index; both (n,).

    Items are indexed in the order of their ids, so ordering by index is ordering by id.
    """
    ranks = np.empty(len(train_counts), np.int64)
    ranks[np.argsort(-train_counts.astype(np.int64), kind="stable")] = np.arange(len(train_counts))
    return ranks


def id_indices(ids: pl.Expr, sorted_ids: pl.Series, *, strict: bool = True) -> pl.Expr:
    """Return the index of each id in `sorted_ids`; for an unknown id null, or an error if `strict`."""
    return ids.cast(pl.Enum(sorted_ids), strict=strict).to_physical().cast(pl.UInt32)


def id_lists(lists: pl.Series, sorted_ids: pl.Series) -> pl.Series:
    """Return lists of indices from lists of ids; as Python objects they would take ten times the memory."""
    return lists.list.eval(id_indices(pl.element(), sorted_ids).cast(pl.Int64))


def row_batches(lengths: NDArray[np.integer], most_rows: int, most_cells: int) -> Iterator[slice]:
    """Yield slices of consecutive rows, at most `most_rows` at a time.

    A batch with all its rows as long as the longest one has at most `most_cells`, or it is a single row: one user with
    tens of thousands of items, such as a guest account, must not make the arrays of a thousand others as wide.
    """
    start, longest = 0, 0
    for row, length in enumerate(lengths.tolist()):
        longest = max(longest, length)
        if row > start and (row - start == most_rows or longest * (row + 1 - start) > most_cells):
            yield slice(start, row)
            start, longest = row, length
    if start < len(lengths):
        yield slice(start, len(lengths))


def top_items(
    scores: NDArray[np.float32], lengths: NDArray[np.int64], popularity_ranks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the best items of each user, best first; equal scores are ordered by `popularity_ranks`.

    Args:
        scores: (B, n).
        lengths: (B,) items per user; a list is never longer than the catalogue.
        popularity_ranks: (n,) from the function of that name.

    Returns:
        Item indices (B, k), -1 after the end of a user's list, and their scores (B, k).
    """
    assert not np.isnan(scores).any(), "a score is not a number"
    n = scores.shape[1]
    k = min(int(lengths.max()), n)
    columns = np.broadcast_to(np.arange(n), scores.shape)
    if n > 2 * k * ITEMS_PER_CHUNK:
        columns = _promising(scores, k, popularity_ranks)
        scores = np.take_along_axis(scores, columns, axis=1)
    keys = _sortable(scores) + (n - 1 - popularity_ranks[columns])
    best = np.argpartition(keys, keys.shape[1] - k, axis=1)[:, keys.shape[1] - k :]
    order = np.argsort(-np.take_along_axis(keys, best, axis=1), axis=1)
    found = np.take_along_axis(best, order, axis=1)
    indices, best_scores = np.take_along_axis(columns, found, axis=1), np.take_along_axis(scores, found, axis=1)
    return np.where(np.arange(k) < lengths[:, None], indices, -1), best_scores


def _promising(scores: NDArray[np.float32], k: int, popularity_ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (B, k * `ITEMS_PER_CHUNK`) distinct items, with the k best of each user among them.

    Chunks of items that follow each other in the popularity order are ordered by their highest score, equal ones by
    popularity. The first k chunks have the k best items. This is much faster than a partial sort of all items.
    """
    users, n = scores.shape
    chunks = n // ITEMS_PER_CHUNK
    by_popularity = np.empty(n, np.int64)
    by_popularity[popularity_ranks] = np.arange(n)
    # Item c of chunk j is in column c * chunks + j, so that the maximum over c reads memory in its order.
    layout = by_popularity[: chunks * ITEMS_PER_CHUNK].reshape(chunks, ITEMS_PER_CHUNK).T
    in_layout = scores.take(layout.ravel(), axis=1, mode="clip")  # any mode but the default saves a copy
    highest = in_layout.reshape(users, ITEMS_PER_CHUNK, chunks).max(axis=1)
    keys = _sortable(highest) + np.arange(chunks, 0, -1)
    first = np.argpartition(keys, chunks - k, axis=1)[:, chunks - k :]
    promising = layout.T[first].reshape(users, -1)
    rest = np.broadcast_to(by_popularity[chunks * ITEMS_PER_CHUNK :], (users, n % ITEMS_PER_CHUNK))
    return np.concatenate([promising, rest], axis=1)


def _sortable(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return integers in the order of the scores, with the low 32 bits free to break ties.

    With distinct keys a partial sort is as deterministic as a full one.
    """
    bits = (scores.astype(np.float32) + np.float32(0)).view(np.int32)  # -0.0 becomes 0.0
    bits ^= (bits >> 31) & 0x7FFFFFFF  # negative floats count backwards
    return bits.astype(np.int64) << 32


def to_ranking(
    users: pl.Series, item_ids: pl.Series, indices: NDArray[np.int64], scores: NDArray[np.float32]
) -> pl.DataFrame:
    """Return ranked lists as rows of `RANKING_SCHEMA`.

    Args:
        users: (B,) ids.
        item_ids: (n,) ids.
        indices: (B, k), best first; -1 after the end of a user's list.
        scores: (B, k).
    """
    rows, columns = np.nonzero(indices >= 0)
    return pl.DataFrame(
        {
            USER: users.gather(rows),
            RANK: columns + 1,
            ITEM: item_ids.gather(indices[rows, columns]),
            SCORE: scores[rows, columns],
        },
        schema_overrides=RANKING_SCHEMA,
    )


def write_ranking(path: Path, batches: Iterable[pl.DataFrame]) -> int:
    """Write frames of `RANKING_SCHEMA` to one Parquet file, atomically and with one frame in memory at a time.

    Returns:
        The number of rows written.
    """
    oldest = pl.CompatLevel.oldest()
    rows = 0
    with files.replacing(path) as temporary:
        schema = RANKING_SCHEMA.to_frame().to_arrow(compat_level=oldest).schema
        with parquet.ParquetWriter(temporary, schema) as writer:
            for batch in batches:
                writer.write_table(batch.to_arrow(compat_level=oldest))
                rows += batch.height
    return rows
