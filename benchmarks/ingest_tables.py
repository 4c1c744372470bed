"""CSV or Parquet to ordered interactions: rate and peak memory of the stages raw and interactions.

    python -m benchmarks.ingest_tables --source csv [--rows 1000000] [--rounds 5]

The table has the columns of an order: customer, product, time, stars and a free text that may contain commas, quotes
and line breaks with `--texts`. One CSV row in a thousand lacks a cell. Each round runs in its own process.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from pixrec_core.data import interactions, raw_files
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import IngestSettings, SourceSettings

ORDERS = """
SELECT 'A' || upper(left(md5('user' || floor({rows} / 8 * ((hash(n) % 1000003) / 1000003) ** 1.5)), 27)) AS customer,
    'B' || upper(left(md5('item' || floor({rows} / 20 * ((hash(n + 7) % 1000003) / 1000003) ** 2.5)), 9)) AS sku,
    make_timestamp((1_000_000_000_000 + hash(n, 3) % 700_000_000_000)::BIGINT * 1000) AS bought_at,
    hash(n, 1) % 5 + 1 AS stars,
    left(md5(n::VARCHAR), (5 + hash(n, 2) % 27)::INT){text} AS note
FROM range({rows}) AS orders (n) ORDER BY n
"""
COLUMNS = {"user": "customer", "item": "sku", "timestamp": "bought_at", "rating": "stars"}


def write_orders(folder: Path, source: str, rows: int, texts: bool) -> Path:
    """Write the table and one item; return the table."""
    text = " || CASE n % 10 WHEN 0 THEN ', \"quoted\"' WHEN 1 THEN chr(10) || 'more' ELSE '' END" if texts else ""
    path = folder / f"orders.{source}"
    with duckdb.connect() as db:
        db.execute(f"COPY ({ORDERS.format(rows=rows, text=text)}) TO '{path}'")
    if source == "csv" and not texts:
        lines = path.read_bytes().splitlines(keepends=True)
        lines[500::1000] = [line.rpartition(b",")[0] + b"\n" for line in lines[500::1000]]
        path.write_bytes(b"".join(lines))
    (folder / "products.csv").write_text("sku\ns\n")
    return path


def run_stages(folder: Path, table: str) -> None:
    """Run both stages and print seconds, peak MiB and the number of rows as JSON."""
    source = SourceSettings(
        kind="tables",
        interactions=table,
        items="products.csv",
        interaction_columns=COLUMNS,
        item_columns={"item": "sku"},
    )
    paths = DatasetPaths(folder / "data" / "shop")
    start = time.perf_counter()
    raw_files.fetch(source, folder, paths)
    stats = interactions.build_interactions(IngestSettings(), paths)
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts = {name: stats[name] for name in ("rows", "duplicates", "bad_lines")}
    print(json.dumps({"seconds": seconds, "memory": memory} | counts))


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", action="store_true", help="add quotes and line breaks to the texts")
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.folder:
        run_stages(Path(given.folder), f"orders.{given.source}")
        return
    with tempfile.TemporaryDirectory() as name:
        size = write_orders(Path(name), given.source, given.rows, given.texts).stat().st_size
        command = [sys.executable, "-m", "benchmarks.ingest_tables", "--source", given.source, "--folder", name]
        runs = [
            json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout) for _ in range(given.rounds)
        ]
    rates = sorted(given.rows / run["seconds"] for run in runs)
    memory = max(run["memory"] for run in runs)
    print(
        f"{given.source}: {given.rows:,} rows, {size / 2**20:,.0f} MiB, {given.rounds} rounds: "
        f"{statistics.median(rates):,.0f} rows/s ({rates[0]:,.0f} to {rates[-1]:,.0f}), {memory:,.0f} MiB peak; "
        f"{runs[0]}"
    )


if __name__ == "__main__":
    main()
