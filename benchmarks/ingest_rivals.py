"""Direct implementations of reviews to sequences: a json loop, and pandas.

Each does the work of the stages `interactions` and `sequences`. `lines`: move bad lines to a quarantine with their
reasons, check the fields of the others, drop repeated ones, sort the rest. `sequences`: drop unknown items, compute the
5-core, the index and split of each interaction, three sequences per user with times and ties, and training counts;
check and count the result. Differences: PixRec writes one DuckDB file, these write Parquet; PixRec checks its contract
with Great Expectations, these use assertions; and PixRec reads files that do not fit into memory.
"""

import gzip
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, Any

import polars as pl

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import FILTERED_SCHEMA, INTERACTION_SCHEMA, ITEM, SEQUENCE_SCHEMA

CORE = 5  # interactions that a user and an item need
HELD_OUT = {"train": 2, "validation": 1, "test": 0}
LATEST = 253_402_300_799_999  # the last millisecond of the year 9999
KEY = ["user", "item", "timestamp"]
ORDER = ["user", "timestamp", "position"]

#: Tables that each contender writes, one Parquet file each, and the columns to sort by before a comparison; none if the
#: order is part of the result.
OUTCOMES: dict[str, list[str]] = {
    "quarantine": ["line"],
    "interactions": [],
    "split_interactions": [],
    "sequences": ["split", "user"],
    "counts": ["item"],
}


def opened(paths: DatasetPaths) -> IO[bytes]:
    """Open the raw reviews, plain or gzip."""
    path = Path(files.read_json(paths.raw_manifest)["reviews"]["path"])
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def outcome(target: Path, name: str) -> Path:
    """Return the file of one of `OUTCOMES`."""
    return target.with_name(f"{target.name}.{name}.parquet")


def fault_of(fields: Any) -> str | None:
    """Return why a line is bad; None for a good one."""
    if not isinstance(fields, dict):
        return "no JSON object"
    for name, key in (("user_id", fields.get("user_id")), ("item", fields.get("parent_asin") or fields.get("asin"))):
        if not isinstance(key, str) or not key.strip(" ") or "\0" in key:
            return f"{name} is no id"
    time, rating = fields.get("timestamp"), fields.get("rating")
    if type(time) is not int or not 0 < time <= LATEST:
        return "timestamp is no time"
    if type(rating) not in {int, float} or not 0 <= rating <= 5:
        return "rating is not from 0 to 5"
    return None


