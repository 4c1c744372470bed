"""The profile of a sequences file: every number that its contract and its statistics speak of.

One statement, so that DuckDB scans each table as seldom as it can; the result is one row, whatever
the size of the file.
"""

from typing import Any, Final

import duckdb

#: Counts, shares (0 to 1) and quantiles of items. `coalesce` because the mean over no rows is null,
#: and because a comparison with null is neither true nor false: both must count as broken.
_PROFILE: Final = """
WITH splits AS (
    SELECT
        "user",
        any_value(items) FILTER (split = 'train') AS train,
        any_value(items) FILTER (split = 'validation') AS validation,
        any_value(items) FILTER (split = 'test') AS test,
        any_value(tied) FILTER (split = 'test') AS tied
    FROM sequences
    GROUP BY "user"
),
histories AS (
    SELECT
        coalesce(len(test) - 1, 0) AS length,
        test[-1] AS target,
        coalesce(list_contains(test[:-2], target), false) AS is_repeat,
        coalesce(tied, false) AS is_tied,
        coalesce(train = validation[:-2] AND validation = test[:-2] AND len(train) >= 1, false) AS is_nested
    FROM splits
),
users AS (
    SELECT
        count(*) AS users,
        count(*) FILTER (NOT is_nested) AS users_with_overlapping_splits,
        coalesce(avg(is_tied::INT), 0) AS share_tied_test,
        coalesce(avg(is_repeat::INT), 0) AS share_repeat_test_targets,
        coalesce(avg((items.train_count = 0)::INT), 0) AS share_cold_test_targets,
        min(length) AS history_min,
        quantile_disc(length, 0.5) AS history_median,
        quantile_disc(length, 0.9) AS history_p90,
        max(length) AS history_max
    FROM histories LEFT JOIN items ON items.item = histories.target
),
train_counts AS (
    SELECT item, count(*) AS n FROM (SELECT unnest(items) AS item FROM sequences WHERE split = 'train') GROUP BY item
),
catalogue AS (
    SELECT
        count(*) AS items,
        count(*) FILTER (coalesce(items.item, '') = '') AS items_without_id,
        count(items.item) - count(DISTINCT items.item) AS items_with_repeated_id,
        count(*) FILTER (items.train_count IS DISTINCT FROM coalesce(n, 0)) AS items_with_wrong_train_count,
        coalesce(avg(has_image::INT), 0) AS image_coverage
    FROM items LEFT JOIN train_counts USING (item)
),
ordered AS (
    SELECT
        *,
        row(timestamp, position) AS moment,
        lag(moment) OVER (PARTITION BY "user" ORDER BY place) AS moment_before
    FROM interactions
),
purchases AS (
    SELECT
        count(*) AS interactions,
        count(*) FILTER ("user" IS NULL OR item IS NULL OR timestamp IS NULL OR position IS NULL OR place IS NULL)
            AS interactions_with_nulls,
        count(*) FILTER (item NOT IN (SELECT item FROM items WHERE item IS NOT NULL)) AS interactions_of_unknown_items,
        count(*) FILTER (timestamp <= 0) AS interactions_without_time,
        count(*) FILTER (rating NOT BETWEEN 0 AND 5) AS interactions_with_impossible_rating,
        count(*) FILTER (moment <= moment_before) AS interactions_out_of_order,
        count(DISTINCT ("user", item)) AS pairs
    FROM ordered
),
walks AS (
    SELECT "user", list(item ORDER BY place) AS items FROM interactions GROUP BY "user"
),
listed AS (
    SELECT
        count(*) FILTER (split IS NULL OR "user" IS NULL OR items IS NULL OR tied IS NULL
            OR len(items) <> len(list_filter(items, lambda x: x IS NOT NULL))) AS sequences_with_nulls,
        count(*) - count(DISTINCT (split, "user")) AS sequences_repeated,
        count(*) FILTER (split NOT IN ('train', 'validation', 'test')) AS sequences_of_unknown_split
    FROM sequences
),
places AS (
    SELECT count(*) AS sequence_places_of_unknown_items
    FROM (SELECT unnest(items) AS item FROM sequences)
    WHERE item NOT IN (SELECT item FROM items WHERE item IS NOT NULL)
),
agreement AS (
    SELECT count(*) AS users_unlike_their_interactions
    FROM splits FULL JOIN walks USING ("user")
    WHERE test IS DISTINCT FROM walks.items
)
SELECT *, coalesce(pairs / (nullif(users, 0) * nullif(items, 0)), 0) AS density
FROM users, catalogue, purchases, listed, places, agreement
"""


def profile(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Measure tables `items`, `interactions` and `sequences` of an open sequences file.

    Returns:
        One number a name. Quantiles of history length are None where there are no users.
    """
    result = connection.execute(_PROFILE)
    row = result.fetchone()
    assert row is not None, "aggregates without GROUP BY give one row"
    return dict(zip((column[0] for column in result.description or ()), row, strict=True))
