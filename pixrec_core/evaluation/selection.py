"""The measurement that chooses the method which serves: NDCG@10 of every method on the same validation users."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import polars as pl

from pixrec_core import files
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.comparison import METRIC, K
from pixrec_core.evaluation.metrics import METRICS
from pixrec_core.evaluation.rankings import listed_ranks, scan_indices
from pixrec_core.evaluation.targets import USER_INDEX, Targets
from pixrec_core.evaluation.validation import selection_users, stacking_users
from pixrec_core.paths import BLEND, DatasetPaths
from pixrec_core.schemas import RANK, VALIDATION

MIN_SELECTION_USERS: Final = 30  # fewer measure no method


def selection_scores(paths: DatasetPaths, rankings: Mapping[str, Path]) -> tuple[dict[str, float], int]:
    """Return `METRIC` of each method over selection users, seen items allowed, and the number of these users.

    With a blend and fewer than `MIN_SELECTION_USERS` of them, all stacking users are measured, and the blend is not: it
    has learned from them. Without selection users there are no scores.

    Raises:
        MissingArtefactError: sequences or a ranking have not been built.
        ArtefactError: a ranking lacks a selection user.
    """
    validation = read_sequences(paths, VALIDATION)
    selected = selection_users(validation.height)
    if BLEND in rankings and selected.sum() < MIN_SELECTION_USERS:
        selected = stacking_users(validation.height)
        rankings = {method: path for method, path in rankings.items() if method != BLEND}
    users = validation.filter(selected)
    if users.is_empty():
        return {}, 0
    targets = Targets.of(read_items(paths), users)
    scores = {}
    for method, path in rankings.items():
        ranking = scan_indices(files.require(path), targets).filter(pl.col(RANK) <= K).drop_nulls(USER_INDEX).collect()
        if missing := users.height - ranking[USER_INDEX].n_unique():
            raise ArtefactError(f"the ranking {path} of {method} lacks {missing:,} validation users; rank them again")
        scores[method] = float(METRICS[METRIC](listed_ranks(ranking, targets, K)).mean())
    return scores, users.height
