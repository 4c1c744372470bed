"""The blend: a learned order of the candidates of all methods.

Candidates are the union of each method's best items. A linear model over each method's scores and ranks orders them.
With enough users, trees over `_blend_features` correct its scores. See `_blend_training`.

It learns from stacking users: the validation users with whom no method chose a setting. A part of them, the
selection users, only measures the blend, before the last fit on all stacking users. Each of the others is held out
once, to choose the number of trees and to decide which methods are dropped. The blend never reads a test target.
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
from safetensors import SafetensorError

from pixrec_core import files
from pixrec_core.data.sequences import catalogue_digest, read_items, read_measured_sequences, read_sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.validation import selection_users, stacking_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.recommenders._blend_features import (
    Ints,
    ItemTable,
    MethodLists,
    feature_names,
    find_candidates,
    linear_feature_names,
)
from pixrec_core.recommenders._blend_inputs import rank_without_inputs
from pixrec_core.recommenders._blend_rankings import find_methods, read_batches, read_training_users
from pixrec_core.recommenders._blend_training import MIN_USERS, Learned, train_blend
from pixrec_core.recommenders.base import ItemLists, position_in_run
from pixrec_core.schemas import ITEM, USER, VALIDATION
from pixrec_core.settings import BlendSettings, RetrievalSettings
from pixrec_core.stages import Stats

if TYPE_CHECKING:
    import lightgbm  # imports scikit-learn, a second that a blend without trees does not need

__all__ = ["Blend", "build_blend", "rank_without_inputs"]

log = logging.getLogger(__name__)

MODEL: Final = "model.txt"
ITEM_TABLE: Final = "items.safetensors"
DESCRIPTION: Final = "blend.json"


@dataclass(frozen=True)
class Blend:
    """A trained blend, which reads `candidates` unseen items of the list of each of its methods.

    `catalogue` is the digest of the items: see `data.sequences.catalogue_digest`.
    """

    learned: Learned
    candidates: int
    items: ItemTable
    catalogue: str = ""

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of the methods."""
        return self.learned.methods

    def rank(
        self,
        lists: Mapping[str, MethodLists],
        histories: ItemLists,
        lengths: Ints,
        allowed: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the best items of each history, best first. Seen items are included.

        All other allowed items follow the candidates, in the popularity order. An empty history gets the popularity
        order only.

        Args:
            lists: lists of each of `methods` for the B histories; each should have `candidates` unseen items.
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
        rows, columns = found.rows[order], position_in_run(found.rows[order])
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
            "catalogue": self.catalogue,
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
            booster = _booster(folder / MODEL, description["sha256"]) if description["trees"] else None
            items = ItemTable.load(folder / ITEM_TABLE)
            learned, catalogue = Learned(methods, weights, booster), description["catalogue"]
            blend = cls(learned, description["candidates"], items, catalogue)
        except (ValueError, KeyError, TypeError, ArtefactError, SafetensorError) as error:
            message = f"the blend in {folder} is damaged ({error}); run the stage `blend` with --force"
            raise ArtefactError(message) from error
        names = feature_names(methods)
        if description["features"] != names or (booster is not None and booster.feature_name() != names):
            raise ArtefactError(f"the blend in {folder} has other features; run the stage `blend` with --force")
        return blend


def _booster(path: Path, sha256: str) -> "lightgbm.Booster":
    import lightgbm

    text = files.require(path).read_text(encoding="utf-8")
    if not text.startswith("tree") or files.sha256_file(path) != sha256:  # LightGBM would end the process
        raise ValueError(f"{MODEL} is damaged or no LightGBM model")
    try:
        return lightgbm.Booster(model_str=text)
    except lightgbm.basic.LightGBMError as error:
        raise ValueError(str(error)) from error


def build_blend(
    settings: BlendSettings, retrieval: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str]
) -> Stats:
    """Train a blend of all methods on stacking users, save it, and rank for test users and selection users.

    Without enough stacking users, or with `enabled` false, the folder has no model and no ranking. The variants of the
    dual tower that have rankings are methods too.

    Raises:
        MissingArtefactError: `sequences` or `baselines` have not been built.
        SettingsError: `settings` names a method that has not been built.
        ArtefactError: a ranking is of other users or items.
    """
    with files.replacing(paths.blend.root) as folder:
        folder.mkdir()
        return _build_blend(settings, retrieval, paths, variants, folder)


def _build_blend(
    settings: BlendSettings, retrieval: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str], folder: Path
) -> Stats:
    if not settings.enabled:
        return {"blended": False, "summary": "none: blend.enabled is false"}
    methods = find_methods(settings, paths, variants)
    item_ids, table = read_items(paths)[ITEM], ItemTable.read(paths)
    candidates = min(settings.candidates, retrieval.depth)
    start = time.process_time()
    validation = read_sequences(paths, VALIDATION)
    is_stacking = stacking_users(validation.height)
    stacking, selection = validation.filter(is_stacking), selection_users(validation.height)[is_stacking]
    users = read_training_users(methods, candidates, stacking, item_ids, table)
    trained = train_blend(users, selection) if users else None
    if trained is None:
        reason = f"the target of fewer than {MIN_USERS} validation users is a candidate"
        log.warning("warning: no blend is trained: %s; the run continues without one", reason)
        return {"blended": False, "summary": f"none: {reason}"}
    blend = Blend(trained.final, candidates, table, catalogue_digest(item_ids))
    blend.save(folder)
    training_seconds = time.process_time() - start
    measured = replace(blend, learned=trained.measured)
    rankings = {method: methods[method].validation_ranking for method in blend.methods}
    frames = _rank(measured, rankings, stacking, item_ids, retrieval.depth, selection)
    write_ranking(folder / paths.blend.validation_ranking.name, frames)
    test = read_measured_sequences(paths)
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


def _rank(
    blend: Blend,
    rankings: Mapping[str, Path],
    sequences: pl.DataFrame,
    item_ids: pl.Series,
    depth: int,
    selected: NDArray[np.bool_] | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield frames of `RANKING_SCHEMA`: `depth` items per user, and one more per distinct item of the history.

    `rankings` are those of the methods for the U users of `sequences`; `selected` (U,) is a mask, None means all.
    """
    users, start = sequences[USER] if selected is None else sequences[USER].filter(pl.Series(selected)), 0
    for lists, histories in read_batches(rankings, sequences, item_ids, selected):
        lengths = depth + np.diff(histories.incidence(len(item_ids)).indptr).astype(np.int64)
        items, scores = blend.rank(lists, histories, lengths)
        yield to_ranking(users[start : start + len(histories)], item_ids, items, scores)
        start += len(histories)
