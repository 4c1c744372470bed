"""Features of candidates for a learned blend: one row per user and item that any method recommends.

Legend: B histories in a batch, n items of the catalogue, k items of a list, M methods, m candidates of all B histories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from scipy import sparse

from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.paths import DatasetPaths
from pixrec_core.ranking_table import popularity_ranks
from pixrec_core.recommenders.base import ItemLists, before_target, flatten_arrays, index_lists, join_arrays
from pixrec_core.schemas import CATEGORIES, DAY_MS, HAS_IMAGE, ITEM, ITEMS, PRICE, TIMESTAMPS, TRAIN

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

RECENT_SHARES: Final = (0.1, 0.3)  # of the training interactions: the newest ones, for recent popularity
FUSION_OFFSET: Final = 10  # added to ranks in reciprocal rank fusion; not tuned
SAME_VISIT: Final = "same_visit"
MISSING_Z_SCORE: Final = -2.0  # in the linear model, of an item that a method does not recommend; not tuned

#: Features that do not depend on the methods, in the order of `Candidates.common`.
COMMON: Final = (
    "popularity",  # log(1 + training interactions)
    *(f"recent_popularity_{share:g}" for share in RECENT_SHARES),  # the same of the newest ones
    *(f"trend_{share:g}" for share in RECENT_SHARES),  # log ratio of recent to expected interactions
    "days_since_first_sale",  # at the time of the newest item of the history
    "days_since_last_sale",
    "price",
    "price_ratio",  # log of the price over the mean price of the history
    "has_photo",
    "category_similarity",  # cosine of the item's categories and those of the history, newer items weighing more
    "category_similarity_newest",  # the same with the newest item alone
    "seen",  # 1 where the item is in the history
    "times_seen",
    "items_since_seen",
    "days_since_seen",
    "history_length",
    "history_items",  # distinct
    "history_days",  # from the oldest item to the newest
    "history_tied",  # share of the history that has the time of an earlier item
    "history_repeats",  # share of the history that repeats an earlier item
    "newest_gap_days",  # between the newest two items
    SAME_VISIT,  # 1 where the request belongs to the visit of the newest item
)


#: Features of the linear part that do not depend on the methods: `seen`, and its products with other features. An item
#: is bought again by some people and not by others, and a linear model can say so by products only.
LINEAR_COMMON: Final = (
    "seen",
    "seen_x_history_length",
    "seen_x_history_repeats",
    "seen_x_history_tied",
    "seen_x_days_since_seen",
    "seen_x_items_since_seen",
    "seen_x_times_seen",
    "seen_x_same_time",  # as the newest item
    "seen_x_same_visit",
    "cold",  # 1 where the item has no training interactions
)


@dataclass(frozen=True)
class MethodLists:
    """The lists of one method.

    Attributes:
        items: (B, k), best first; -1 after the end of a list.
        scores: (B, k).
    """

    items: Ints
    scores: Floats


def timed_histories(sequences: pl.DataFrame, item_ids: pl.Series) -> ItemLists:
    """Return the histories of validation or test sequences with their times, without their targets.

    A request belongs to the visit of the newest item if the target has the same time. A shop knows this when it is
    asked, so it is no leak; see docs/how-it-works.md.
    """
    times = sequences.select(pl.col(TIMESTAMPS).list.slice(0, pl.col(TIMESTAMPS).list.len() - 1)).to_series()
    flat = times.explode(empty_as_null=False).cast(pl.Int64).to_numpy()
    same_visit = sequences.select(pl.col(TIMESTAMPS).list.get(-2, null_on_oob=True) == pl.col(TIMESTAMPS).list.last())
    known = same_visit.to_series().fill_null(value=False).to_numpy()
    return replace(index_lists(before_target(sequences), item_ids), times=flat, same_visit=known)


@dataclass(frozen=True, eq=False, kw_only=True)
class ItemTable:
    """Facts about the items of the catalogue, from training interactions and metadata.

    Attributes:
        counts: (n,) training interactions.
        recent_counts: (n, `RECENT_SHARES`) the same of the newest ones.
        first_sale: (n,) day since 1970 of the first training interaction; NaN without one.
        last_sale: (n,) the same of the last one.
        price: (n,) NaN where unknown.
        has_photo: (n,) 0 or 1.
        categories: (n, c) rows of unit length, rarer categories weighing more.
    """

    counts: Ints
    recent_counts: Ints
    first_sale: NDArray[np.float64]
    last_sale: NDArray[np.float64]
    price: Floats
    has_photo: Floats
    categories: sparse.csr_array

    @classmethod
    def read(cls, paths: DatasetPaths) -> Self:
        """Read sequences.duckdb.

        Raises:
            MissingArtefactError: the stage `sequences` has not run.
        """
        catalogue, train = read_items(paths), read_sequences(paths, TRAIN)
        items = index_lists(train[ITEMS], catalogue[ITEM]).values
        times = train[TIMESTAMPS].explode(empty_as_null=False).cast(pl.Int64).to_numpy()
        return cls.of(catalogue, items, times)

    @classmethod
    def of(cls, catalogue: pl.DataFrame, items: Ints, times: Ints) -> Self:
        """Build from the catalogue and from the item and time (ms) of each training interaction."""
        n = catalogue.height
        newest_first = np.sort(times)[::-1]
        starts = [newest_first[min(len(times) - 1, int(share * len(times)))] for share in RECENT_SHARES if len(times)]
        recent = [np.bincount(items[times >= start], minlength=n) for start in starts]
        first, last = np.full(n, np.inf), np.full(n, -np.inf)
        np.minimum.at(first, items, times / DAY_MS)
        np.maximum.at(last, items, times / DAY_MS)
        return cls(
            counts=np.bincount(items, minlength=n),
            recent_counts=np.stack(recent, axis=1) if recent else np.zeros((n, len(RECENT_SHARES)), np.int64),
            first_sale=np.where(np.isfinite(first), first, np.nan),
            last_sale=np.where(np.isfinite(last), last, np.nan),
            price=catalogue[PRICE].cast(pl.Float32).fill_null(float("nan")).to_numpy(),
            has_photo=catalogue[HAS_IMAGE].cast(pl.Float32).to_numpy(),
            categories=_category_vectors(catalogue[CATEGORIES]),
        )

    @cached_property
    def popularity_ranks(self) -> Ints:
        """(n,) position of each item in the popularity order."""
        return popularity_ranks(self.counts)

    def save(self, path: Path) -> None:
        """Write as safetensors."""
        save_file(flatten_arrays({each.name: getattr(self, each.name) for each in fields(self)}), path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ValueError: an array has the wrong shape; the message names it.
            KeyError, TypeError: an array is missing or unexpected.
        """
        table = cls(**join_arrays(load_file(path)))
        n = len(table.counts)
        shapes = {"recent_counts": (n, len(RECENT_SHARES)), "categories": (n, table.categories.shape[1])}
        for name in (each.name for each in fields(table)):
            if (found := getattr(table, name).shape) != (shape := shapes.get(name, (n,))):
                raise ValueError(f"{name} has shape {found} in place of {shape}")
        return table