class JsonLoop:
    """An implementation with dicts and lists."""

    def __init__(self, paths: DatasetPaths, target: Path) -> None:
        self.paths, self.target = paths, target

    def lines(self) -> None:
        first: dict[tuple[str, str, int], tuple[float, int]] = {}
        bad: list[tuple[int, str, str]] = []
        with opened(self.paths) as file:
            for position, line in enumerate(file, start=1):
                try:
                    fields = json.loads(line)
                    fault = fault_of(fields)
                except ValueError as error:
                    fault = str(error)
                if fault:
                    bad.append((position, fault, line[:200].decode("utf-8", "replace")))
                    continue
                key = (fields["user_id"], fields.get("parent_asin") or fields["asin"], fields["timestamp"])
                first.setdefault(key, (fields["rating"], position))
        self.rows = sorted(((*key, *rest) for key, rest in first.items()), key=lambda row: (row[0], row[2], row[4]))
        _columns(bad, ["line", "reason", "raw"]).write_parquet(outcome(self.target, "quarantine"))
        _columns(self.rows, INTERACTION_SCHEMA).write_parquet(outcome(self.target, "interactions"))

    def sequences(self) -> None:
        self.known = set(pl.read_parquet(self.paths.items)[ITEM])
        histories = self._core()
        split_interactions = [
            (*row, ordinal, _split_of(len(history) - ordinal))
            for history in histories.values()
            for ordinal, row in enumerate(history, start=1)
        ]
        found = list(_sequences_of(histories))
        counts = Counter(item for split, _, items, *_ in found if split == "train" for item in items)
        self._check(histories, found, counts)
        _columns(split_interactions, FILTERED_SCHEMA).write_parquet(outcome(self.target, "split_interactions"))
        _columns(found, SEQUENCE_SCHEMA).write_parquet(outcome(self.target, "sequences"))
        items = sorted({row[1] for row in split_interactions})
        _columns([(item, counts[item]) for item in items], ["item", "train_count"]).write_parquet(
            outcome(self.target, "counts")
        )

    def _core(self) -> dict[str, list[Any]]:
        histories = {
            user: [row for row in rows if row[1] in self.known]
            for user, rows in groupby(self.rows, key=lambda row: row[0])
        }
        size = None
        while size != (size := sum(map(len, histories.values()))):
            counts = Counter(row[1] for history in histories.values() for row in history)
            histories = {
                user: [row for row in history if counts[row[1]] >= CORE] for user, history in histories.items()
            }
            histories = {user: history for user, history in histories.items() if len(history) >= CORE}
        return histories

    def _check(self, histories: dict[str, list[Any]], found: list[Any], counts: Counter[str]) -> None:
        """Check the contract, and count what the profile counts."""
        lists: dict[str, dict[str, list[str]]] = {split: {} for split in HELD_OUT}
        for split, user, items, times, _ in found:
            assert user not in lists[split]
            assert len(items) == len(times)
            assert self.known.issuperset(items)
            lists[split][user] = items
        for user, history in histories.items():
            assert all((a[2], a[4]) < (b[2], b[4]) for a, b in pairwise(history))
            assert all(row[2] > 0 and 0 <= row[3] <= 5 for row in history)
            whole = [row[1] for row in history]
            assert lists["test"][user] == whole
            assert lists["validation"][user] == whole[:-1]
            assert lists["train"][user] == whole[:-2]
        tests = list(lists["test"].values())
        lengths = sorted(len(items) - 1 for items in tests)
        self.profile = {
            "users": len(histories),
            "pairs": sum(len(set(items)) for items in tests),
            "tied": sum(tied for split, *_, tied in found if split == "test"),
            "repeats": sum(items[-1] in items[:-1] for items in tests),
            "cold": sum(not counts[items[-1]] for items in tests),
            "history": [lengths[math.ceil(share * len(lengths)) - 1] for share in (0.5, 0.9, 0.99, 1)],
        }

    def export_tables(self) -> None:
        """Do nothing: the tables are written."""


def _columns(rows: list[Any], names: Iterable[str]) -> pl.DataFrame:
    """Return a frame; polars builds it from columns far faster than from rows."""
    return pl.DataFrame(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))


def _split_of(after: int) -> str:
    return {0: "test", 1: "validation"}.get(after, "train")


def _sequences_of(histories: dict[str, list[Any]]) -> Iterator[tuple[str, str, list[str], list[int], bool]]:
    for split, left_out in HELD_OUT.items():
        for user, history in histories.items():
            n = len(history) - left_out
            times = [row[2] for row in history]
            tied = split != "train" and times[n - 1] in (*times[n - 2 : n - 1], *times[n : n + 1])
            yield split, user, [row[1] for row in history[:n]], times[:n], tied


