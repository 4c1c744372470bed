"""Proof, from the sequences themselves, that nothing held out reached what comes before it."""

from collections.abc import Mapping

import polars as pl

from pixrec_core.errors import ContractError
from pixrec_core.schemas import ITEMS, MOMENTS, SPLITS, TEST, TRAIN, USER, VALIDATION


def refuse_leak(sequences: Mapping[str, pl.DataFrame], cuts: Mapping[str, int]) -> None:
    """Refuse sequences that know more than their split may.

    Without cuts (leave-one-out) a training sequence must be its user's test sequence without the
    last two items, a validation sequence the one without the last. With cuts, training and
    histories must end before the cut of their split, and targets lie from there to the next one.

    Args:
        sequences: of each split.
        cuts: first instant of validation and of test, in milliseconds; empty under leave-one-out.

    Raises:
        ContractError: some know more; the message names the split and users.
    """
    for split in SPLITS:
        leaking = _past_the_cuts(sequences[split], split, cuts) if cuts else _unlike_test(sequences, split)
        if len(leaking):
            allowed = "lie within their cuts" if cuts else "are their test sequences without what is held out"
            raise ContractError(
                f"leak in split {split!r}: not all sequences {allowed}, those of {len(leaking)} users do not: "
                f"{', '.join(leaking.sort().head(5))}; make the sequences again and train again"
            )


def _unlike_test(sequences: Mapping[str, pl.DataFrame], split: str) -> pl.Series:
    """Users whose items are not those of test up to the split's own last one."""
    allowed = pl.col("items_test").list
    up_to = allowed.len().cast(pl.Int64) - SPLITS[::-1].index(split)
    whole = sequences[split].join(sequences[TEST], on=USER, how="left", suffix="_test")
    return whole.filter(pl.col(ITEMS).ne_missing(allowed.slice(0, up_to))).get_column(USER)


def _past_the_cuts(sequences: pl.DataFrame, split: str, cuts: Mapping[str, int]) -> pl.Series:
    """Users with an item of training or of a history at or after its cut, or a target outside its split."""
    moments = pl.col(MOMENTS).list
    history = moments if split == TRAIN else moments.slice(0, moments.len() - 1).list
    within = history.max() < cuts[VALIDATION if split == TRAIN else split]
    if split != TRAIN:
        within &= moments.last() >= cuts[split]
    if split == VALIDATION:
        within &= moments.last() < cuts[TEST]
    whole = within & (pl.col(ITEMS).list.len() == moments.len())
    return sequences.filter(~whole.fill_null(value=False)).get_column(USER)
