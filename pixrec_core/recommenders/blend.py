"""The blend: LambdaRank over the candidates of all methods.

Candidates are the union of each method's best items. A LightGBM ensemble of trees (Ke et al. 2017, "LightGBM: A Highly
Efficient Gradient Boosting Decision Tree") orders them by `_blend_features`; it is trained with LambdaRank (Burges
2010, "From RankNet to LambdaRank to LambdaMART", MSR-TR-2010-82) to put each validation target first.

It learns from stacking users: validation users on whom no method chose a setting. A part of them, the held-out users,
stops the training and decides which methods are dropped. Another part, the selection users, only measures the blend,
before the last fit on all stacking users. The blend never reads a test target.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors import SafetensorError

from pixrec_core import files
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import ArtefactError, SettingsError
from pixrec_core.evaluation import metrics
from pixrec_core.evaluation.validation import selection_users, stacking_users
from pixrec_core.paths import BLEND, DatasetPaths, MethodPaths
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.recommenders._blend_features import (
    Candidates,
    Floats,
    Ints,
    ItemTable,
    MethodLists,
    Queries,
    concatenate,
    feature_names,
    find_candidates,
)
from pixrec_core.schemas import ITEM, ITEMS, RANK, RANKING_SCHEMA, SCORE, TEST, TIMESTAMPS, USER, VALIDATION
from pixrec_core.settings import BlendSettings, RetrievalSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

MODEL: Final = "model.txt"
ITEM_TABLE: Final = "items.safetensors"
DESCRIPTION: Final = "blend.json"

MIN_USERS: Final = 50  # stacking users with their target among the candidates; a blend of fewer is noise
HELD_OUT_SHARE: Final = 0.25  # of the stacking users that are no selection users
NEGATIVE_SHARE: Final = 0.3  # of the other candidates of a user, drawn for training
NEW_VISIT_WEIGHT: Final = 2.0  # of a user whose target is later than the history; see `_user_weights`
TOLERANCE: Final = 0.0005  # NDCG@10 on held-out users that dropping a method may cost
ROUNDS: Final = 500  # trees at most
PATIENCE: Final = 30  # trees without a better NDCG@10 on held-out users
USERS_PER_BATCH: Final = 512  # about 100 MB of features
SEED: Final = 0

#: The best of few settings of learning rate, leaves, `lambda_l2` and truncation on validation users of one
#: data set, fashion purchases. One thread, so that sums have one order.
PARAMETERS: Final[Mapping[str, Any]] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "lambdarank_truncation_level": 30,
    "learning_rate": 0.1,
    "num_leaves": 15,
    "min_data_in_leaf": 50,
    "lambda_l2": 5.0,
    "feature_fraction": 0.5,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "max_bin": 63,
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "num_threads": 1,
    "verbose": -1,
}


@dataclass(frozen=True)
class TrainingUsers:
    """Candidates of stacking users, and the item that each user chose next.

    Attributes:
        candidates: of B users.
        targets: (B,) items.
        weights: (B,) of the users in the objective.
    """

    candidates: Candidates
    targets: Ints
    weights: Floats

    @property
    def is_target(self) -> NDArray[np.bool_]:
        """(m,) whether a candidate is its user's target."""
        found: NDArray[np.bool_] = self.candidates.items == self.targets[self.candidates.rows]
        return found


