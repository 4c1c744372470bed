"""Metadata lines to the catalogue: rate and peak memory of the stage `items`, in a new process.

    python -m benchmarks.catalogue [--rows 1000000]

Lines of about 2 kB in the format of Amazon Reviews 2023. One text in fifty has markup, which Python removes; one line
in a thousand is truncated, one in a hundred repeats the line before it.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb

from pixrec_core import files
from pixrec_core.data import database, items
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import IngestSettings

METADATA = """
COPY (
    WITH lines AS (
        SELECT n, CASE WHEN n % 100 = 7 THEN n - 1 ELSE n END AS same, md5(same::VARCHAR) AS word,
            rtrim(repeat(left(word, 7) || ' ', 20)) AS words,
            CASE WHEN hash(same) % 50 = 0 THEN '<b>' || words || '</b> &amp; more' ELSE words END AS text,
            'https://m.media-amazon.com/images/I/' || left(word, 11) AS photo
        FROM range({rows}) AS lines (n)
    )
    SELECT CASE WHEN n % 1000 = 999 THEN '{{cut short' ELSE json_object(
        'main_category', 'All Beauty',
        'title', left(text, 80),
        'average_rating', 4.5,
        'rating_number', hash(same, 1) % 1000,
        'features', [text, words, words],
        'description', [text, words],
        'price', CASE hash(same, 2) % 4 WHEN 0 THEN NULL WHEN 1 THEN 'from 3.99'
            ELSE (hash(same, 3) % 9999 / 100)::VARCHAR END,
        'images', [
            {{variant: 'MAIN', thumb: photo || '._SS40_.jpg', large: photo || '.jpg', hi_res: photo || '._SL_.jpg'}},
            {{variant: 'PT01', thumb: photo || '1._SS40_.jpg', large: photo || '1.jpg', hi_res: NULL}},
            {{variant: 'PT02', thumb: photo || '2._SS40_.jpg', large: photo || '2.jpg', hi_res: NULL}}],
        'videos', [],
        'store', left(word, 8),
        'categories', ['Beauty', left(word, 2), left(word, 3)],
        'details', {{'Brand': left(word, 8), 'Package Dimensions': words}},
        'parent_asin', 'B' || upper(left(md5('item' || same), 9)))::VARCHAR END
    FROM lines
) TO {path} (FORMAT csv, HEADER false, QUOTE '', ESCAPE '', DELIMITER '\x01')
"""


def write_metadata(folder: Path, rows: int) -> int:
    """Write metadata lines and the manifest that names them; return their size in bytes."""
    metadata = folder / "metadata.jsonl"
    with duckdb.connect() as db:
        db.execute(METADATA.format(rows=rows, path=database.literal(metadata)))
    named = {"reviews": {"path": ""}, "metadata": {"path": str(metadata)}, "photos": None}
    files.write_json(DatasetPaths(folder / "shop").raw_manifest, named)
    return metadata.stat().st_size


def build_catalogue(folder: Path) -> None:
    """Build the catalogue in this process; print items, seconds, CPU seconds and peak MiB as JSON."""
    wall, cpu = time.perf_counter(), time.process_time()
    stats = items.build_items(IngestSettings(), DatasetPaths(folder / "shop"))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps([stats["rows"], wall, cpu, memory]))


def main() -> None:
    """Write the lines, and build the catalogue in a new process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="metadata lines")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        build_catalogue(args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        size = write_metadata(Path(name), args.rows)
        run = [sys.executable, "-m", "benchmarks.catalogue", "--folder", name]
        n_items, wall, cpu, memory = json.loads(subprocess.run(run, check=True, stdout=subprocess.PIPE).stdout)
    print(
        f"{args.rows:,} lines, {size / 2**20:,.0f} MiB, {n_items:,} items: {args.rows / wall:,.0f} rows/s, "
        f"{cpu:.1f} s CPU, {memory:,.0f} MiB peak"
    )


if __name__ == "__main__":
    main()
