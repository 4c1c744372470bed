"""What each input is worth: ranks of test targets by a blend without it.

The cheap half of the blend, its linear part, is fitted again without each method, and without all methods that read
photos, text or the behaviour of other people, and without the fact whether the request belongs to the visit of the
newest item. It always learns from the same stacking users. Nothing here reaches a model that serves.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core.data.sequences import read_items, read_measured_sequences, read_sequences
from pixrec_core.evaluation.inputs import ALL, PHOTOS, InputRanks
from pixrec_core.evaluation.validation import stacking_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.recommenders._blend_features import SAME_VISIT, ItemTable, find_candidates, linear_feature_names
from pixrec_core.recommenders._blend_rankings import find_methods, last_items, read_batches, read_training_users
from pixrec_core.recommenders._blend_training import (
    MIN_USERS,
    SEED,
    TrainingUsers,
    draw_candidates,
    fit_weights,
    pretend_cold,
    ranks_among_candidates,
)
from pixrec_core.schemas import ITEM, USER, VALIDATION
from pixrec_core.settings import BlendSettings, RetrievalSettings

TEXT, BEHAVIOUR, VISIT = "text", "behaviour", "same visit or later"
#: What a method reads besides the history. A method that is not named here reads the behaviour of other people.
READS: Final[Mapping[str, frozenset[str]]] = {
    "repeat_last": frozenset(),
    "bm25_text": frozenset({TEXT}),
    "image_knn": frozenset({PHOTOS}),
    "semantic_ids": frozenset({TEXT, BEHAVIOUR}),
    "text_only": frozenset({TEXT, BEHAVIOUR}),
    "shuffled_images": frozenset({TEXT, BEHAVIOUR}),
    "image_only": frozenset({PHOTOS, BEHAVIOUR}),
    "multimodal": frozenset({TEXT, PHOTOS, BEHAVIOUR}),
    "collaborative": frozenset({TEXT, PHOTOS, BEHAVIOUR}),
}
LEARNING_USERS: Final = 3_000  # with their target among the candidates, at most: a fit costs a second
NEGATIVE_SHARE: Final = 0.3  # of their other candidates
TEST_USERS: Final = 5_000  # at most


def rank_without_inputs(
    settings: BlendSettings, retrieval: RetrievalSettings, paths: DatasetPaths, variants: Sequence[str]
) -> InputRanks | None:
    """Rank the targets of at most `TEST_USERS` test users without each input.

    Returns:
        None without a blend, or where the target of fewer than `MIN_USERS` stacking users is a candidate.

    Raises:
        MissingArtefactError: `sequences` or `baselines` have not been built.
        SettingsError: `settings` names a method that has not been built.
        ArtefactError: a ranking is of other users or items.
    """
    if not paths.blend.ranking.exists():
        return None
    methods = find_methods(settings, paths, variants)
    item_ids, table, k = read_items(paths)[ITEM], ItemTable.read(paths), min(settings.candidates, retrieval.depth)
    validation, test = read_sequences(paths, VALIDATION), read_measured_sequences(paths)
    stacking = validation.filter(stacking_users(validation.height))
    users = read_training_users(methods, k, stacking, item_ids, table)
    if users is None or users.hit.sum() < MIN_USERS:
        return None
    learning, without = _few(users), _without_each(list(methods), has_photos=bool(table.has_photo.any()))
    fits = {name: (kept, fit_weights(learning, kept)) for name, kept in without.items()}
    if learning.candidates.feature(SAME_VISIT).any():
        unknown = replace(learning, candidates=learning.candidates.without_visit())
        fits[VISIT] = list(methods), fit_weights(unknown)  # weights of constant features are 0
    random = np.random.default_rng(SEED)
    selected = np.zeros(test.height, np.bool_)
    selected[random.permutation(test.height)[:TEST_USERS]] = True
    rankings = {method: each.ranking for method, each in methods.items()}
    targets, names = last_items(test.filter(pl.Series(selected)), item_ids), linear_feature_names(list(methods))
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in fits}
    start = 0
    for lists, histories in read_batches(rankings, test, item_ids, selected):
        candidates = find_candidates(lists, histories, table, k)
        part = targets[start : start + len(histories)]
        batch = TrainingUsers(candidates, part)
        features, seen = candidates.linear_matrix(), candidates.feature("seen") > 0
        for name, (kept, weights) in fits.items():
            columns = [names.index(each) for each in linear_feature_names(kept)]
            scores = np.where(candidates.listed_by(kept), features[:, columns] @ weights, -np.inf)
            ranks = [
                ranks_among_candidates(batch, scores),
                ranks_among_candidates(batch, np.where(seen, -np.inf, scores)),
            ]
            found[name].append(np.stack(ranks, axis=1))
        start += len(histories)
    return InputRanks(
        test[USER].filter(pl.Series(selected)), {name: np.concatenate(parts) for name, parts in found.items()}
    )


def _without_each(methods: list[str], *, has_photos: bool) -> dict[str, list[str]]:
    """Return the methods that remain without each input; an input that no method reads, or every one, is left out.

    So are photos where no item has one: methods that could read them then read the rest.
    """
    remaining = {ALL: methods}
    for kind in (*((PHOTOS,) if has_photos else ()), TEXT, BEHAVIOUR):
        remaining[kind] = [each for each in methods if kind not in READS.get(each, {BEHAVIOUR})]
    remaining |= {method: [each for each in methods if each != method] for method in methods}
    return {name: kept for name, kept in remaining.items() if kept and (name == ALL or len(kept) < len(methods))}


def _few(users: TrainingUsers) -> TrainingUsers:
    """Return at most `LEARNING_USERS` users with the candidates to learn from."""
    chosen = np.zeros(len(users.targets), np.bool_)
    chosen[np.random.default_rng(SEED).permutation(np.flatnonzero(users.hit))[:LEARNING_USERS]] = True
    return draw_candidates(pretend_cold(users.of(chosen, users.candidates.methods)), NEGATIVE_SHARE)
