"""The two sides of a baseline: what it may learn from, and what it gives back."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import prompts
from pixrec_core.baselines._item_lists import ItemLists, Scorer
from pixrec_core.data.photo_features import photo_features
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM, ITEMS, MOMENTS, TRAIN, VALIDATION


@dataclass(frozen=True)
class TrainData:
    """What a baseline may learn from; nothing in it lies past the validation targets.

    Attributes:
        n_items: n, items of the catalogue; everything else names them by their index.
        train: training sequences, one a user.
        times: milliseconds since 1970, one a value of `train`.
        validation: histories whose next item is known: to choose settings by, not to learn from.
        targets: (validation users,) that next item.
        texts: (n,) of the items.
        photo_features: makes (n, F) features of the photos; see `data.photo_features`.
    """

    n_items: int
    train: ItemLists
    times: NDArray[np.int64]
    validation: ItemLists
    targets: NDArray[np.int64]
    texts: Sequence[str]
    photo_features: Callable[[], NDArray[np.float32]]

    @classmethod
    def read(cls, paths: DatasetPaths) -> "TrainData":
        """From sequences.duckdb and the stored photos.

        Raises:
            MissingArtefactError: the sequences have not been made.
        """
        catalogue = read_items(paths)
        train, validation = read_sequences(paths, TRAIN), read_sequences(paths, VALIDATION)
        return cls(
            n_items=catalogue.height,
            train=indexed(train[ITEMS], catalogue[ITEM]),
            times=train[MOMENTS].explode(empty_as_null=False).to_numpy(),
            validation=indexed(before_target(validation), catalogue[ITEM]),
            targets=indexed(validation.select(pl.col(ITEMS).list.tail(1)).to_series(), catalogue[ITEM]).values,
            texts=[prompts.item_text(item) for item in catalogue.iter_rows(named=True)],
            photo_features=partial(photo_features, paths, catalogue),
        )


@dataclass(frozen=True)
class FittedModel:
    """A baseline that has learnt.

    Attributes:
        score: a batch of B histories -> float32 scores (B, n), higher is better.
        chosen: the settings that did best on validation targets, and how well; empty where there was no choice.
    """

    score: Scorer
    chosen: Mapping[str, float] = field(default_factory=dict)


def before_target(sequences: pl.DataFrame) -> pl.Series:
    """The items of each sequence without the last one."""
    return sequences.select(pl.col(ITEMS).list.slice(0, pl.col(ITEMS).list.len() - 1)).to_series()


def indexed(lists: pl.Series, item_ids: pl.Series) -> ItemLists:
    """Lists of item ids as indices into `item_ids`, which is sorted and holds each of them."""
    values = lists.explode(empty_as_null=False).cast(pl.Enum(item_ids)).to_physical()
    return ItemLists.of(values.to_numpy(), lists.list.len().to_numpy())