class Pandas:
    """An implementation with `read_json(lines=True)` in chunks. It fails at a bad line, so those are removed before."""

    def __init__(self, paths: DatasetPaths, target: Path) -> None:
        import pandas  # noqa: F401

        self.paths, self.target = paths, target

    def lines(self) -> None:
        import pandas as pd

        with opened(self.paths) as file:
            sieve = Sieve(file)
            reader = pd.read_json(sieve, lines=True, dtype=False, chunksize=100_000)
            frame = pd.concat([chunk[["user_id", "parent_asin", "timestamp", "rating"]] for chunk in reader])
        frame["position"] = sieve.positions
        frame = frame.rename(columns={"user_id": "user", "parent_asin": "item"})
        good = (
            (frame["user"].str.strip(" ") != "")
            & (frame["item"].str.strip(" ") != "")
            & frame["timestamp"].between(1, LATEST)
            & frame["rating"].between(0, 5)
        )
        bad = frame[~good].assign(reason="a field is bad")[["position", "reason"]].rename(columns={"position": "line"})
        cut = pd.DataFrame(sieve.bad, columns=["line", "reason", "raw"])
        pd.concat([cut, bad]).to_parquet(outcome(self.target, "quarantine"), index=False)
        frame = frame[good].drop_duplicates(KEY).sort_values(ORDER)
        self.frame = frame[list(INTERACTION_SCHEMA)].reset_index(drop=True)
        self.frame.to_parquet(outcome(self.target, "interactions"), index=False)

    def sequences(self) -> None:
        import pandas as pd

        self.known = pd.read_parquet(self.paths.items)["item"]
        frame = self._core()
        by_user = frame.groupby("user")
        frame["ordinal"] = by_user.cumcount() + 1
        after = by_user.cumcount(ascending=False)
        frame["split"] = after.map({0: "test", 1: "validation"}).fillna("train")
        time = frame["timestamp"]
        frame["tied"] = (time == by_user["timestamp"].shift()) | (time == by_user["timestamp"].shift(-1))
        found = pd.concat([self._split(frame, after, split) for split in HELD_OUT])
        counts = frame[frame["split"] == "train"].groupby("item").size()
        self._check(frame, found, counts)
        frame[list(FILTERED_SCHEMA)].to_parquet(outcome(self.target, "split_interactions"), index=False)
        found[list(SEQUENCE_SCHEMA)].to_parquet(outcome(self.target, "sequences"), index=False)
        counts = counts.reindex(sorted(frame["item"].unique()), fill_value=0)
        counts.rename("train_count").reset_index().to_parquet(outcome(self.target, "counts"), index=False)

    def _core(self) -> Any:
        frame = self.frame[self.frame["item"].isin(self.known)]
        size = None
        while size != (size := len(frame)):
            frame = frame[frame.groupby("item")["user"].transform("size") >= CORE]
            frame = frame[frame.groupby("user")["item"].transform("size") >= CORE]
        return frame.copy()

    @staticmethod
    def _split(frame: Any, after: Any, split: str) -> Any:
        by_user = frame[after >= HELD_OUT[split]].groupby("user", as_index=False)
        sequences = by_user.agg(items=("item", list), timestamps=("timestamp", list), tied=("tied", "last")).assign(
            split=split
        )
        return sequences.assign(tied=False) if split == "train" else sequences

    def _check(self, frame: Any, found: Any, counts: Any) -> None:
        """Check the contract, and count what the profile counts."""
        by_user = frame.groupby("user")
        step, onwards = by_user["timestamp"].diff(), by_user["position"].diff()
        assert not ((step < 0) | ((step == 0) & (onwards <= 0))).any()
        assert frame["item"].isin(self.known).all()
        assert frame["timestamp"].gt(0).all()
        assert frame["rating"].between(0, 5).all()
        assert not found.duplicated(["split", "user"]).any()
        lists = {split: part.set_index("user")["items"] for split, part in found.groupby("split")}
        whole = by_user["item"].agg(list)
        for split, left_out in HELD_OUT.items():
            assert all(a == b[: len(b) - left_out] for a, b in zip(lists[split], whole, strict=True))
        tests = found[found["split"] == "test"]
        target = tests["items"].str[-1]
        self.profile = {
            "users": len(whole),
            "pairs": len(frame[["user", "item"]].drop_duplicates()),
            "tied": tests["tied"].sum(),
            "repeats": sum(items[-1] in items[:-1] for items in tests["items"]),
            "cold": (~target.isin(counts.index)).sum(),
            "history": (tests["items"].str.len() - 1).quantile([0.5, 0.9, 0.99, 1]).tolist(),
        }

    def export_tables(self) -> None:
        """Do nothing: the tables are written."""


class Sieve:
    """The complete lines of a file, as a file object for pandas; `positions` are their numbers, `bad` the others."""

    def __init__(self, file: Iterable[bytes]) -> None:
        self.positions: list[int] = []
        self.bad: list[tuple[int, str, str]] = []
        self._lines = self._good(file)

    def _good(self, file: Iterable[bytes]) -> Iterator[str]:
        for position, line in enumerate(file, start=1):
            if line.endswith(b"}\n"):
                self.positions.append(position)
                yield line.decode()
            else:
                self.bad.append((position, "the line is truncated", line[:200].decode("utf-8", "replace")))

    def __iter__(self) -> Iterator[str]:
        return self._lines

    def __next__(self) -> str:
        return next(self._lines)

    def read(self, size: int = -1) -> str:
        raise NotImplementedError("pandas reads lines here")
