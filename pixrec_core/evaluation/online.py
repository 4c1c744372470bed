"""Online metrics: which of the lists that the server showed led to a purchase.

A list is a hit if its user bought one of its items within some days after it was shown. Every list with the item
counts, not only the last one. Of lists without a user only the number is reported, and of open ones, whose days are not
over at the newest purchase: they would make every new method look bad. Where every purchase is of midnight, it has a
day and no time of day, and those of the day of the list count too.
"""

import glob
from pathlib import Path
from typing import Any, Final

from pixrec_core.data import database
from pixrec_core.schemas import DAY_MS
from pixrec_core.stages import Stats

FILES: Final = "shown-*.jsonl"
POSITIONS: Final = 20  # of a list that are reported

#: The server's log, with `time` in milliseconds since 1970. A line that cannot be read, as after a crash, is null.
_SHOWN: Final = """
CREATE TEMP TABLE shown AS
    SELECT row_number() OVER () AS list, *, time + $window > $until + $precision AS is_open
    FROM read_json($files, format = 'newline_delimited', ignore_errors = true,
        columns = {time: 'BIGINT', user: 'VARCHAR', method: 'VARCHAR', items: 'VARCHAR[]'})
"""
#: One row per list and position, from 1, of an item that was bought.
_HITS: Final = """
CREATE TEMP TABLE hits AS
    SELECT DISTINCT entry.method, entry.list, entry.position
    FROM (
        SELECT *, unnest(items) AS item, generate_subscripts(items, 1) AS position FROM shown WHERE NOT is_open
    ) AS entry
    JOIN read_parquet($interactions) AS bought
        ON bought."user" = entry."user" AND bought.item = entry.item
        AND bought.timestamp + $precision > entry.time AND bought.timestamp <= entry.time + $window
"""
#: The newest purchase, and whether all are of midnight.
_BOUGHT: Final = """
SELECT max(timestamp), bool_and(timezone($time_zone, make_timestamptz(timestamp * 1000))::TIME = TIME '00:00')
FROM read_parquet($interactions)
"""
#: Lists, lists without a user, open lists, and lines that cannot be read.
_COUNTS: Final = """
SELECT count(method), count(method) - count("user"), count("user") FILTER (is_open), count(*) - count(method) FROM shown
"""
_METHODS: Final = """
SELECT method, count(*) AS lists, count(hit.list) AS hits
FROM shown LEFT JOIN (SELECT DISTINCT list FROM hits) AS hit USING (list)
WHERE "user" IS NOT NULL AND method IS NOT NULL AND NOT is_open GROUP BY method ORDER BY method
"""


def measure_online(folder: Path, interactions: Path, window_days: float, time_zone: str = "UTC") -> Stats:
    """Return hit rates by method and by position; all promotions of a method count together.

    `folder` has the log of the server, `interactions` the later purchases; a purchase counts for `window_days` days
    after a list. Days without a time start in `time_zone`.

    Returns:
        `lists`, `lists_without_user`, `lists_open`, `unreadable_lines`; `until`, the newest purchase (ms since 1970);
        and per method with lists that are not open `lists`, `hits`, `hit_rate` (0 to 1) and `hits_by_position`.
    """
    bought = {"interactions": database.parquet_path(interactions)}
    with database.connect_in_memory() as db:
        ((until, of_midnight),) = db.execute(_BOUGHT, bought | {"time_zone": time_zone}).fetchall()
        days = {"precision": DAY_MS if of_midnight else 0, "window": round(window_days * DAY_MS)}
        counts, methods = (0, 0, 0, 0), {}
        if files := [path for path in sorted(folder.glob(FILES)) if path.stat().st_size]:
            db.execute(_SHOWN, days | {"until": until, "files": [glob.escape(str(path)) for path in files]})
            db.execute(_HITS, bought | days)
            (counts,) = db.execute(_COUNTS).fetchall()
            for method, lists, hits in db.execute(_METHODS).fetchall():
                positions = db.execute(
                    """SELECT position::VARCHAR, count(*) FROM hits WHERE method = $method AND position <= $most
                        GROUP BY position ORDER BY position""",
                    {"method": method, "most": POSITIONS},
                ).fetchall()
                methods[method] = _summary(lists, hits, dict(positions))
    lists, without_user, still_open, unreadable = counts
    return {
        "lists": lists,
        "lists_without_user": without_user,
        "lists_open": still_open,
        "unreadable_lines": unreadable,
        "window_days": window_days,
        "until": until,
        "methods": methods,
    }


def _summary(lists: int, hits: int, by_position: dict[str, int]) -> dict[str, Any]:
    return {"lists": lists, "hits": hits, "hit_rate": hits / lists, "hits_by_position": by_position}