@dataclass(frozen=True)
class Blend:
    """A trained blend. It needs the lists of its methods to rank.

    Attributes:
        methods: whose lists it reads, in the order of its features.
        candidates: unseen items of each list that it reads.
        items: facts about the catalogue.
        booster: the trees.
    """

    methods: tuple[str, ...]
    candidates: int
    items: ItemTable
    booster: lightgbm.Booster

    def rank(
        self, lists: Mapping[str, MethodLists], queries: Queries, lengths: Ints
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items of each history, best first. Seen items are included.

        After the candidates follow all other items in the popularity order; so an empty history, about which no
        method knows anything, gets the popularity order.

        Args:
            lists: of each of `methods`, for the B histories; each should have `candidates` unseen items.
            queries: B histories.
            lengths: (B,) items wanted.

        Returns:
            Items (B, k) and their scores (B, k), where k is the highest of `lengths`; -1 after a list's length.
        """
        n, k = len(self.items.counts), min(int(lengths.max(initial=0)), len(self.items.counts))
        found = find_candidates(
            {method: lists[method] for method in self.methods}, queries, self.items, self.candidates
        )
        known = np.diff(queries.histories.offsets)[found.rows] > 0
        found = found.take(known)
        scores = self.score(found)
        # Candidates, then every other item: sorted by user, whether it is a candidate, score and popularity.
        order = np.lexsort((self.items.popularity_ranks[found.items], -scores, found.rows))
        rows, columns = found.rows[order], _position_in_run(found.rows[order])
        items = np.full((len(queries), k), -1, np.int64)
        values = np.zeros((len(queries), k), np.float32)
        fits = columns < k
        items[rows[fits], columns[fits]] = found.items[order][fits]
        values[rows[fits], columns[fits]] = scores[order][fits]
        counts = np.bincount(found.rows, minlength=len(queries))
        short = np.flatnonzero(counts < k)
        by_popularity = np.argsort(self.items.popularity_ranks) if len(short) else np.zeros(0, np.int64)
        for user in short:
            candidate = np.zeros(n, np.bool_)
            candidate[items[user, : counts[user]]] = True
            others = by_popularity[~candidate[by_popularity]][: k - counts[user]]
            items[user, counts[user] :] = others
            lowest = values[user, counts[user] - 1] if counts[user] else 0
            values[user, counts[user] :] = lowest - 1
        items[np.arange(k) >= lengths[:, None]] = -1
        return items, values

    def score(self, candidates: Candidates) -> Floats:
        """Return (m,) scores; higher is better. They compare candidates of one user only."""
        if not len(candidates):
            return np.zeros(0, np.float32)
        scores = self.booster.predict(candidates.matrix(), num_threads=1)
        return np.asarray(scores, np.float32)

    def save(self, folder: Path) -> None:
        """Write LightGBM's text model, the item table, and JSON that names methods and features."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MODEL).write_text(self.booster.model_to_string(), encoding="utf-8")
        self.items.save(folder / ITEM_TABLE)
        description = {
            "methods": self.methods,
            "candidates": self.candidates,
            "features": feature_names(self.methods),
        }
        files.write_json(folder / DESCRIPTION, description)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read a blend that `save` wrote. It gives the same scores.

        Raises:
            MissingArtefactError: the folder holds no blend.
            ArtefactError: a file of it is damaged, or it was trained on other features than this version computes.
        """
        files.require(folder / DESCRIPTION)
        try:
            description = files.read_json(folder / DESCRIPTION)
            methods = tuple(description["methods"])
            text = files.require(folder / MODEL).read_text(encoding="utf-8")
            blend = cls(methods, description["candidates"], ItemTable.load(folder / ITEM_TABLE), _booster(text))
        except (ValueError, KeyError, TypeError, lightgbm.basic.LightGBMError, SafetensorError) as error:
            message = f"the blend in {folder} is damaged ({error}); run the stage `blend` with --force"
            raise ArtefactError(message) from error
        if not description["features"] == feature_names(methods) == blend.booster.feature_name():
            raise ArtefactError(f"the blend in {folder} has other features; run the stage `blend` with --force")
        return blend


def _booster(text: str) -> lightgbm.Booster:
    if not text.startswith("tree"):  # LightGBM ends the process on some damaged models
        raise ValueError(f"{MODEL} is no LightGBM model")
    return lightgbm.Booster(model_str=text)


def _position_in_run(sorted_rows: Ints) -> Ints:
    """Return the position of each value within its run of equal values."""
    return np.arange(len(sorted_rows)) - np.searchsorted(sorted_rows, sorted_rows)


@dataclass(frozen=True)
class Trained:
    """Result of `train_blend`.

    Attributes:
        booster: the trees, fitted on all stacking users.
        measured: trees of the same methods from which held-out users and selection users were left out.
        methods: that feed it.
        ndcg: NDCG@10 on held-out users, whose targets also stopped the training.
        dropped: NDCG@10 on held-out users that dropping each dropped method gained.
        kept: NDCG@10 on held-out users that dropping each kept method would lose.
    """

    booster: lightgbm.Booster
    measured: lightgbm.Booster
    methods: tuple[str, ...]
    ndcg: float
    dropped: Mapping[str, float]
    kept: Mapping[str, float]

    @property
    def importance(self) -> dict[str, float]:
        """Share (0 to 1) of the total gain of each feature that splits, highest first."""
        gains = self.booster.feature_importance("gain")
        shares = zip(self.booster.feature_name(), gains / max(gains.sum(), 1e-12), strict=True)
        return {name: float(share) for name, share in sorted(shares, key=lambda each: -each[1]) if share > 0}


def train_blend(users: TrainingUsers, selection: NDArray[np.bool_]) -> Trained | None:
    """Train on stacking users; drop methods by backward elimination.

    The methods are tried in the order of their share of the gain, the lowest first. A method is dropped unless the
    blend without it, and without its candidates, has an NDCG@10 on held-out users that is more than `TOLERANCE` below
    the highest so far. At the end the blend is fitted on all users with the number of trees that was best.

    Args:
        users: B stacking users.
        selection: (B,) whether a user is a selection user.

    Returns:
        The blend, or None where the target of too few users is a candidate.
    """
    n_users = len(users.targets)
    hit = np.bincount(users.candidates.rows[users.is_target], minlength=n_users) > 0
    random = np.random.default_rng(SEED)
    held_out = np.zeros(n_users, np.bool_)
    others = np.flatnonzero(~selection)
    held_out[random.permutation(others)[: round(HELD_OUT_SHARE * len(others))]] = True
    drawn = users.is_target | (random.random(len(users.candidates)) < NEGATIVE_SHARE)
    if hit.sum() < MIN_USERS or not hit[held_out].any() or not hit[~held_out & ~selection].any():
        return None

    unselected = drawn & ~selection[users.candidates.rows]
    best = _fit(users, users.candidates.methods, held_out, unselected)
    highest, dropped, kept = best.ndcg, {}, {}
    for method in _by_importance(best):
        remaining = tuple(each for each in best.methods if each != method)
        if not remaining:
            break
        without = _fit(users, remaining, held_out, unselected)
        difference = without.ndcg - best.ndcg
        log.info("blend without %s: NDCG@10 %.4f on held-out users, %+.4f", method, without.ndcg, difference)
        if without.ndcg < highest - TOLERANCE:
            kept[method] = -difference
        else:
            dropped[method], best = difference, without
            highest = max(highest, best.ndcg)
    training = _dataset(_restrict(users, best.methods, drawn))
    final = lightgbm.train(dict(PARAMETERS), training, best.booster.best_iteration)
    return Trained(final, best.booster, best.methods, best.ndcg, dropped, kept)


@dataclass(frozen=True)
class _Fit:
    """A blend that some users were held out from, and its NDCG@10 on them."""

    methods: tuple[str, ...]
    booster: lightgbm.Booster
    ndcg: float


def _fit(users: TrainingUsers, methods: tuple[str, ...], held_out: NDArray[np.bool_], drawn: NDArray[np.bool_]) -> _Fit:
    """Train without the held-out users, until these no longer improve."""
    in_held_out = held_out[users.candidates.rows]
    held = _restrict(users, methods, in_held_out)
    booster = lightgbm.train(
        dict(PARAMETERS),
        _dataset(_restrict(users, methods, drawn & ~in_held_out)),
        ROUNDS,
        valid_sets=[_dataset(held)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    scores = np.asarray(booster.predict(held.candidates.matrix(), num_threads=1))
    return _Fit(methods, booster, float(metrics.ndcg(target_ranks(held, scores)[held_out], 10).mean()))


def _restrict(users: TrainingUsers, methods: Sequence[str], mask: NDArray[np.bool_]) -> TrainingUsers:
    """Return the candidates where `mask` (m,) is true, as they are with some of the methods only."""
    return TrainingUsers(users.candidates.take(mask).of_methods(methods), users.targets, users.weights)


def _dataset(users: TrainingUsers) -> lightgbm.Dataset:
    """Return the users whose target is a candidate, one query each: the others give no gradient."""
    rows = users.candidates.rows
    hit = np.bincount(rows[users.is_target], minlength=len(users.targets)) > 0
    mask = hit[rows]
    sizes = np.bincount(rows[mask], minlength=len(users.targets))[hit]
    return lightgbm.Dataset(
        users.candidates.take(mask).matrix(),
        users.is_target[mask].astype(np.int8),
        group=sizes,
        weight=users.weights[rows[mask]],
        feature_name=feature_names(users.candidates.methods),
        params={name: PARAMETERS[name] for name in ("max_bin", "verbose", "num_threads", "seed")},
    )


def target_ranks(users: TrainingUsers, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the rank (B,) of each target among its user's candidates, from 1; infinity where it is none of them.

    Equal scores rank before the target.
    """
    rows, hit = users.candidates.rows, users.is_target
    target_scores = np.full(len(users.targets), -np.inf)
    target_scores[rows[hit]] = scores[hit]
    before = np.bincount(rows[scores >= target_scores[rows]], minlength=len(users.targets)).astype(np.float64)
    return np.where(np.isfinite(target_scores), before, np.inf)


def _by_importance(fit: _Fit) -> list[str]:
    """Return the methods by their features' share of the gain, the lowest first."""
    gains = dict(zip(fit.booster.feature_name(), fit.booster.feature_importance("gain"), strict=True))
    return sorted(fit.methods, key=lambda method: sum(gains[name] for name in gains if name.startswith(f"{method}.")))


def _user_weights(queries: Queries, target_times: Ints) -> Floats:
    """Return (B,) `NEW_VISIT_WEIGHT` where the target is later than the whole history, else 1.

    A shop asks for recommendations before a visit. Under leave-one-out many targets belong to the same basket as the
    newest items of the history, where an item is hardly ever bought twice. Unweighted, the blend would learn to rank
    seen items last, and users who buy them again would lose.
    """
    newest = np.full(len(queries), np.iinfo(np.int64).min)
    np.maximum.at(newest, queries.histories.rows, queries.times)
    return np.where(target_times > newest, np.float32(NEW_VISIT_WEIGHT), np.float32(1))


def build_blend(
    settings: BlendSettings, retrieval: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str]
) -> Stats:
    """Train a blend of all methods on stacking users, save it, and rank for test users and selection users.

    Without enough stacking users, or with `enabled` false, the folder has no model and no ranking.

    Args:
        settings: which methods feed the blend.
        retrieval: `depth` of the ranking.
        paths: of the dataset.
        variants: of the dual tower; those that were ranked are methods too.

    Raises:
        MissingArtefactError: `sequences` or `baselines` have not been built.
        SettingsError: `settings` names a method that has not been built.
    """
    with files.replacing(paths.blend.root) as folder:
        folder.mkdir()
        return _build_blend(settings, retrieval, paths, variants, folder)


