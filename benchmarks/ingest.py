"""Reviews to sequences: PixRec against a json loop and against pandas, each in its own process.

    python -m benchmarks.ingest [--rows 1000000] [--rounds 3] [--gzip] [--only pixrec]

All do the same work: bad lines and repeated ones left out, the 5-core of users and items, each
user's items in order, the last two held out. Their interactions and sequences are compared.
PixRec alone also marks ties, profiles its file and holds it to the data contract. Prints, for each, the median rate
and its range for the lines alone (raw reviews to ordered interactions) and for the whole way, the
peak memory of the process, and how many times the json loop's rate it has.
"""

import argparse
import gzip
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby, pairwise
from pathlib import Path
from typing import IO, Any

import duckdb
import polars as pl

from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA, INTERACTION_SCHEMA, ITEM, ITEM_SCHEMA, ITEMS

KEY = ["user", "item", "timestamp"]
ORDER = ["user", "timestamp", "position"]
CORE = 5  # interactions that a user and an item need
HELD_OUT = {"train": 2, "validation": 1, "test": 0}

#: Of about 500 bytes; one in a thousand is cut short, one in a hundred repeats the line before it.
#: A few users and items have many reviews, most have few.
REVIEWS = """
COPY (
    WITH lines AS (
        SELECT n, CASE WHEN n % 100 = 7 THEN n - 1 ELSE n END AS same FROM range({rows}) AS lines (n)
    ),
    drawn AS (
        SELECT n, floor({rows} / 8 * ((hash(same) % 1000003) / 1000003) ** 1.5)::BIGINT AS "user",
            floor({rows} / 20 * ((hash(same + 1_000_000_007) % 1000003) / 1000003) ** 2.5)::BIGINT AS item, same
        FROM lines
    )
    SELECT CASE WHEN n % 1000 = 999 THEN '{{cut short' ELSE json_object(
        'rating', hash(same, 1) % 5 + 1.0,
        'title', md5(same::VARCHAR),
        'text', rtrim(repeat(left(md5(same::VARCHAR), 6) || ' ', (5 + hash(same, 2) % 65)::INT)),
        'images', [],
        'asin', {item},
        'parent_asin', {item},
        'user_id', 'A' || upper(left(md5('user' || "user") || md5("user"::VARCHAR), 27)),
        'timestamp', 1_000_000_000_000 + hash(same, 3) % 700_000_000_000,
        'helpful_vote', 0,
        'verified_purchase', true)::VARCHAR END
    FROM drawn
) TO {path} (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01', COMPRESSION {compression})
"""
ITEM_ID = "'B' || upper(left(md5('item' || item), 9))"


def write_shop(folder: Path, rows: int, suffix: str) -> DatasetPaths:
    """Review lines, and the catalogue and photos that the sequences stage reads beside the interactions."""
    paths, reviews = DatasetPaths(folder / "shop"), folder / f"reviews.jsonl{suffix}"
    files.write_json(paths.raw_manifest, {"reviews": {"path": str(reviews)}, "metadata": {"path": ""}, "photos": None})
    compression = "gzip" if suffix else "none"
    target = database.literal(reviews)
    with duckdb.connect() as db:
        db.execute(REVIEWS.format(rows=rows, path=target, item=ITEM_ID, compression=compression))
        items = db.sql(f"SELECT DISTINCT {ITEM_ID} AS item FROM range({rows // 20 + 1}) AS items (item)").pl()
    for schema, path in ((ITEM_SCHEMA, paths.items), (IMAGE_SCHEMA, paths.images_manifest)):
        others = [pl.lit(None, kind).alias(name) for name, kind in schema.items() if name != ITEM]
        items.sort(ITEM).select(ITEM, *others).write_parquet(path)
    return paths


