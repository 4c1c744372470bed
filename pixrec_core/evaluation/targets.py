"""The test targets with the facts by which they are grouped."""

import math
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core.data.sequences import read_items
from pixrec_core.evaluation.leaks import read_checked_sequences
from pixrec_core.paths import DatasetPaths
from pixrec_core.ranking_table import id_indices
from pixrec_core.schemas import HAS_IMAGE, ITEM, ITEMS, TEST, TIED, TRAIN_COUNT, USER

HEAD_SHARE = 0.5  # of the training interactions; the head is the fewest items that have them
HISTORY_LENGTHS = ((1, 2), (3, 5), (6, 10), (11, None))  # items, bounds included

USER_INDEX = "user_index"
ITEM_INDEX = "item_index"
HISTORY = "history"  # number of items before the target
REPEAT = "repeat"  # whether the history contains the target
HEAD = "head"


@dataclass(frozen=True)
class Targets:
    """The test split in integers: the index of each user in `users` and of each item in `items`.

    Attributes:
        users: ids, sorted.
        items: ids, sorted; the catalogue.
        table: one row per user in that order: user_index, item_index (the target), history, repeat,
            tied, has_image, train_count, head.
        seen: one row per user and distinct item of the history: user_index, item_index.
    """

    users: pl.Series
    items: pl.Series
    table: pl.DataFrame
    seen: pl.DataFrame

    @classmethod
    def read(cls, paths: DatasetPaths) -> "Targets":
        """Read sequences.duckdb.

        Raises:
            MissingArtefactError: the stage `sequences` has not run.
            ContractError: sequences hold held-out items.
        """
        return cls.of(read_items(paths), read_checked_sequences(paths)[TEST])

    @classmethod
    def of(cls, catalogue: pl.DataFrame, test: pl.DataFrame) -> "Targets":
        """Build from `CATALOGUE_SCHEMA` and test sequences, sorted by item and by user."""
        sequences = test.select(
            id_indices(pl.col(USER), test[USER]).alias(USER_INDEX),
            ITEMS,
            TIED,
            (pl.col(ITEMS).list.len() - 1).alias(HISTORY),
        )
        seen = (
            sequences.select(USER_INDEX, pl.col(ITEMS).list.slice(0, HISTORY).alias(ITEM))
            .explode(ITEM)
            .select(USER_INDEX, id_indices(pl.col(ITEM), catalogue[ITEM]).alias(ITEM_INDEX))
            .unique(maintain_order=True)
        )
        items = catalogue.select(
            id_indices(pl.col(ITEM), catalogue[ITEM]).alias(ITEM_INDEX), HAS_IMAGE, TRAIN_COUNT, _head()
        )
        table = (
            sequences.select(
                USER_INDEX, pl.col(ITEMS).list.last().alias(ITEM), TIED, HISTORY,
                pl.col(ITEMS).list.slice(0, HISTORY).list.contains(pl.col(ITEMS).list.last()).alias(REPEAT),
            )
            .with_columns(id_indices(pl.col(ITEM), catalogue[ITEM]).alias(ITEM_INDEX))
            .join(items, on=ITEM_INDEX, how="left", maintain_order="left")
        )  # fmt: skip
        return cls(test[USER], catalogue[ITEM], table.drop(ITEM), seen)

    def of_users(self, users: pl.Series) -> "Targets":
        """Return the targets of some users."""
        selected = self.users.is_in(users.implode())
        new_index = (selected.cum_sum() - 1).cast(pl.UInt32)
        table, seen = (
            frame.with_columns(new_index.gather(frame[USER_INDEX]).alias(USER_INDEX)).filter(
                selected.gather(frame[USER_INDEX])
            )
            for frame in (self.table, self.seen)
        )
        return Targets(self.users.filter(selected), self.items, table, seen)

    def shares(self) -> dict[str, float]:
        """Return the shares (0 to 1) of targets that make a dataset easy or hard."""
        return self.table.select(
            share_tied=pl.col(TIED).mean(),
            share_cold=(pl.col(TRAIN_COUNT) == 0).mean(),
            share_repeat_targets=pl.col(REPEAT).mean(),
        ).row(0, named=True)

    def groups(self) -> dict[str, NDArray[np.bool_]]:
        """Return (users,) membership by name of the group."""
        cold = pl.col(TRAIN_COUNT) == 0
        lengths = {f"history {low}-{high}" if high else f"history {low}+": (low, high) for low, high in HISTORY_LENGTHS}
        members = {
            "warm": ~cold,
            "cold": cold,
            "head": pl.col(HEAD),
            "tail": ~pl.col(HEAD),
            "with image": pl.col(HAS_IMAGE),
            "without image": ~pl.col(HAS_IMAGE),
            "tied": pl.col(TIED),
            "not tied": ~pl.col(TIED),
            "repeat": pl.col(REPEAT),
            **{name: pl.col(HISTORY).is_between(low, high or math.inf) for name, (low, high) in lengths.items()},
        }
        return {member.name: member.to_numpy() for member in self.table.select(**members)}


def _head() -> pl.Expr:
    """Whether an item is among the fewest items with `HEAD_SHARE` of the training interactions."""
    count = pl.col(TRAIN_COUNT)
    before = (count.cum_sum() - count).over(pl.lit(1), order_by=[-count, pl.col(ITEM)])
    return ((count > 0) & (before < HEAD_SHARE * count.sum())).alias(HEAD)
