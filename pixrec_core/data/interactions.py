"""Review lines -> interactions in (user, timestamp, position) order."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pixrec_core.data import database, json_lines, raw_files
from pixrec_core.data.json_lines import Parsed, Shape
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM, POSITION, RATING, TIMESTAMP, USER
from pixrec_core.settings import IngestSettings
from pixrec_core.stages import Stats

#: Milliseconds: the last one of the year 9999. A time past it was given in another unit.
MAX_TIMESTAMP: Final = 253_402_300_799_999

_KEY = "coalesce(raw.parent_asin, raw.asin)"
# A cast alone would round 1.5, and take 1e3.
_TIME = """CASE WHEN NOT contains(raw.timestamp, '.') AND NOT contains(raw.timestamp, 'e')
    THEN TRY_CAST(raw.timestamp AS BIGINT) END"""
_STARS = "TRY_CAST(raw.rating AS DOUBLE)"  # a JSON string keeps its quotes here, so it is no number

SHAPE: Final = Shape(
    fields=("user_id", "parent_asin", "asin", "timestamp", "rating"),
    columns={
        USER: "text(raw.user_id)",
        ITEM: f"text({_KEY})",
        TIMESTAMP: _TIME,
        RATING: _STARS,
        "is_variant": "raw.asin <> raw.parent_asin",
    },
    fault=f"""coalesce(id_fault('user_id', raw.user_id), id_fault('parent_asin', {_KEY}), CASE
        WHEN raw.timestamp IS NULL THEN 'timestamp is missing'
        WHEN ({_TIME}) IS NULL THEN 'timestamp is no whole number'
        WHEN ({_TIME}) <= 0 THEN 'timestamp is not after 1970'
        WHEN ({_TIME}) > {MAX_TIMESTAMP} THEN 'timestamp is past the year 9999; it must be in milliseconds'
        WHEN raw.rating IS NULL THEN 'rating is missing'
        WHEN ({_STARS}) IS NULL THEN 'rating is no number'
        WHEN NOT ({_STARS}) BETWEEN 0 AND 5 THEN 'rating is not from 0 to 5' END)""",
)

#: Lines alike in user, item and time are one interaction; the first in the file stays.
_INTERACTIONS = f"""
    SELECT "{USER}", {ITEM}, {TIMESTAMP}, arg_min({RATING}, line) AS {RATING}, min(line) AS {POSITION}
    FROM good GROUP BY "{USER}", {ITEM}, {TIMESTAMP} ORDER BY "{USER}", {TIMESTAMP}, {POSITION}"""  # noqa: S608


def build(settings: IngestSettings, paths: DatasetPaths) -> Stats:
    """Write interactions.parquet (INTERACTION_SCHEMA) and the quarantine of bad lines.

    Returns:
        rows, bad_lines, bad_share, duplicates, truncated; users, items; first_time and last_time (ISO, UTC);
        variants: good lines whose `parent_asin` is not their `asin`.

    Raises:
        MissingArtefactError: the raw stage has not run.
        SourceError: no reviews file, no good line in it, or too many bad ones.
    """
    raw = raw_files.locate(paths)
    with json_lines.parse(raw.reviews, SHAPE, paths.interactions_quarantine, settings, raw.reviews_stand_for) as parsed:
        json_lines.write(parsed.db, _INTERACTIONS, paths.interactions)
        return _stats(parsed, paths.interactions)


def _stats(parsed: Parsed, path: Path) -> Stats:
    rows, users, items, first, last = json_lines.fetch_row(
        parsed.db,
        f"""SELECT count(*), count(DISTINCT "{USER}"), count(DISTINCT {ITEM}), min({TIMESTAMP}), max({TIMESTAMP})
            FROM read_parquet({database.literal(path)})""",  # noqa: S608
    )
    (variants,) = json_lines.fetch_row(parsed.db, "SELECT count(*) FILTER (is_variant) FROM good")
    return parsed.stats | {
        "rows": rows,
        "duplicates": parsed.good - rows,
        "users": users,
        "items": items,
        "first_time": _iso(first),
        "last_time": _iso(last),
        "variants": variants,
    }


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
