"""The blend: a learned order of the candidates of all methods.

Candidates are the union of each method's best items. A linear model over each method's scores and ranks orders them.
With enough users, trees over `_blend_features` correct its scores. See `_blend_training`.

It learns from stacking users: validation users on whom no method chose a setting. A part of them, the held-out users,
stops the training and decides which methods are dropped. Another part, the selection users, only measures the blend,
before the last fit on all stacking users. The blend never reads a test target.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray
from pyarrow import parquet
from safetensors import SafetensorError

from pixrec_core import files
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import ArtefactError, SettingsError
from pixrec_core.evaluation.validation import selection_users, stacking_users
from pixrec_core.paths import BLEND, DatasetPaths, MethodPaths
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.recommenders._blend_features import (
    Candidates,
    Ints,
    ItemTable,
    MethodLists,
    concatenate,
    feature_names,
    find_candidates,
    linear_feature_names,
    timed_histories,
)
from pixrec_core.recommenders._blend_training import MIN_USERS, Learned, TrainingUsers, new_visit_weights, train_blend
from pixrec_core.recommenders.base import ItemLists
from pixrec_core.schemas import ITEM, ITEMS, RANK, RANKING_SCHEMA, SCORE, TEST, TIMESTAMPS, USER, VALIDATION
from pixrec_core.settings import BlendSettings, RetrievalSettings
from pixrec_core.stages import Stats

if TYPE_CHECKING:
    import lightgbm  # imports scikit-learn, a second that a blend without trees does not need

log = logging.getLogger(__name__)

MODEL: Final = "model.txt"
ITEM_TABLE: Final = "items.safetensors"
DESCRIPTION: Final = "blend.json"

USERS_PER_BATCH: Final = 512  # about 100 MB of features


@dataclass(frozen=True)
class Blend:
    """A trained blend. It needs the lists of its methods to rank.

    Attributes:
        learned: orders candidates.
        candidates: unseen items of each list that it reads.
        items: facts about the catalogue.
    """

    learned: Learned
    candidates: int
    items: ItemTable

    @property
    def methods(self) -> tuple[str, ...]:
        """Whose lists it reads."""
        return self.learned.methods

    def rank(
        self,
        lists: Mapping[str, MethodLists],
        histories: ItemLists,
        lengths: Ints,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items of each history, best first. Seen items are included.

        After the candidates follow all other allowed items in the popularity order; so an empty history, about which no
        method knows anything, gets the popularity order.

        Args:
            lists: of each of `methods`, for the B histories; each should have `candidates` unseen items.
            histories: B histories with times.
            lengths: (B,) items wanted; at most as many as are allowed.
            allowed: (n,) whether an item may be in the lists, which have no other items; None allows all.

        Returns:
            Items (B, k) and their scores (B, k), where k is the highest of `lengths`; -1 after a list's length.
        """
        n = len(self.items.counts)
        k = min(int(lengths.max(initial=0)), n)
        found = find_candidates(
            {method: lists[method] for method in self.methods}, histories, self.items, self.candidates
        )
        known = np.diff(histories.offsets)[found.rows] > 0
        found = found.take(known)
        scores = self.learned.score(found)
        # Candidates, then every other item: sorted by user, whether it is a candidate, score and popularity.
        order = np.lexsort((self.items.popularity_ranks[found.items], -scores, found.rows))
        rows, columns = found.rows[order], _position_in_run(found.rows[order])
        items = np.full((len(histories), k), -1, np.int64)
        values = np.zeros((len(histories), k), np.float32)
        fits = columns < k
        items[rows[fits], columns[fits]] = found.items[order][fits]
        values[rows[fits], columns[fits]] = scores[order][fits]
        counts = np.bincount(found.rows, minlength=len(histories))
        short = np.flatnonzero(counts < k)
        by_popularity = np.argsort(self.items.popularity_ranks) if len(short) else np.zeros(0, np.int64)
        if allowed is not None:
            by_popularity = by_popularity[allowed[by_popularity]]
        for user in short:
            candidate = np.zeros(n, np.bool_)
            candidate[items[user, : counts[user]]] = True
            others = by_popularity[~candidate[by_popularity]][: k - counts[user]]
            items[user, counts[user] :] = others
            lowest = values[user, counts[user] - 1] if counts[user] else 0
            values[user, counts[user] :] = lowest - 1
        items[np.arange(k) >= lengths[:, None]] = -1
        return items, values

    def save(self, folder: Path) -> None:
        """Write LightGBM's text model, the item table, and JSON of methods, weights and features."""
        folder.mkdir(parents=True, exist_ok=True)
        booster = self.learned.booster
        if booster is not None:
            (folder / MODEL).write_text(booster.model_to_string(), encoding="utf-8")
        self.items.save(folder / ITEM_TABLE)
        description = {
            "methods": self.methods,
            "candidates": self.candidates,
            "weights": dict(zip(linear_feature_names(self.methods), self.learned.weights.tolist(), strict=True)),
            "trees": booster is not None,
            "sha256": files.sha256_file(folder / MODEL) if booster is not None else None,
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
            weights = np.array([description["weights"][name] for name in linear_feature_names(methods)], np.float32)
            booster = _booster(folder / MODEL, description.get("sha256")) if description["trees"] else None
            items = ItemTable.load(folder / ITEM_TABLE)
            blend = cls(Learned(methods, weights, booster), description["candidates"], items)
        except (ValueError, KeyError, TypeError, ArtefactError, SafetensorError) as error:
            message = f"the blend in {folder} is damaged ({error}); run the stage `blend` with --force"
            raise ArtefactError(message) from error
        names = feature_names(methods)
        if description["features"] != names or (booster is not None and booster.feature_name() != names):
            raise ArtefactError(f"the blend in {folder} has other features; run the stage `blend` with --force")
        return blend


def _booster(path: Path, sha256: str | None) -> "lightgbm.Booster":
    import lightgbm

    text = files.require(path).read_text(encoding="utf-8")
    # LightGBM ends the process on some damaged models. Earlier versions recorded no checksum.
    if not text.startswith("tree") or files.sha256_file(path) != (sha256 or files.sha256_file(path)):
        raise ValueError(f"{MODEL} is damaged or no LightGBM model")
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(str(error)) from error


def _position_in_run(sorted_rows: Ints) -> Ints:
    """Return the position of each value within its run of equal values."""
    return np.arange(len(sorted_rows)) - np.searchsorted(sorted_rows, sorted_rows)


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
    blend = Blend(trained.final, candidates, table)
    blend.save(folder)
    training_seconds = time.process_time() - start
    measured = replace(blend, learned=trained.measured)
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
        "held_out_linear_ndcg@10": round(trained.linear_ndcg, 5),
        "trees": trained.final.booster.num_trees() if trained.final.booster else 0,
        "importance": [f"{name} {share:.4f}" for name, share in trained.importance.items()],
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
    """Return the stacking users with their candidates; None where there are no users.

    Users whose target is no candidate have none: no training uses them, and their NDCG is 0 whatever the blend. They
    are most of the users of a large catalogue, and their candidates would be most of the memory.
    """
    if stacking.is_empty():
        return None
    last = stacking.select(pl.col(ITEMS).list.last(), pl.col(TIMESTAMPS).list.last())
    targets = last[ITEMS].cast(pl.Enum(item_ids)).to_physical().to_numpy().astype(np.int64)
    rankings = {method: each.validation_ranking for method, each in methods.items()}
    found: list[Candidates] = []
    sizes: list[int] = []
    for lists, histories in _batches(rankings, stacking, item_ids):
        candidates = find_candidates(lists, histories, table, k)
        is_target = candidates.items == targets[sum(sizes) :][candidates.rows]
        hit = np.bincount(candidates.rows[is_target], minlength=len(histories)) > 0
        found.append(candidates.take(hit[candidates.rows]))
        sizes.append(len(histories))
    weights = new_visit_weights(timed_histories(stacking, item_ids), last[TIMESTAMPS].cast(pl.Int64).to_numpy())
    return TrainingUsers(concatenate(found, sizes), targets, weights)


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
    for lists, histories in _batches(rankings, sequences, item_ids, selected):
        lengths = depth + np.diff(histories.incidence(len(item_ids)).indptr).astype(np.int64)
        items, scores = blend.rank(lists, histories, lengths)
        yield to_ranking(users[start : start + len(histories)], item_ids, items, scores)
        start += len(histories)


def _batches(
    rankings: Mapping[str, Path],
    sequences: pl.DataFrame,
    item_ids: pl.Series,
    selected: NDArray[np.bool_] | None = None,
) -> Iterator[tuple[dict[str, MethodLists], ItemLists]]:
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
            yield found, timed_histories(users, item_ids)


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