def _build_blend(
    settings: BlendSettings, retrieval: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str], folder: Path
) -> Stats:
    if not settings.enabled:
        return {"blended": False, "summary": "none: blend.enabled is false"}
    methods = _methods(settings, paths, variants)
    item_ids, table = read_items(paths)[ITEM], ItemTable.read(paths)
    candidates = min(settings.candidates, retrieval.depth)
    start = time.process_time()
    validation = read_sequences(paths, VALIDATION)
    is_stacking = stacking_users(validation.height)
    stacking, selection = validation.filter(is_stacking), selection_users(validation.height)[is_stacking]
    users = _training_users(methods, candidates, stacking, item_ids, table)
    trained = train_blend(users, selection) if users else None
    if trained is None:
        reason = f"the target of fewer than {MIN_USERS} validation users is a candidate"
        log.warning("warning: no blend is trained: %s; the run continues without one", reason)
        return {"blended": False, "summary": f"none: {reason}"}
    blend = Blend(trained.methods, candidates, table, trained.booster)
    blend.save(folder)
    training_seconds = time.process_time() - start
    measured = replace(blend, booster=trained.measured)
    rankings = {method: methods[method].validation_ranking for method in blend.methods}
    frames = _rank(measured, rankings, stacking, item_ids, retrieval.depth, selection)
    write_ranking(folder / paths.blend.validation_ranking.name, frames)
    test = read_sequences(paths, TEST)
    rankings = {method: methods[method].ranking for method in blend.methods}
    write_ranking(folder / paths.blend.ranking.name, _rank(blend, rankings, test, item_ids, retrieval.depth))
    return {
        "blended": True,
        "summary": f"{len(blend.methods)} methods, NDCG@10 {trained.ndcg:.4f} on held-out users",
        "methods": list(blend.methods),
        "dropped": {name: round(value, 5) for name, value in trained.dropped.items()},
        "kept": {name: round(value, 5) for name, value in trained.kept.items()},
        "held_out_ndcg@10": round(trained.ndcg, 5),
        "trees": trained.booster.num_trees(),
        "importance": {name: round(share, 4) for name, share in trained.importance.items()},
        "training_users": len(users.targets) if users else 0,
        "users": test.height,
        "training_cpu_seconds": round(training_seconds, 1),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def _methods(settings: BlendSettings, paths: DatasetPaths, variants: Sequence[str]) -> dict[str, MethodPaths]:
    """Return the artefacts of each method that feeds the blend.

    Raises:
        MissingArtefactError: the stage `baselines` has not run.
        SettingsError: a method of the settings has not been built.
    """
    files.require(paths.baselines)
    ranked = paths.ranked_methods(variants)
    found = {name: each for name, each in ranked.items() if name != BLEND and each.validation_ranking.exists()}
    if unknown := sorted(set(settings.methods) - set(found)):
        raise SettingsError(
            f"blend.methods names {', '.join(unknown)}, which has not been built; there are: {', '.join(found)}"
        )
    return {name: found[name] for name in (settings.methods or found)}


def _training_users(
    methods: Mapping[str, MethodPaths], k: int, stacking: pl.DataFrame, item_ids: pl.Series, table: ItemTable
) -> TrainingUsers | None:
    """Return the stacking users with their candidates; None where there are none."""
    if stacking.is_empty():
        return None
    rankings = {method: each.validation_ranking for method, each in methods.items()}
    found, sizes = [], []
    for lists, queries in _batches(rankings, stacking, item_ids):
        found.append(find_candidates(lists, queries, table, k))
        sizes.append(len(queries))
    candidates = concatenate(found, sizes)
    last = stacking.select(pl.col(ITEMS).list.last(), pl.col(TIMESTAMPS).list.last())
    targets = last[ITEMS].cast(pl.Enum(item_ids)).to_physical().to_numpy().astype(np.int64)
    weights = _user_weights(Queries.of_sequences(stacking, item_ids), last[TIMESTAMPS].cast(pl.Int64).to_numpy())
    return TrainingUsers(candidates, targets, weights)


def _rank(
    blend: Blend,
    rankings: Mapping[str, Path],
    sequences: pl.DataFrame,
    item_ids: pl.Series,
    depth: int,
    selected: NDArray[np.bool_] | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield frames of `RANKING_SCHEMA`: `depth` items per user, and one more per distinct item of the history.

    Args:
        blend: to rank with.
        rankings: by each of its methods, of the users of `sequences`.
        sequences: U users.
        item_ids: (n,) ids of the catalogue.
        depth: items.
        selected: (U,) the users to rank for; None means all.
    """
    users, start = sequences[USER] if selected is None else sequences[USER].filter(pl.Series(selected)), 0
    for lists, queries in _batches(rankings, sequences, item_ids, selected):
        lengths = depth + np.diff(queries.histories.incidence(len(item_ids)).indptr).astype(np.int64)
        items, scores = blend.rank(lists, queries, lengths)
        yield to_ranking(users[start : start + len(queries)], item_ids, items, scores)
        start += len(queries)


def _batches(
    rankings: Mapping[str, Path],
    sequences: pl.DataFrame,
    item_ids: pl.Series,
    selected: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[dict[str, MethodLists], Queries]]:
    """Yield the lists of each method and the histories of the selected users among `USERS_PER_BATCH` users at a time.

    Raises:
        ArtefactError: a ranking is not one of these users.
    """
    chosen = np.ones(sequences.height, np.bool_) if selected is None else selected
    readers = [_read_lists(path, method, sequences[USER], item_ids) for method, path in rankings.items()]
    start = 0
    for lists in zip(*readers, strict=True):
        part = chosen[start : start + USERS_PER_BATCH]
        users = sequences[start : start + USERS_PER_BATCH].filter(pl.Series(part))
        start += len(part)
        if users.height:
            found = {
                m: MethodLists(each.items[part], each.scores[part]) for m, each in zip(rankings, lists, strict=True)
            }
            yield found, Queries.of_sequences(users, item_ids)


def _read_lists(path: Path, method: str, users: pl.Series, item_ids: pl.Series) -> Iterator[MethodLists]:
    """Yield a ranking as arrays, `USERS_PER_BATCH` users at a time: there may be millions of users.

    Args:
        path: of a ranking in the order of `users`.
        method: its name.
        users: (U,) ids, sorted.
        item_ids: (n,) ids of the catalogue.

    Raises:
        ArtefactError: the ranking is of other users or items, or in another order.
    """
    fault = ArtefactError(f"the ranking {path} of {method} is of other users or items; rank them again")
    indices = pl.Enum(item_ids)
    with parquet.ParquetFile(files.require(path)) as file:
        frames = (pl.DataFrame(pl.from_arrow(rows)) for rows in file.iter_batches(columns=list(RANKING_SCHEMA)))
        table = RANKING_SCHEMA.to_frame()
        for start in range(0, len(users), USERS_PER_BATCH):
            part = users[start : start + USERS_PER_BATCH]
            while (table.is_empty() or table[USER][-1] <= part[-1]) and (more := next(frames, None)) is not None:
                table = pl.concat([table, more])
            in_part = table.filter(pl.col(USER) <= part[-1])
            table = table[in_part.height :]
            items = in_part[ITEM].cast(indices, strict=False).to_physical()
            runs = in_part[USER].rle().struct
            if not runs.field("value").equals(part) or items.null_count():
                raise fault
            lengths, columns = runs.field("len").to_numpy(), in_part[RANK].to_numpy() - 1
            shape = (len(part), int(columns.max(initial=-1)) + 1)
            lists = MethodLists(np.full(shape, -1, np.int64), np.zeros(shape, np.float32))
            rows = np.repeat(np.arange(len(part)), lengths)
            lists.items[rows, columns] = items.to_numpy()
            lists.scores[rows, columns] = in_part[SCORE].to_numpy()
            yield lists
        if table.height or next(frames, None) is not None:
            raise fault
