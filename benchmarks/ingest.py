"""Reviews to sequences: PixRec against a json loop and against pandas, each in its own process.

    python -m benchmarks.ingest [--rows 1000000] [--rounds 3] [--gzip] [--only pixrec]

All do the same work, down to quarantine, checks and counts (`ingest_rivals` says how), and what they make is
compared. Prints, for each, the median rate and its range for the lines alone (raw reviews to ordered interactions)
and for the whole way, the seconds of processor time that it took, the peak memory of the process, and how many times
the json loop's rate it has. PixRec uses all cores and the others one, so the rates say what a machine gives and the
processor times what the work costs; on a machine that has other work to do, only these are steady.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from benchmarks.ingest_rivals import CORE, OUTCOMES, JsonLoop, Pandas, outcome
from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA, ITEM, ITEM_SCHEMA

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
        tables = {
            "quarantine": f"SELECT line FROM read_parquet({database.literal(self.paths.interactions_quarantine)})",
            "interactions": f"FROM read_parquet({database.literal(self.paths.interactions)})",
            "kept": "FROM interactions",
            "sequences": "FROM sequences",
            "counts": "SELECT item, train_count FROM items",
        }
        with database.open_read_only(self.paths.sequences) as db:
            for name, query in tables.items():
                db.execute(f"COPY ({query}) TO {database.literal(outcome(self.target, name))}")


CONTENDERS: dict[str, Callable[[DatasetPaths, Path], Any]] = {
    "json loop": JsonLoop,
    "pandas": Pandas,
    "pixrec": PixRec,
}


@dataclass(frozen=True)
class Run:
    """One run of a contender.

    Attributes:
        seconds: to the end of the lines, and of the whole way.
        cpu: seconds of processor time up to the same ends.
        memory: peak of the process, MiB.
    """

    seconds: list[float]
    cpu: list[float]
    memory: float


def measure(name: str, folder: Path) -> Run:
    """Run one contender in a fresh process."""
    run = [sys.executable, "-m", "benchmarks.ingest", "--contender", name, "--folder", str(folder)]
    return Run(**json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout))


def contend(name: str, folder: Path) -> None:
    """In the child: run, its imports outside the clock, and print what `measure` returns."""
    contender = CONTENDERS[name](DatasetPaths(folder / "shop"), folder / name)
    wall, processor = time.perf_counter(), time.process_time()
    run = Run([], [], 0)
    for step in (contender.lines, contender.sequences):
        step()
        run.seconds.append(time.perf_counter() - wall)
        run.cpu.append(time.process_time() - processor)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    contender.hand_over()
    print(json.dumps(asdict(run) | {"memory": memory}))


def compare(rows: int, rounds: int, suffix: str, names: list[str]) -> None:
    """Rounds of all contenders in turn, so that the machine's moods hit each alike."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shop(folder, rows, suffix)
        size = (folder / f"reviews.jsonl{suffix}").stat().st_size
        print(f"{rows:,} lines, {size / 2**20:,.0f} MiB, {rounds} rounds")
        taken: dict[str, list[Run]] = {contender: [] for contender in names}
        for _ in range(rounds):
            for contender in names:
                taken[contender].append(measure(contender, folder))
        for one, other in pairwise(names):
            for each in OUTCOMES:
                agree = found(folder / one, each).equals(found(folder / other, each))
                assert agree, f"{one} and {other} disagree: {each}"
        show(rows, taken)


def found(target: Path, name: str) -> pl.DataFrame:
    """One outcome of a contender; of the quarantine the lines alone, since the words of a reason differ."""
    frame = pl.read_parquet(outcome(target, name))
    frame = frame.select("line") if name == "quarantine" else frame
    return frame.sort(OUTCOMES[name]) if OUTCOMES[name] else frame


def show(rows: int, taken: dict[str, list[Run]]) -> None:
    """Two lines a contender: the lines alone, and the whole way."""
    for step, told in enumerate(("lines", "whole")):
        rates = {name: sorted(rows / run.seconds[step] for run in runs) for name, runs in taken.items()}
        medians = {name: statistics.median(found) for name, found in rates.items()}
        for name, found in rates.items():
            memory = max(run.memory for run in taken[name])
            cpu = statistics.median(run.cpu[step] for run in taken[name])
            beside = f" {medians[name] / medians['json loop']:6.1f}x the json loop" if "json loop" in medians else ""
            print(
                f"{told:6} {name:10} {medians[name]:10,.0f} rows/s ({found[0]:,.0f} to {found[-1]:,.0f}) "
                f"{cpu:8.2f} s cpu {memory:8,.0f} MiB peak{beside}"
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
