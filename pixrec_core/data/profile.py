"""The profile of a sequences file: every number that its contract and its statistics speak of.

What compares lists or looks along a user's order is measured a range of users at a time, into small
temporary tables; the rest in one statement. The result is one row, whatever the size of the file.
"""

from typing import Any, Final

import duckdb

from pixrec_core.data.user_ranges import user_ranges

#: `by_range`: counts that add up over ranges of users. `histories`: one row a test user.
_TEMPORARY: Final = """
CREATE OR REPLACE TEMP TABLE by_range (
    users BIGINT, users_unlike_their_interactions BIGINT, users_with_overlapping_splits BIGINT,
    interactions_out_of_order BIGINT, interactions_of_wrong_split BIGINT, pairs BIGINT, sequences_repeated BIGINT
);
CREATE OR REPLACE TEMP TABLE histories (length BIGINT, target VARCHAR, is_repeat BOOLEAN, is_tied BOOLEAN);
"""

_CUT: Final = """
cut AS (
    SELECT
        min(start) FILTER (split = 'validation') AS validation_start,
        min(start) FILTER (split = 'test') AS test_start
    FROM cuts
)
"""

#: One row a user that has a sequence.
_SPLITS: Final = f"""
{_CUT},
some_sequences AS (FROM sequences WHERE {{some_users}}),
placed AS (
    SELECT some_sequences.*, coalesce(CASE split
        WHEN 'train' THEN list_max(moments) < validation_start
        WHEN 'validation' THEN list_max(moments[:-2]) < validation_start
            AND validation_start <= moments[-1] AND moments[-1] < test_start
        WHEN 'test' THEN list_max(moments[:-2]) < test_start AND test_start <= moments[-1] END, false) AS is_in_time
    FROM some_sequences, cut
),
splits AS (
    SELECT
        "user",
        any_value(items) FILTER (split = 'train') AS train,
        any_value(items) FILTER (split = 'validation') AS validation,
        any_value(items) FILTER (split = 'test') AS test,
        any_value(moments) FILTER (split = 'train') AS train_moments,
        any_value(moments) FILTER (split = 'validation') AS validation_moments,
        any_value(moments) FILTER (split = 'test') AS test_moments,
        any_value(tied) FILTER (split = 'test') AS tied,
        bool_and(is_in_time) AS is_in_time
    FROM placed
    GROUP BY "user"
)
"""  # noqa: S608

_HISTORIES: Final = f"""
INSERT INTO histories
WITH {_SPLITS}
SELECT
    len(test) - 1 AS length,
    test[-1] AS target,
    coalesce(list_contains(test[:-2], target), false) AS is_repeat,
    coalesce(tied, false) AS is_tied
FROM splits
WHERE test IS NOT NULL
"""  # noqa: S608

_BY_RANGE: Final = f"""
INSERT INTO by_range
WITH {_SPLITS},
some_interactions AS (FROM interactions WHERE {{some_users}}),
disjointness AS (
    SELECT count(*) FILTER (NOT CASE
        WHEN test_start IS NULL
        THEN coalesce(train = validation[:-2] AND validation = test[:-2] AND len(train) >= 1, false)
        ELSE is_in_time END) AS users_with_overlapping_splits
    FROM splits, cut
),
ordered AS (
    SELECT
        *,
        row(timestamp, position) AS moment,
        lag(moment) OVER (PARTITION BY "user" ORDER BY place) AS moment_before,
        count(*) OVER (PARTITION BY "user") - place AS places_after
    FROM some_interactions
),
purchases AS (
    SELECT
        count(*) FILTER (moment <= moment_before) AS interactions_out_of_order,
        count(*) FILTER (NOT CASE
            WHEN test_start IS NULL
            THEN split = CASE places_after WHEN 0 THEN 'test' WHEN 1 THEN 'validation' ELSE 'train' END
            WHEN timestamp >= test_start THEN split = 'test'
            WHEN timestamp >= validation_start THEN split = 'validation'
            ELSE split IN ('train', 'history') END) AS interactions_of_wrong_split
    FROM ordered, cut
),
couples AS (
    SELECT count(*) AS pairs FROM (SELECT DISTINCT "user", item FROM some_interactions)
),
walks AS (
    SELECT
        "user",
        list(item ORDER BY place) AS items,
        list(timestamp ORDER BY place) AS moments,
        list(item ORDER BY place) FILTER (split = 'train') AS train,
        list(timestamp ORDER BY place) FILTER (split = 'train') AS train_moments,
        count(*) FILTER (split IN ('train', 'history')) AS early,
        count(*) FILTER (split <> 'test') AS before_test
    FROM some_interactions
    GROUP BY "user"
),
expected AS (
    SELECT
        *,
        CASE WHEN early > 0 AND before_test > early THEN early + 1 ELSE 0 END AS to_validation,
        CASE WHEN before_test > 0 AND len(items) > before_test THEN before_test + 1 ELSE 0 END AS to_test
    FROM walks
),
agreement AS (
    SELECT
        count(expected."user") AS users,
        count(*) FILTER (splits.train IS DISTINCT FROM expected.train
            OR splits.train_moments IS DISTINCT FROM expected.train_moments
            OR coalesce(validation, []) IS DISTINCT FROM items[:to_validation]
            OR coalesce(validation_moments, []) IS DISTINCT FROM moments[:to_validation]
            OR coalesce(test, []) IS DISTINCT FROM items[:to_test]
            OR coalesce(test_moments, []) IS DISTINCT FROM moments[:to_test]) AS users_unlike_their_interactions
    FROM splits FULL JOIN expected USING ("user")
),
repeats AS (
    SELECT count(*) - count(DISTINCT (split, "user")) AS sequences_repeated FROM some_sequences
)
SELECT
    users, users_unlike_their_interactions, users_with_overlapping_splits,
    interactions_out_of_order, interactions_of_wrong_split, pairs, sequences_repeated
FROM agreement, disjointness, purchases, couples, repeats
"""  # noqa: S608

