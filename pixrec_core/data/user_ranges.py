"""Work on a table a range of users at a time.

DuckDB spills sorts, joins and counts to disk, but not lists: it holds those of one statement in
memory. A statement that makes lists therefore runs for some users after another.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import duckdb

from pixrec_core.data.database import literal

#: Interactions of one range, about; their lists and windows take some 300 MB.
ROWS: Final = 1_000_000

#: The last user of each range: whose rows pass the next multiple of `$rows`.
_LAST: Final = """
SELECT "user" FROM (
    SELECT "user", n, sum(n) OVER (ORDER BY "user") AS upto
    FROM (SELECT "user", count(*) AS n FROM {table} WHERE "user" IS NOT NULL GROUP BY "user")
)
WHERE upto // $rows > (upto - n) // $rows
ORDER BY "user"
"""


def user_ranges(connection: duckdb.DuckDBPyConnection, table: str) -> Iterator[str]:
    """SQL conditions on "user" that part `table` into ranges of about `ROWS` rows, in order of users.

    Every user of any table meets exactly one of them; rows without a user meet the first.
    """
    last = [user for (user,) in connection.execute(_LAST.format(table=table), {"rows": ROWS}).fetchall()]
    for low, high in pairwise([None, *last, None]):
        above = "true" if low is None else f'"user" > {literal(low)}'
        upto = "true" if high is None else f'"user" <= {literal(high)}'
        yield f'({above} AND {upto} OR "user" IS NULL)' if low is None else f"({above} AND {upto})"
