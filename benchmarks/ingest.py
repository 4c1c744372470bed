"""Reviews to sequences: PixRec against a json loop and pandas, each in its own process.

    python -m benchmarks.ingest [--rows 1000000] [--rounds 3] [--gzip] [--only pixrec]

All do the same work, including quarantine, checks and counts (see `ingest_rivals`), and their results are compared.
For each contender this prints the median rate and its range, CPU seconds, peak memory, and the ratio to the rate of the
json loop: for `lines` (raw reviews to ordered interactions) and for `whole` (to sequences). PixRec uses all cores, the
others use one; other work on the machine disturbs the rates, but hardly the CPU seconds.
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

#: Lines of about 500 bytes; one in a thousand is truncated, one in a hundred repeats the line before it.
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
    """Write review lines, and the catalogue and photo manifest that the stage `sequences` reads too."""
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
    """The stages `interactions` and `sequences`."""

    def __init__(self, paths: DatasetPaths, target: Path) -> None:
        from pixrec_core.data import contract, sequences  # noqa: F401

        contract._great_expectations()  # imported before the clock starts, like pandas
        self.paths, self.target = paths, target

    def lines(self) -> None:
        from pixrec_core.data import interactions
        from pixrec_core.settings import IngestSettings

        interactions.build_interactions(IngestSettings(), self.paths)

    def sequences(self) -> None:
        from pixrec_core.data import sequences
        from pixrec_core.settings import SequenceSettings

        sequences.build_sequences(SequenceSettings(min_user_interactions=CORE, min_item_interactions=CORE), self.paths)

    def export_tables(self) -> None:
        """Write the same tables as the other contenders; not timed."""
        tables = {
            "quarantine": f"SELECT line FROM read_parquet({database.literal(self.paths.interactions_quarantine)})",
            "interactions": f"FROM read_parquet({database.literal(self.paths.interactions)})",
            "split_interactions": "FROM interactions",
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
        seconds: until the end of the lines, and of the whole.
        cpu: CPU seconds until the same points.
        memory: peak of the process in MiB.
    """

    seconds: list[float]
    cpu: list[float]
    memory: float


def measure(name: str, folder: Path) -> Run:
    """Run one contender in a new process."""
    run = [sys.executable, "-m", "benchmarks.ingest", "--contender", name, "--folder", str(folder)]
    return Run(**json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout))


def contend(name: str, folder: Path) -> None:
    """Run one contender in this process, without timing its imports, and print a `Run` as JSON."""
    contender = CONTENDERS[name](DatasetPaths(folder / "shop"), folder / name)
    wall, cpu = time.perf_counter(), time.process_time()
    run = Run([], [], 0)
    for step in (contender.lines, contender.sequences):
        step()
        run.seconds.append(time.perf_counter() - wall)
        run.cpu.append(time.process_time() - cpu)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    contender.export_tables()
    print(json.dumps(asdict(run) | {"memory": memory}))


def compare(rows: int, rounds: int, suffix: str, names: list[str]) -> None:
    """Run the contenders in turns, compare their results, and print rates."""
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
    """Return one table of a contender; of the quarantine only the lines, since the reasons have different words."""
    frame = pl.read_parquet(outcome(target, name))
    frame = frame.select("line") if name == "quarantine" else frame
    return frame.sort(OUTCOMES[name]) if OUTCOMES[name] else frame


def show(rows: int, taken: dict[str, list[Run]]) -> None:
    """Print two lines per contender: `lines` and `whole`."""
    for step, name_of_step in enumerate(("lines", "whole")):
        rates = {name: sorted(rows / run.seconds[step] for run in runs) for name, runs in taken.items()}
        medians = {name: statistics.median(found) for name, found in rates.items()}
        for name, found in rates.items():
            memory = max(run.memory for run in taken[name])
            cpu = statistics.median(run.cpu[step] for run in taken[name])
            ratio = f" {medians[name] / medians['json loop']:6.1f}x the json loop" if "json loop" in medians else ""
            print(
                f"{name_of_step:6} {name:10} {medians[name]:10,.0f} rows/s ({found[0]:,.0f} to {found[-1]:,.0f}) "
                f"{cpu:8.2f} s CPU {memory:8,.0f} MiB peak{ratio}"
            )


def main() -> None:
    """Parse the command line, then compare, or run one contender in a process that this script started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="review lines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gzip", action="store_true", help="compress the reviews")
    parser.add_argument(
        "--only", choices=list(CONTENDERS), help="run one contender, for sizes that the others cannot hold in memory"
    )
    for name in ("contender", "folder"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        contend(args.contender, Path(args.folder))
    else:
        names = [args.only] if args.only else list(CONTENDERS)
        compare(args.rows, args.rounds, ".gz" if args.gzip else "", names)


if __name__ == "__main__":
    main()
