"""Reviews to interactions: PixRec against a json loop and against pandas, each in its own process.

    python benchmarks/ingest.py [--rows 500000] [--rounds 3] [--gzip]

All three write the same rows: bad lines left out, exact duplicates dropped, sorted. Prints, for
each, the median rate and its range, peak memory, and how many times the json loop's rate it has.
"""

import argparse
import gzip
import json
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import INTERACTION_SCHEMA

KEY = ["user", "item", "timestamp"]
ORDER = ["user", "timestamp", "position"]


def write_reviews(path: Path, rows: int) -> None:
    """Review lines of about 500 bytes, one in a thousand bad, one in a hundred repeated."""
    draw = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    line = ""
    with gzip.open(path, "wt", compresslevel=1) if path.suffix == ".gz" else path.open("w") as file:
        for number in range(rows):
            if number % 100 or not line:
                line = review(draw, words, rows)
            file.write("{cut short\n" if number % 1000 == 999 else line)


def review(draw: random.Random, words: list[str], rows: int) -> str:
    """One line."""
    item = f"B{draw.randrange(rows // 10 + 1):09}"
    fields = {
        "rating": float(draw.randint(1, 5)),
        "title": " ".join(draw.choices(words, k=4)),
        "text": " ".join(draw.choices(words, k=draw.randint(5, 60))),
        "images": [],
        "asin": item,
        "parent_asin": item,
        "user_id": f"A{draw.randrange(rows // 8 + 1):027}",
        "timestamp": draw.randrange(10**12, 17 * 10**11),
        "helpful_vote": 0,
        "verified_purchase": True,
    }
    return json.dumps(fields) + "\n"


def pixrec(reviews: Path, target: Path) -> None:
    """The stage itself."""
    from pixrec_core.data import interactions
    from pixrec_core.settings import IngestSettings

    paths = DatasetPaths(target.parent / "pixrec")
    files.write_json(paths.raw_manifest, {"reviews": {"path": str(reviews)}, "metadata": {"path": ""}, "photos": None})
    interactions.build(IngestSettings(), paths)
    paths.interactions.rename(target)


def json_loop(reviews: Path, target: Path) -> None:
    """A dict of rows, sorted."""
    kept: dict[tuple[str, str, int], tuple[float, int]] = {}
    with gzip.open(reviews) if reviews.suffix == ".gz" else reviews.open("rb") as file:
        for position, line in enumerate(file, start=1):
            try:
                fields = json.loads(line)
            except ValueError:
                continue
            key = (fields["user_id"], fields.get("parent_asin") or fields["asin"], fields["timestamp"])
            kept.setdefault(key, (fields["rating"], position))
    rows = sorted(((*key, *rest) for key, rest in kept.items()), key=lambda row: (row[0], row[2], row[4]))
    pl.DataFrame(rows, INTERACTION_SCHEMA, orient="row").write_parquet(target)


def pandas_lines(reviews: Path, target: Path) -> None:
    """`read_json(lines=True)` in chunks; it stops at a bad line, so those are sieved out of the text before it."""
    import io

    import pandas as pd

    with gzip.open(reviews) if reviews.suffix == ".gz" else reviews.open("rb") as file:
        numbered = [(position, line) for position, line in enumerate(file, start=1) if line.endswith(b"}\n")]
    frame = pd.read_json(io.BytesIO(b"".join(line for _, line in numbered)), lines=True, convert_dates=False)
    frame["position"] = [position for position, _ in numbered]
    frame = frame.rename(columns={"user_id": "user", "parent_asin": "item"}).drop_duplicates(KEY).sort_values(ORDER)
    frame[list(INTERACTION_SCHEMA)].to_parquet(target, index=False)


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "json loop": json_loop,
    "pandas": pandas_lines,
    "pixrec": pixrec,
}


def measure(name: str, reviews: Path, target: Path) -> tuple[float, float]:
    """Seconds and peak MiB of one contender in a fresh process, its imports outside the clock."""
    run = [sys.executable, __file__, "--contender", name, "--reviews", str(reviews), "--target", str(target)]
    seconds, memory = json.loads(subprocess.run(run, check=True, capture_output=True).stdout)
    return seconds, memory


def contend(name: str, reviews: Path, target: Path) -> None:
    """In the child: run and print seconds and MiB."""
    import pandas  # noqa: F401

    import pixrec_core.data.interactions  # noqa: F401

    start = time.perf_counter()
    CONTENDERS[name](reviews, target)
    seconds = time.perf_counter() - start
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def compare(rows: int, rounds: int, suffix: str) -> None:
    """Rounds of all contenders in turn, so that the machine's moods hit each alike."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        reviews = folder / f"reviews.jsonl{suffix}"
        write_reviews(reviews, rows)
        print(f"{rows:,} lines, {reviews.stat().st_size / 2**20:,.0f} MiB, {rounds} rounds")
        taken: dict[str, list[tuple[float, float]]] = {contender: [] for contender in CONTENDERS}
        for _ in range(rounds):
            for contender in CONTENDERS:
                taken[contender].append(measure(contender, reviews, folder / f"{contender}.parquet"))
        frames = [pl.read_parquet(folder / f"{contender}.parquet") for contender in CONTENDERS]
        assert all(frame.rows() == frames[0].rows() for frame in frames), "the contenders disagree"
        show(rows, taken)


def show(rows: int, taken: dict[str, list[tuple[float, float]]]) -> None:
    """One line a contender."""
    loop = statistics.median(rows / seconds for seconds, _ in taken["json loop"])
    for contender, runs in taken.items():
        rates = sorted(rows / seconds for seconds, _ in runs)
        median = statistics.median(rates)
        memory = max(mib for _, mib in runs)
        print(
            f"{contender:10} {median:10,.0f} rows/s ({rates[0]:,.0f} to {rates[-1]:,.0f}) {memory:8,.0f} MiB peak "
            f"{median / loop:6.1f}x the json loop"
        )


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000, help="review lines")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gzip", action="store_true", help="compress the reviews")
    for name in ("contender", "reviews", "target"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        contend(given.contender, Path(given.reviews), Path(given.target))
    else:
        compare(given.rows, given.rounds, ".gz" if given.gzip else "")


if __name__ == "__main__":
    main()
