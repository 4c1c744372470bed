"""The test targets, and what is known of each."""

from dataclasses import dataclass

import polars as pl

from pixrec_core.data.sequences import read_cuts, read_items, read_sequences
from pixrec_core.evaluation.leaks import refuse_leak
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import HAS_IMAGE, ITEM, ITEMS, SPLITS, TEST, TIED, TRAIN_COUNT, USER

HEAD_SHARE = 0.5  # of the training interactions; the fewest items that have them are the head
HISTORY_LENGTHS = ((1, 2), (3, 5), (6, 10), (11, None))  # items, both ends included

USER_INDEX = "user_index"
ITEM_INDEX = "item_index"
HISTORY = "history"  # number of items before the target
REPEAT = "repeat"  # whether the target stands in the history
HEAD = "head"


@dataclass(frozen=True)
class Targets:
    """The test split, in integers: users and items by their place in `users` and `items`.

    Attributes:
        users: ids, sorted.
        items: ids, sorted; the catalogue.
        table: one row a user in that order: user_index, item_index (the target), history, repeat,
            tied, has_image, train_count, head.
        seen: one row a user and different item of the history: user_index, item_index.
    """

    users: pl.Series
    items: pl.Series
    table: pl.DataFrame
    seen: pl.DataFrame

    @classmethod
    def read(cls, paths: DatasetPaths) -> "Targets":
        """From sequences.duckdb.

        Raises:
            MissingArtefactError: the sequences have not been made.
            ContractError: sequences of a split know more than they may.
        """
        sequences = {split: read_sequences(paths, split) for split in SPLITS}
        refuse_leak(sequences, read_cuts(paths))
        return cls.of(read_items(paths), sequences[TEST])

    @classmethod
    def of(cls, catalogue: pl.DataFrame, test: pl.DataFrame) -> "Targets":
        """From frames of `CATALOGUE_SCHEMA` and of test sequences, sorted by item and by user."""
        bought = test.select(
            index(USER, test[USER]).alias(USER_INDEX), ITEMS, TIED, (pl.col(ITEMS).list.len() - 1).alias(HISTORY)
        )
        seen = (
            bought.select(USER_INDEX, pl.col(ITEMS).list.slice(0, HISTORY).alias(ITEM))
            .explode(ITEM)
            .select(USER_INDEX, index(ITEM, catalogue[ITEM]).alias(ITEM_INDEX))
            .unique(maintain_order=True)
        )
        known = catalogue.select(index(ITEM, catalogue[ITEM]).alias(ITEM_INDEX), HAS_IMAGE, TRAIN_COUNT, _head())
        table = (
            bought.select(
                USER_INDEX, pl.col(ITEMS).list.last().alias(ITEM), TIED, HISTORY,
                pl.col(ITEMS).list.slice(0, HISTORY).list.contains(pl.col(ITEMS).list.last()).alias(REPEAT),
            )
            .with_columns(index(ITEM, catalogue[ITEM]).alias(ITEM_INDEX))
            .join(known, on=ITEM_INDEX, how="left", maintain_order="left")
        )  # fmt: skip
        return cls(test[USER], catalogue[ITEM], table.drop(ITEM), seen)

    def of_users(self, users: pl.Series) -> "Targets":
        """The same for some of the users only."""
        kept = self.users.is_in(users.implode())
        places = (kept.cum_sum() - 1).cast(pl.UInt32)
        table, seen = (
            each.with_columns(places.gather(each[USER_INDEX]).alias(USER_INDEX)).filter(kept.gather(each[USER_INDEX]))
            for each in (self.table, self.seen)
        )
        return Targets(self.users.filter(kept), self.items, table, seen)

    def shares(self) -> dict[str, float]:
        """Shares of the targets (0 to 1) that make a data set easy or hard."""
        return self.table.select(
            share_tied=pl.col(TIED).mean(),
            share_cold=(pl.col(TRAIN_COUNT) == 0).mean(),
            share_repeat_targets=pl.col(REPEAT).mean(),
        ).row(0, named=True)

    def groups(self) -> dict[str, pl.Series]:
        """Name of each group of users -> (users,) whether one belongs to it."""
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
            **{name: _between(low, high) for name, (low, high) in lengths.items()},
        }
        return self.table.select(**members).to_dict()


def index(column: str, ids: pl.Series) -> pl.Expr:
    """Place of each value of `column` in `ids`; null for one that is not there."""
    return pl.col(column).cast(pl.Enum(ids), strict=False).to_physical().cast(pl.UInt32)


def _head() -> pl.Expr:
    """Whether an item is among the fewest that have `HEAD_SHARE` of the training interactions."""
    count = pl.col(TRAIN_COUNT)
    before = (count.cum_sum() - count).over(pl.lit(1), order_by=[-count, pl.col(ITEM)])
    return ((count > 0) & (before < HEAD_SHARE * count.sum())).alias(HEAD)


def _between(low: int, high: int | None) -> pl.Expr:
    return pl.col(HISTORY) >= low if high is None else pl.col(HISTORY).is_between(low, high)