def _category_vectors(categories: pl.Series) -> sparse.csr_array:
    """Return (n, c) rows of unit length; a category weighs log(n / items that have it)."""
    table = pl.DataFrame({"category": categories}).with_row_index("item").explode("category").drop_nulls().unique()
    names = table["category"].unique().sort()
    columns = table["category"].cast(pl.Enum(names)).to_physical().to_numpy().astype(np.int64)
    rows, n = table["item"].to_numpy().astype(np.int64), len(categories)
    weights = np.log(n / np.bincount(columns, minlength=len(names)))[columns]
    norms = np.sqrt(np.bincount(rows, weights**2, minlength=n))[rows]
    values = np.divide(weights, norms, out=np.zeros_like(weights), where=norms > 0).astype(np.float32)
    return sparse.csr_array((values, (rows, columns)), shape=(n, len(names)))


#: Fields of `Candidates` with one row per candidate.
PER_CANDIDATE: Final = ("rows", "items", "scores", "z_scores", "ranks", "common")


@dataclass(frozen=True)
class Candidates:
    """Candidates of B users, sorted by user and item.

    Attributes:
        methods: M names.
        rows: (m,) the user of each candidate.
        items: (m,).
        scores: (m, M) of each method; NaN where the item is not in the user's list.
        z_scores: (m, M) the same, standardised over the user's list.
        ranks: (m, M) rank from 1; NaN where the item is not in the list.
        common: (m, `COMMON`).
    """

    methods: tuple[str, ...]
    rows: Ints
    items: Ints
    scores: Floats
    z_scores: Floats
    ranks: Floats
    common: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, mask: NDArray[np.bool_]) -> "Candidates":
        """Return the candidates where `mask` (m,) is true."""
        return replace(self, **{name: getattr(self, name)[mask] for name in PER_CANDIDATE})

    def listed_by(self, methods: Sequence[str]) -> NDArray[np.bool_]:
        """Return (m,) whether one of these methods lists the item."""
        columns = [self.methods.index(method) for method in methods]
        return np.asarray(~np.isnan(self.ranks[:, columns]).all(axis=1), np.bool_)

    def of_methods(self, methods: Sequence[str]) -> "Candidates":
        """Return the candidates as they are with some of the methods only."""
        columns = [self.methods.index(method) for method in methods]
        kept = self.take(self.listed_by(methods))
        return replace(
            kept,
            methods=tuple(methods),
            scores=kept.scores[:, columns],
            z_scores=kept.z_scores[:, columns],
            ranks=kept.ranks[:, columns],
        )

    def feature(self, name: str) -> Floats:
        """Return (m,) a feature of `COMMON`."""
        return self.common[:, COMMON.index(name)]

    @property
    def cold(self) -> NDArray[np.bool_]:
        """(m,) whether the item has no training interactions."""
        cold: NDArray[np.bool_] = self.feature("popularity") == 0
        return cold

    def as_cold(self, mask: NDArray[np.bool_]) -> "Candidates":
        """Return the candidates as if the items where `mask` (m,) is true were cold.

        Methods that list no cold item have no scores for them. Candidates that no method lists are gone.
        """
        unknown = mask[:, None] & np.isnan(self.ranks[self.cold]).all(axis=0)
        scores, z_scores, ranks = (
            np.where(unknown, np.float32(np.nan), each) for each in (self.scores, self.z_scores, self.ranks)
        )
        common = self.common.copy()
        for column, name in enumerate(COMMON):
            if name.startswith(("popularity", "recent_", "trend_")):
                common[mask, column] = 0
            elif name in {"days_since_first_sale", "days_since_last_sale"}:
                common[mask, column] = np.nan
        kept = replace(self, scores=scores, z_scores=z_scores, ranks=ranks, common=common)
        return kept.of_methods(self.methods)

    def without_visit(self) -> "Candidates":
        """Return the candidates as for requests on a later visit."""
        common = self.common.copy()
        common[:, COMMON.index(SAME_VISIT)] = 0
        return replace(self, common=common)

    def linear_matrix(self) -> Floats:
        """Return (m, linear features), in the order of `linear_feature_names`."""
        z_scores = np.where(np.isnan(self.z_scores), np.float32(MISSING_Z_SCORE), self.z_scores)
        reciprocal_ranks = np.nan_to_num(1 / (FUSION_OFFSET + self.ranks))
        cold, same_visit = self.cold.astype(np.float32), self.feature(SAME_VISIT)
        return np.column_stack(
            [
                z_scores,
                reciprocal_ranks,
                cold[:, None] * reciprocal_ranks,
                same_visit[:, None] * z_scores,
                same_visit[:, None] * reciprocal_ranks,
                *self._products(),
                cold,
            ]
        )

    def _products(self) -> list[Floats]:
        """Return (m,) for each of `LINEAR_COMMON` but the last."""
        seen = self.feature("seen")
        products = [seen, *(np.zeros_like(seen) for _ in LINEAR_COMMON[2:])]
        at = np.flatnonzero(seen)
        common = dict(zip(COMMON, self.common[at].T, strict=True))
        values = (
            np.log1p(common["history_length"]),
            common["history_repeats"],
            common["history_tied"],
            np.log1p(common["days_since_seen"]),
            np.log1p(common["items_since_seen"]),
            np.log1p(common["times_seen"]),
            common["days_since_seen"] == 0,
            common[SAME_VISIT],
        )
        for product, value in zip(products[1:], values, strict=True):
            product[at] = value
        return products

    def matrix(self) -> Floats:
        """Return (m, features), in the order of `feature_names`."""
        in_list = ~np.isnan(self.ranks)
        lists = in_list.sum(axis=1, dtype=np.float32)
        fusion = np.where(in_list, 1 / (FUSION_OFFSET + self.ranks), 0).sum(axis=1, dtype=np.float32)
        return np.column_stack([self.scores, self.z_scores, np.log(self.ranks), lists, fusion, self.common])


