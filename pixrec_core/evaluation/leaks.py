"""The leak guard: no training sequence and no history holds an item that is held out from it."""

from collections.abc import Mapping

import polars as pl

from pixrec_core.data.sequences import read_cuts, read_measured_sequences, read_sequences
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEMS, MIN_TESTED_LENGTH, SPLITS, TEST, TIMESTAMPS, TRAIN, USER, VALIDATION

USERS_NAMED = 5  # in the message


def read_checked_sequences(paths: DatasetPaths) -> dict[str, pl.DataFrame]:
    """Return the sequences of each split, of test those of the measured users, after `check_for_leaks`.

    Raises:
        MissingArtefactError: the stage `sequences` has not run.
        ContractError: there is a leak.
    """
    sequences = {split: read_sequences(paths, split) for split in SPLITS}
    check_for_leaks(sequences, read_cuts(paths))
    return sequences | {TEST: read_measured_sequences(paths)}


def check_for_leaks(sequences: Mapping[str, pl.DataFrame], cuts: Mapping[str, int]) -> None:
    """Raise an error if a sequence contains a held-out item.

    Without cuts (leave-one-out), a training sequence must be its user's test sequence without the last two items, and
    a validation sequence the one without the last item. A user without a test sequence must have no validation sequence
    and fewer than `MIN_TESTED_LENGTH` items in training. With cuts, training sequences and histories must end before
    the cut of their split, and targets must be between that cut and the next one. `cuts` has the first instant of
    validation and of test in milliseconds.

    Raises:
        ContractError: there is a leak; the message names the split and users.
    """
    for split in SPLITS:
        users = _outside_cuts(sequences[split], split, cuts) if cuts else _unlike_test(sequences, split)
        if len(users):
            named = users.sort().head(USERS_NAMED)
            more = ", ..." if len(users) > len(named) else ""
            count = f"sequences of {len(users):,} users contain" if len(users) > 1 else "sequence of 1 user contains"
            raise ContractError(
                f'Leak in split "{split}": the {count} held-out items ({", ".join(named)}{more}). '
                "Rebuild `sequences`, then retrain."
            )


def _unlike_test(sequences: Mapping[str, pl.DataFrame], split: str) -> pl.Series:
    """Return the users with a sequence that is not the start of their test sequence, up to the last item of the split.

    A training sequence that is too short for a test sequence is accepted without one.
    """
    allowed = pl.col("items_test").list
    length = allowed.len().cast(pl.Int64) - SPLITS[::-1].index(split)
    joined = sequences[split].join(sequences[TEST], on=USER, how="left", suffix="_test")
    valid = pl.col(ITEMS).eq_missing(allowed.slice(0, length))
    if split == TRAIN:
        valid |= pl.col("items_test").is_null() & (pl.col(ITEMS).list.len() < MIN_TESTED_LENGTH)
    return joined.filter(~valid).get_column(USER)


def _outside_cuts(sequences: pl.DataFrame, split: str, cuts: Mapping[str, int]) -> pl.Series:
    """Return users with a history that reaches the cut of the split, or a target outside the split."""
    times = pl.col(TIMESTAMPS).list
    history = times if split == TRAIN else times.slice(0, times.len() - 1).list
    valid = history.max() < cuts[VALIDATION if split == TRAIN else split]
    if split != TRAIN:
        valid &= times.last() >= cuts[split]
    if split == VALIDATION:
        valid &= times.last() < cuts[TEST]
    valid &= pl.col(ITEMS).list.len() == times.len()
    return sequences.filter(~valid.fill_null(value=False)).get_column(USER)