#: Counts, shares (0 to 1) and quantiles of items. `coalesce` because the mean over no rows is null,
#: and because a comparison with null is neither true nor false: both must count as broken.
_PROFILE: Final = """
WITH ranges AS (
    SELECT sum(COLUMNS(*))::BIGINT FROM by_range
),
tests AS (
    SELECT
        coalesce(avg(is_tied::INT), 0) AS share_tied_test,
        coalesce(avg(is_repeat::INT), 0) AS share_repeat_test_targets,
        coalesce(avg((items.train_count = 0)::INT), 0) AS share_cold_test_targets,
        min(length) AS history_min,
        quantile_disc(length, 0.5) AS history_median,
        quantile_disc(length, 0.9) AS history_p90,
        quantile_disc(length, 0.99) AS history_p99,
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
purchases AS (
    SELECT
        count(*) AS interactions,
        count(*) FILTER ("user" IS NULL OR item IS NULL OR timestamp IS NULL OR position IS NULL OR place IS NULL
            OR split IS NULL) AS interactions_with_nulls,
        count(*) FILTER (item NOT IN (SELECT item FROM items WHERE item IS NOT NULL)) AS interactions_of_unknown_items,
        count(*) FILTER (timestamp <= 0) AS interactions_without_time,
        count(*) FILTER (rating NOT BETWEEN 0 AND 5) AS interactions_with_impossible_rating
    FROM interactions
),
listed AS (
    SELECT
        count(*) FILTER (split = 'train') AS train_users,
        count(*) FILTER (split = 'validation') AS validation_users,
        count(*) FILTER (split = 'test') AS test_users,
        count(*) FILTER (split IS NULL OR "user" IS NULL OR items IS NULL OR moments IS NULL OR tied IS NULL
            OR list_count(items) <> len(items) OR list_count(moments) <> len(items)) AS sequences_with_nulls,
        count(*) FILTER (split NOT IN ('train', 'validation', 'test')) AS sequences_of_unknown_split
    FROM sequences
),
places AS (
    SELECT count(*) AS sequence_places_of_unknown_items
    FROM (SELECT unnest(items) AS item FROM sequences)
    WHERE item NOT IN (SELECT item FROM items WHERE item IS NOT NULL)
)
SELECT *, coalesce(pairs / (nullif(users, 0) * nullif(items, 0)), 0) AS density
FROM ranges, tests, catalogue, purchases, listed, places
"""


def profile(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Measure all tables of an open sequences file.

    Returns:
        One number a name. Quantiles of history length are None where there are no test users.
    """
    connection.execute(_TEMPORARY)
    for some_users in user_ranges(connection, "interactions"):
        for statement in (_HISTORIES, _BY_RANGE):
            connection.execute(statement.format(some_users=some_users))
    result = connection.execute(_PROFILE)
    row = result.fetchone()
    assert row is not None, "aggregates without GROUP BY give one row"
    return dict(zip((column[0] for column in result.description or ()), row, strict=True))