def feature_names(methods: Sequence[str]) -> list[str]:
    """Return the name of each column of `Candidates.matrix`.

    `lists` is the number of methods that recommend the item, `rank_fusion` the sum of 1 / (`FUSION_OFFSET` + rank)
    (Cormack et al. 2009, "Reciprocal Rank Fusion").
    """
    by_method = [f"{method}.{kind}" for kind in ("score", "z_score", "log_rank") for method in methods]
    return [*by_method, "lists", "rank_fusion", *COMMON]


def linear_feature_names(methods: Sequence[str]) -> list[str]:
    """Return the name of each column of `Candidates.linear_matrix`."""
    kinds = (
        "z_score",
        "reciprocal_rank",
        "reciprocal_rank_x_cold",
        "z_score_x_same_visit",
        "reciprocal_rank_x_same_visit",
    )
    return [*(f"{method}.{kind}" for kind in kinds for method in methods), *LINEAR_COMMON]


def concatenate(parts: Sequence[Candidates], sizes: Sequence[int]) -> Candidates:
    """Return the candidates of consecutive batches of users, given the number of users of each batch."""
    starts = np.cumsum([0, *sizes[:-1]])
    rows = np.concatenate([part.rows + start for part, start in zip(parts, starts, strict=True)])
    joined: dict[str, Any] = {n: np.concatenate([getattr(part, n) for part in parts]) for n in PER_CANDIDATE}
    return replace(parts[0], **joined | {"rows": rows})


