"""The interactions stage: reviews or orders to interactions in (user, timestamp, position) order."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pixrec_core.data import database, raw_files
from pixrec_core.data.id_mismatch import explain_mismatch
from pixrec_core.data.raw_table import CheckedTable, checked_rows, fetch_row, id_fault, write_query
from pixrec_core.errors import SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM, POSITION, RATING, TIMESTAMP, USER
from pixrec_core.settings import IngestSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

#: The last millisecond of the year 9999. A later time is in another unit.
MAX_TIMESTAMP: Final = 253_402_300_799_999

_FAULTS: Final = f"""coalesce({id_fault(USER)}, {id_fault(ITEM)}, CASE
    WHEN {TIMESTAMP} IS NULL THEN 'timestamp is missing'
    WHEN {TIMESTAMP} <= 0 THEN 'timestamp is not after 1970'
    WHEN {TIMESTAMP} > {MAX_TIMESTAMP} THEN 'timestamp is past the year 9999; it must be in milliseconds'
    WHEN NOT coalesce({RATING} BETWEEN 0 AND 5, false) THEN 'rating is not from 0 to 5' END)"""

#: Rows with the same user, item and time are one interaction; the first in the file stays.
_INTERACTIONS: Final = f"""
    SELECT "{USER}", {ITEM}, {TIMESTAMP}, arg_min({RATING}, line) AS {RATING}, min(line) AS {POSITION}
    FROM good GROUP BY "{USER}", {ITEM}, {TIMESTAMP} ORDER BY "{USER}", {TIMESTAMP}, {POSITION}"""  # noqa: S608

#: Share of interactions with known items, from which the others are not worth a warning of their own.
USUAL_SHARE: Final = 0.9
_KNOWN_SHARE: Final = f"""
    SELECT avg((item.{ITEM} IS NOT NULL)::INT) FROM read_parquet($interactions) AS bought
    LEFT JOIN read_parquet($items) AS item ON item.{ITEM} = bought.{ITEM}"""  # noqa: S608
_UNKNOWN: Final = f"""
    SELECT bought.{ITEM} FROM read_parquet($interactions) AS bought
    ANTI JOIN read_parquet($items) AS item ON item.{ITEM} = bought.{ITEM}
    GROUP BY bought.{ITEM} ORDER BY count(*) DESC, bought.{ITEM} LIMIT 1000"""  # noqa: S608
_KNOWN: Final = f"SELECT {ITEM} FROM read_parquet($items) LIMIT 200_000"  # noqa: S608


def build_interactions(settings: IngestSettings, paths: DatasetPaths) -> Stats:
    """Write interactions.parquet (INTERACTION_SCHEMA) and the quarantine of rejected rows.

    Returns:
        rows, bad_lines, bad_share, duplicates, truncated; users, items; first_time and last_time (ISO, UTC);
        variants: good rows whose `parent_asin` is not their `asin`; balance of the rows read.

    Raises:
        MissingArtefactError: the raw stage has not run.
        SourceError: the reviews file is missing, has no good row, or too many rejected ones; or no interaction is with
            an item of items.parquet.
    """
    load = raw_files.loader("interactions", paths, settings.max_expansion)
    with checked_rows(load, _FAULTS, paths.interactions_quarantine, settings) as rows:
        write_query(rows.db, _INTERACTIONS, paths.interactions)
        stats = _stats(rows, paths.interactions)
        balance = rows.balance(stats["rows"], "duplicates (user, item and time of an earlier row)")
    log.info("%s: %s", paths.root.name, balance.sentence("interactions"))
    _check_items(paths)
    return stats | {"balance": balance.stats}


def _check_items(paths: DatasetPaths) -> None:
    """Say how ids differ if many interactions are with unknown items.

    Raises:
        SourceError: no interaction is with a known item.
    """
    if not paths.items.exists():
        return
    with database.connect_in_memory() as db:
        files = {"interactions": database.parquet_path(paths.interactions), "items": database.parquet_path(paths.items)}
        (share,) = fetch_row(db, _KNOWN_SHARE, files)
        if share >= USUAL_SHARE:
            return
        unknown, known = (
            [item for (item,) in db.execute(query, needed).fetchall()]
            for query, needed in ((_UNKNOWN, files), (_KNOWN, {"items": files["items"]}))
        )
    cause = explain_mismatch(unknown, known)
    if share == 0:
        raise SourceError(
            f"no interaction of {paths.root.name} is with an item of its items file: {cause}. Correct the mapping of "
            f"`item` in [datasets.{paths.root.name}.source] of pixrec.toml, or write the ids alike"
        )
    log.warning(
        "warning: %s of the interactions are with items that the items file lacks: %s. The run continues without them",
        f"{1 - share:.1%}",
        cause,
    )


def _stats(checked: CheckedTable, path: Path) -> Stats:
    rows, users, items, first, last = fetch_row(
        checked.db,
        f"""SELECT count(*), count(DISTINCT "{USER}"), count(DISTINCT {ITEM}), min({TIMESTAMP}), max({TIMESTAMP})
            FROM read_parquet({database.file_literal(path)})""",  # noqa: S608
    )
    (variants,) = fetch_row(checked.db, "SELECT count(*) FILTER (is_variant) FROM good")
    return checked.stats | {
        "rows": rows,
        "duplicates": checked.good - rows,
        "users": users,
        "items": items,
        "first_time": _iso(first),
        "last_time": _iso(last),
        "variants": variants,
    }


def _iso(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
