"""Faults of real files, added to the sample's files so that they exercise every guard of the pipeline."""

import html
import json
import random
from itertools import islice
from typing import Final

from pixrec_core.data.sample.records import Record, image

DEAD_PHOTO: Final = "gone.jpg"  # no such file exists
MALFORMED_PER: Final = 250  # lines per malformed line: 0.4 %, below the default `max_bad_share`
MAX_MALFORMED: Final = 2
DUPLICATE_SHARE: Final = 0.005
UNKNOWN_SHARE: Final = 0.003
ZERO_RATING_SHARE: Final = 0.002
ITEM_DIRT_SHARE: Final = 0.01  # share of items per kind of fault


def soiled_metadata(records: list[Record], seed: int) -> list[bytes]:
    """Return metadata lines with faults; changes `records`."""
    rng = random.Random(f"metadata dirt {seed}")
    deck = iter(rng.sample(records, len(records)))
    few = max(1, round(ITEM_DIRT_SHARE * len(records)))
    for record in islice(deck, few):
        record["images"] = []
    for record in islice(deck, few):
        record["images"][0]["variant"] = "PT01"
    for record in islice(deck, few):
        record["title"] = f"<b>{html.escape(record['title'])}</b> &ndash; New<br/>"
    for record in islice(deck, few):
        record["categories"], record["details"] = [], {}
    for record in islice(deck, 1):
        record["images"] = [image(rng, DEAD_PHOTO, "MAIN")]
    for record in islice(deck, few):
        records.insert(rng.randrange(len(records)), record)
    return _lines(records, rng)


def soiled_reviews(records: list[Record], seed: int) -> list[bytes]:
    """Return review lines with faults; a duplicate follows its original."""
    rng = random.Random(f"review dirt {seed}")
    zero, twice, unknown = (
        set(rng.sample(range(len(records)), max(1, round(share * len(records)))))
        for share in (ZERO_RATING_SHARE, DUPLICATE_SHARE, UNKNOWN_SHARE)
    )
    soiled = []
    for i, record in enumerate(records):
        soiled.append(record | {"rating": 0.0} if i in zero else record)
        if i in twice:
            soiled.append(soiled[-1])
        if i in unknown:
            soiled.append(record | {"parent_asin": f"B0GONE{i % 10_000:04}"})
    return _lines(soiled, rng)


def _lines(records: list[Record], rng: random.Random) -> list[bytes]:
    """Return JSON lines; a large file has one truncated line and one with broken UTF-8."""
    lines = [json.dumps(record).encode() for record in records]
    whole = rng.choice(lines)
    malformed = (whole[: len(whole) // 2], whole[:20] + b"\xff\xfe" + whole[20:])
    for line in malformed[: min(MAX_MALFORMED, len(lines) // MALFORMED_PER)]:
        lines.insert(rng.randrange(len(lines)), line)
    return lines