def find_candidates(lists: Mapping[str, MethodLists], histories: ItemLists, table: ItemTable, k: int) -> Candidates:
    """Return the union of the methods' lists, each cut after k unseen items, with features.

    Seen items among these k are candidates too, so that one model serves people who buy an item again and people who
    do not. The histories have times.
    """
    n, n_users = len(table.counts), len(histories)
    width = max(each.items.shape[1] for each in lists.values())
    items = np.full((len(lists) * n_users, width), -1, np.int64)  # the lists of the first method, the second, ...
    values = np.zeros(items.shape)
    for method, each in enumerate(lists.values()):
        block = slice(method * n_users, (method + 1) * n_users)
        items[block, : each.items.shape[1]], values[block, : each.items.shape[1]] = each.items, each.scores
    own_keys = np.tile(np.arange(n_users), len(lists))[:, None] * n + items
    unseen_before = np.cumsum(~np.isin(own_keys, histories.rows * n + histories.values), axis=1)
    listed, places = np.nonzero((items >= 0) & (unseen_before <= k))
    own_scores, own_keys = values[listed, places], own_keys[listed, places]
    counts = np.maximum(np.bincount(listed, minlength=len(items)), 1)
    centred = own_scores - (np.bincount(listed, own_scores, len(items)) / counts)[listed]
    deviations = np.sqrt(np.bincount(listed, centred**2, len(items)) / counts)[listed]
    own_z_scores = np.divide(centred, deviations, out=np.zeros_like(centred), where=deviations > 1e-9)
    keys, at = np.unique(own_keys, return_inverse=True)
    scores, z_scores, ranks = (np.full((len(keys), len(lists)), np.nan, np.float32) for _ in range(3))
    columns = listed // max(1, n_users)
    scores[at, columns], z_scores[at, columns], ranks[at, columns] = own_scores, own_z_scores, places + 1
    rows, found = keys // n, keys % n
    return Candidates(tuple(lists), rows, found, scores, z_scores, ranks, _common(rows, found, histories, table))


def _common(rows: Ints, items: Ints, histories: ItemLists, table: ItemTable) -> Floats:
    """Return (m, `COMMON`)."""
    by_user = _history_features(histories)
    with np.errstate(invalid="ignore", divide="ignore"):
        popularity = np.log1p(table.counts[items])
        recent = table.recent_counts[items]
        expected = table.counts[items][:, None] * np.array(RECENT_SHARES)
        columns = [
            popularity,
            *np.log1p(recent).T,
            *np.log((1 + recent) / (1 + expected)).T,
            by_user["now"][rows] - table.first_sale[items],
            by_user["now"][rows] - table.last_sale[items],
            table.price[items],
            np.log(table.price[items] / _mean_price(histories, table.price)[rows]),
            table.has_photo[items],
            *_category_similarities(rows, items, histories, table.categories),
            *_seen_features(rows, items, histories, len(table.counts)),
            *(by_user[name][rows] for name in COMMON if name in by_user),
        ]
    return np.column_stack(columns).astype(np.float32)


def _history_features(histories: ItemLists) -> dict[str, NDArray[np.float64]]:
    """Return (B,) features of the histories by name; NaN where a history is too short to have one."""
    times = histories.times
    assert times is not None, "the blend reads the times of histories"
    days = times / DAY_MS
    n_users, rows = len(histories), histories.rows
    lengths = np.diff(histories.offsets).astype(np.float64)
    empty = lengths == 0
    newest, oldest = np.full(n_users, np.nan), np.full(n_users, np.nan)
    newest[~empty], oldest[~empty] = days[histories.offsets[1:][~empty] - 1], days[histories.offsets[:-1][~empty]]
    two = lengths > 1
    gap = np.full(n_users, np.nan)
    gap[two] = newest[two] - days[histories.offsets[1:][two] - 2]
    distinct = _distinct_per_row(rows, histories.values, n_users)
    divisor = np.maximum(lengths, 1)
    return {
        "now": newest,
        "history_length": lengths,
        "history_items": distinct,
        "history_days": newest - oldest,
        "history_tied": 1 - _distinct_per_row(rows, times, n_users) / divisor,
        "history_repeats": 1 - distinct / divisor,
        "newest_gap_days": gap,
        SAME_VISIT: np.zeros(n_users) if histories.same_visit is None else histories.same_visit.astype(np.float64),
    }