class PixRec:
    """The two stages themselves."""

    def __init__(self, paths: DatasetPaths, target: Path) -> None:
        from pixrec_core.data import contract, sequences  # noqa: F401

        contract._great_expectations()  # imported before the clock starts, like pandas
        self.paths, self.target = paths, target

    def lines(self) -> None:
        from pixrec_core.data import interactions
        from pixrec_core.settings import IngestSettings

        interactions.build(IngestSettings(), self.paths)

    def sequences(self) -> None:
        from pixrec_core.data import sequences
        from pixrec_core.settings import SequenceSettings

        sequences.build(SequenceSettings(min_user_interactions=CORE, min_item_interactions=CORE), self.paths)

    def hand_over(self) -> None:
        """Outside the clock: what the others write."""
        with database.reading(self.paths.sequences) as db:
            db.execute(f"""COPY (SELECT split, "user", items FROM sequences ORDER BY split, "user")
                           TO {database.literal(sequences_of(self.target))}""")
        self.paths.interactions.rename(interactions_of(self.target))


class JsonLoop:
    """Dicts and lists."""

    def __init__(self, paths: DatasetPaths, target: Path) -> None:
        self.paths, self.target = paths, target

    def lines(self) -> None:
        kept: dict[tuple[str, str, int], tuple[float, int]] = {}
        with opened(self.paths) as file:
            for position, line in enumerate(file, start=1):
                try:
                    fields = json.loads(line)
                except ValueError:
                    continue
                key = (fields["user_id"], fields.get("parent_asin") or fields["asin"], fields["timestamp"])
                kept.setdefault(key, (fields["rating"], position))
        rows = sorted(((*key, *rest) for key, rest in kept.items()), key=lambda row: (row[0], row[2], row[4]))
        pl.DataFrame(rows, INTERACTION_SCHEMA, orient="row").write_parquet(interactions_of(self.target))
        self.rows = rows

    def sequences(self) -> None:
        known = set(pl.read_parquet(self.paths.items)[ITEM])
        walks = {
            user: [row for row in rows if row[1] in known] for user, rows in groupby(self.rows, key=lambda row: row[0])
        }
        size = None
        while size != (size := sum(map(len, walks.values()))):
            counts = Counter(row[1] for walk in walks.values() for row in walk)
            walks = {user: [row for row in walk if counts[row[1]] >= CORE] for user, walk in walks.items()}
            walks = {user: walk for user, walk in walks.items() if len(walk) >= CORE}
        found = [
            (split, user, [row[1] for row in walk[: len(walk) - n]])
            for split, n in sorted(HELD_OUT.items())
            for user, walk in walks.items()
        ]
        frame = pl.DataFrame(found, ["split", "user", ITEMS], orient="row")
        frame.write_parquet(sequences_of(self.target))

    def hand_over(self) -> None:
        """Nothing is left to do."""


class Pandas:
    """`read_json(lines=True)` in chunks; it stops at a bad line, so those are sieved out of the text before it."""

    def __init__(self, paths: DatasetPaths, target: Path) -> None:
        import pandas  # noqa: F401

        self.paths, self.target = paths, target

    def lines(self) -> None:
        import pandas as pd

        positions: list[int] = []
        with opened(self.paths) as file:
            reader = pd.read_json(Sieved(file, positions), lines=True, dtype=False, chunksize=100_000)
            frame = pd.concat([chunk[["user_id", "parent_asin", "timestamp", "rating"]] for chunk in reader])
        frame["position"] = positions
        frame = frame.rename(columns={"user_id": "user", "parent_asin": "item"}).drop_duplicates(KEY).sort_values(ORDER)
        self.frame = frame[list(INTERACTION_SCHEMA)].reset_index(drop=True)
        self.frame.to_parquet(interactions_of(self.target), index=False)

    def sequences(self) -> None:
        import pandas as pd

        frame = self.frame[self.frame["item"].isin(pd.read_parquet(self.paths.items)["item"])]
        size = None
        while size != (size := len(frame)):
            frame = frame[frame.groupby("item")["user"].transform("size") >= CORE]
            frame = frame[frame.groupby("user")["item"].transform("size") >= CORE]
        after = frame.groupby("user").cumcount(ascending=False)
        parts = [
            frame[after >= n].groupby("user", as_index=False).agg(items=("item", list)).assign(split=split)
            for split, n in sorted(HELD_OUT.items())
        ]
        pd.concat(parts)[["split", "user", ITEMS]].to_parquet(sequences_of(self.target), index=False)

    def hand_over(self) -> None:
        """Nothing is left to do."""


