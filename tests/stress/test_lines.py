"""Lines that are mutated at random become rows or rejected rows: none is lost, and none ends the stage."""

from pathlib import Path
from random import Random

import polars as pl
import pytest

from pixrec_core.data import interactions, items
from tests.core.data import raw_shop

LINES = 200
ATOMS = [
    b"",
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b'"',
    b"\\",
    b"{",
    b"]",
    b",",
    b"\r",
    b"\t",
    b"1e999",
    b"-9" * 30,
    b"null",
]
ATOMS += [b"\\ud800", b"[" * 500, "\u202e".encode(), "\u2028".encode(), b"NaN", b" ", b'"pixrec_fault": "x",']


def mutate(line: bytes, random: Random) -> bytes:
    """A line with up to three places replaced."""
    for _ in range(random.randrange(4)):
        start = random.randrange(len(line) or 1)
        line = line[:start] + random.choice(ATOMS) + line[start + random.randrange(4) :]
    return line.replace(b"\n", b"") + b"\n"


@pytest.mark.timeout(0)
def test_lines(tmp_path: Path, rounds) -> None:
    for random in rounds():
        reviews = [mutate(raw_shop.review(user_id=f"u{n}"), random) for n in range(LINES)]
        metadata = [mutate(raw_shop.item(parent_asin=f"p{n}"), random) for n in range(LINES)]
        files = [tmp_path / "reviews.jsonl", tmp_path / "meta.jsonl"]
        for path, lines in zip(files, (reviews, metadata), strict=True):
            path.write_bytes(b"".join(lines) + raw_shop.review() + raw_shop.item(parent_asin="last"))
        paths = raw_shop.at(tmp_path, *files)
        stats = interactions.build_interactions(raw_shop.LENIENT, paths)
        quarantined = pl.read_parquet(paths.interactions_quarantine).height
        lines = sum(1 for line in files[0].read_bytes().split(b"\n") if line.strip())
        assert stats["bad_lines"] == quarantined
        assert stats["rows"] + stats["duplicates"] + quarantined == lines
        stats = items.build_items(raw_shop.LENIENT, paths)
        assert stats["bad_lines"] == pl.read_parquet(paths.items_quarantine).height