def _distinct_per_row(rows: Ints, values: Ints, n_rows: int) -> NDArray[np.float64]:
    order = np.lexsort((values, rows))
    rows, values = rows[order], values[order]
    is_new = np.ones(len(rows), np.float64)
    is_new[1:] = (rows[1:] != rows[:-1]) | (values[1:] != values[:-1])
    return np.bincount(rows, is_new, n_rows).astype(np.float64)


def _mean_price(histories: ItemLists, price: Floats) -> NDArray[np.float64]:
    """Return (B,) mean known price of each history; NaN where none is known."""
    prices = price[histories.values].astype(np.float64)
    known = ~np.isnan(prices)
    rows, n_users = histories.rows[known], len(histories)
    sums, counts = np.bincount(rows, prices[known], n_users), np.bincount(rows, minlength=n_users)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(n_users, np.nan), where=counts > 0)
    return means


def _category_similarities(
    rows: Ints, items: Ints, histories: ItemLists, categories: sparse.csr_array
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return (m,) cosines of each candidate with the whole history and with its newest item.

    A user's profile is the weighted sum of the vectors of the history. This is a product of sparse matrices, written
    with arrays: for one user, the overhead of SciPy's matrices was half of the time of all features.
    """
    n_users, n_categories = len(histories), categories.shape[1]
    of_history, columns, values = _category_entries(histories.values, categories)
    users, newest = histories.rows[of_history], (histories.from_newest == 0)[of_history]
    keys, at = np.unique(users * n_categories + columns, return_inverse=True)
    of_item, columns, item_values = _category_entries(items, categories)
    wanted = rows[of_item] * n_categories + columns
    found = np.searchsorted(keys, wanted)
    found[found == len(keys)] = 0
    matches = np.flatnonzero(keys[found] == wanted) if len(keys) else np.zeros(0, np.int64)
    both = []
    for weights in (values / (1 + histories.from_newest)[of_history], values * newest):
        profile = np.bincount(at, weights, len(keys))
        norms = np.sqrt(np.bincount(keys // max(1, n_categories), profile**2, n_users))[rows]
        dots = np.bincount(of_item[matches], item_values[matches] * profile[found[matches]], len(rows))
        both.append(np.divide(dots, norms, out=np.zeros(len(rows)), where=norms > 0))
    return both[0], both[1]


def _category_entries(items: Ints, categories: sparse.csr_array) -> tuple[Ints, Ints, NDArray[np.float64]]:
    """Return position in `items`, category and value of each entry of the items' vectors."""
    starts = categories.indptr[items].astype(np.int64)
    lengths = categories.indptr[items + 1] - starts
    positions = np.repeat(np.arange(len(items)), lengths)
    entries = np.arange(len(positions)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + starts[positions]
    return positions, categories.indices[entries].astype(np.int64), categories.data[entries].astype(np.float64)


def _seen_features(rows: Ints, items: Ints, histories: ItemLists, n: int) -> tuple[NDArray[np.float64], ...]:
    """Return (m,) seen, times seen, items since it was seen last and days since then; the last two NaN if unseen."""
    times = histories.times
    assert times is not None, "the blend reads the times of histories"
    keys, inverse, counts = np.unique(histories.rows * n + histories.values, return_inverse=True, return_counts=True)
    newest = np.full(len(keys), -1)
    np.maximum.at(newest, inverse, np.arange(len(histories.values)))  # the lists are oldest first
    at = np.searchsorted(keys, rows * n + items)
    at[at == len(keys)] = 0
    seen = keys[at] == rows * n + items if len(keys) else np.zeros(len(rows), np.bool_)
    times_seen, items_since, days_since = np.zeros(len(rows)), np.full(len(rows), np.nan), np.full(len(rows), np.nan)
    last = newest[at[seen]]
    times_seen[seen] = counts[at[seen]]
    items_since[seen] = histories.from_newest[last]
    ends = histories.offsets[1:][rows[seen]] - 1
    days_since[seen] = (times[ends] - times[last]) / DAY_MS
    return seen.astype(np.float64), times_seen, items_since, days_since