class Sieved:
    """The good lines of a file, as the file that pandas wants; their numbers go to `positions`."""

    def __init__(self, file: Iterable[bytes], positions: list[int]) -> None:
        self.lines = self._good(file, positions)

    @staticmethod
    def _good(file: Iterable[bytes], positions: list[int]) -> Iterable[str]:
        for position, line in enumerate(file, start=1):
            if line.endswith(b"}\n"):
                positions.append(position)
                yield line.decode()

    def __iter__(self) -> Iterable[str]:
        return iter(self.lines)

    def __next__(self) -> str:
        return next(iter(self.lines))

    def read(self, size: int = -1) -> str:
        raise NotImplementedError("pandas reads lines here")


CONTENDERS: dict[str, Callable[[DatasetPaths, Path], Any]] = {
    "json loop": JsonLoop,
    "pandas": Pandas,
    "pixrec": PixRec,
}


def opened(paths: DatasetPaths) -> IO[bytes]:
    """The raw reviews, plain or gzip."""
    path = Path(files.read_json(paths.raw_manifest)["reviews"]["path"])
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")


def interactions_of(target: Path) -> Path:
    """Where a contender leaves its interactions."""
    return target.with_suffix(".interactions.parquet")


def sequences_of(target: Path) -> Path:
    """Where a contender leaves its sequences."""
    return target.with_suffix(".sequences.parquet")


def measure(name: str, folder: Path) -> tuple[float, float, float]:
    """Seconds for the lines, for the whole way, and peak MiB of one contender in a fresh process."""
    run = [sys.executable, "-m", "benchmarks.ingest", "--contender", name, "--folder", str(folder)]
    seconds, whole, memory = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout)
    return seconds, whole, memory


def contend(name: str, folder: Path) -> None:
    """In the child: run, its imports outside the clock, and print what `measure` returns."""
    contender = CONTENDERS[name](DatasetPaths(folder / "shop"), folder / name)
    times = [time.perf_counter()]
    for step in (contender.lines, contender.sequences):
        step()
        times.append(time.perf_counter())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    contender.hand_over()
    print(json.dumps([times[1] - times[0], times[2] - times[0], memory]))


def compare(rows: int, rounds: int, suffix: str, names: list[str]) -> None:
    """Rounds of all contenders in turn, so that the machine's moods hit each alike."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shop(folder, rows, suffix)
        size = (folder / f"reviews.jsonl{suffix}").stat().st_size
        print(f"{rows:,} lines, {size / 2**20:,.0f} MiB, {rounds} rounds")
        taken: dict[str, list[tuple[float, float, float]]] = {contender: [] for contender in names}
        for _ in range(rounds):
            for contender in names:
                taken[contender].append(measure(contender, folder))
        for one, other in pairwise(names):
            for place in (interactions_of, sequences_of):
                alike = pl.read_parquet(place(folder / one)).equals(pl.read_parquet(place(folder / other)))
                assert alike, f"{one} and {other} disagree: {place.__name__}"
        show(rows, taken)


def show(rows: int, taken: dict[str, list[tuple[float, float, float]]]) -> None:
    """Two lines a contender: the lines alone, and the whole way."""
    for step, told in enumerate(("lines", "whole")):
        rates = {name: sorted(rows / run[step] for run in runs) for name, runs in taken.items()}
        medians = {name: statistics.median(found) for name, found in rates.items()}
        for name, found in rates.items():
            memory = max(run[2] for run in taken[name])
            beside = f" {medians[name] / medians['json loop']:6.1f}x the json loop" if "json loop" in medians else ""
            print(
                f"{told:6} {name:10} {medians[name]:10,.0f} rows/s ({found[0]:,.0f} to {found[-1]:,.0f}) "
                f"{memory:8,.0f} MiB peak{beside}"
            )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="review lines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gzip", action="store_true", help="compress the reviews")
    parser.add_argument("--only", choices=list(CONTENDERS), help="run one alone, for sizes that the others cannot hold")
    for name in ("contender", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contend(given.contender, Path(given.folder))
    else:
        names = [given.only] if given.only else list(CONTENDERS)
        compare(given.rows, given.rounds, ".gz" if given.gzip else "", names)


if __name__ == "__main__":
    main()
