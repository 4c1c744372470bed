"""The profile of a sequences file: every number that its contract and its statistics speak of.

One statement and one row, whatever the size of the file. Lists are compared by their prints: the sum of
a hash of each place, its number, item and moment. So what a user's interactions come to is an
aggregate like any other, which no list has to be made for and which spills to disk; and the print of a
history is that of its sequence less the target's. Two lists that differ share a print once in some 2^64.
"""

from typing import Any, Final

import duckdb

from pixrec_core.schemas import MIN_TESTED_LENGTH

_MACROS: Final = """
CREATE OR REPLACE TEMP MACRO place_print(place, item, moment) AS hash(place::BIGINT, (item, moment));
CREATE OR REPLACE TEMP MACRO list_print(items, moments) AS coalesce(list_sum(
    list_transform(list_zip(items, moments), lambda pair, place: hash(place, pair))), 0);
"""

#: One row per user that has a sequence. Under leave-one-out a user who is too short to be tested has train alone.
_SPLITS: Final = f"""
cut AS (
    SELECT
        min(start) FILTER (split = 'validation') AS validation_start,
        min(start) FILTER (split = 'test') AS test_start
    FROM cuts
),
printed AS (
    SELECT
        split,
        "user",
        len(items) AS length,
        list_print(items, moments) AS print,
        print - place_print(len(items), items[-1], moments[-1]) AS history,
        coalesce(CASE
            WHEN test_start IS NULL THEN split <> 'train' OR len(items) >= 1
            WHEN split = 'train' THEN list_max(moments) < validation_start
            WHEN split = 'validation' THEN list_max(moments[:-2]) < validation_start
                AND validation_start <= moments[-1] AND moments[-1] < test_start
            WHEN split = 'test' THEN list_max(moments[:-2]) < test_start AND test_start <= moments[-1]
            END, false) AS is_in_place
    FROM sequences, cut
),
splits AS (
    SELECT
        "user",
        sum(print) FILTER (split = 'train') AS train,
        sum(print) FILTER (split = 'validation') AS validation,
        sum(print) FILTER (split = 'test') AS test,
        sum(history) FILTER (split = 'validation') AS before_validation,
        sum(history) FILTER (split = 'test') AS before_test,
        bool_and(is_in_place) AS is_in_place,
        bool_and(split = 'train' AND length < {MIN_TESTED_LENGTH}) AS is_untested
    FROM printed
    GROUP BY "user"
),
disjointness AS (
    SELECT count(*) FILTER (NOT (is_in_place AND (test_start IS NOT NULL OR coalesce(
            is_untested OR train = before_validation AND validation = before_test, false
        )))) AS users_with_overlapping_splits
    FROM splits, cut
)
"""  # noqa: S608

#: The table lies in (user, place) order, which is checked here too: windows over nothing follow it and sort nothing.
#: A place of a train sequence counts no interactions that only histories have.
_WALKS: Final = """
skips AS (
    SELECT "user", place, count(*) FILTER (split = 'history') OVER (PARTITION BY "user" ORDER BY place) AS skipped
    FROM interactions
    WHERE "user" IN (SELECT "user" FROM interactions WHERE split = 'history')
),
neighbours AS (
    SELECT
        *,
        row(timestamp, position) AS moment,
        lag("user") OVER () AS user_before,
        lag("user", 2) OVER () AS user_two_before,
        lag(place) OVER () AS place_before,
        lag(row(timestamp, position)) OVER () AS moment_before,
        lag(split) OVER () AS split_before,
        lead("user") OVER () AS next_user,
        lead("user", 2) OVER () AS next_but_one
    FROM interactions
),
judged AS (
    SELECT
        "user",
        split,
        place_print(place, item, timestamp) AS print,
        place_print(place - coalesce(skipped, 0), item, timestamp) AS train_print,
        "user" IS DISTINCT FROM user_before OR split IS DISTINCT FROM split_before AS is_first_of_split,
        "user" < user_before
            OR "user" = user_before AND (place <= place_before OR moment <= moment_before) AS is_out_of_order,
        NOT CASE
            WHEN test_start IS NULL THEN split = CASE
                WHEN "user" = user_two_before AND "user" IS DISTINCT FROM next_user THEN 'test'
                WHEN "user" = user_before AND "user" = next_user AND "user" IS DISTINCT FROM next_but_one
                    THEN 'validation'
                ELSE 'train' END
            WHEN timestamp >= test_start THEN split = 'test'
            WHEN timestamp >= validation_start THEN split = 'validation'
            ELSE split IN ('train', 'history') END AS is_of_wrong_split
    FROM neighbours LEFT JOIN skips USING ("user", place), cut
),
walks AS (
    SELECT
        "user",
        sum(train_print) FILTER (split = 'train') AS train,
        sum(print) FILTER (split IN ('train', 'history')
            OR split = 'validation' AND is_first_of_split) AS to_validation,
        sum(print) FILTER (split <> 'test' OR is_first_of_split) AS to_test,
        count(*) FILTER (split IN ('train', 'history')) AS early,
        count(*) FILTER (split = 'validation') AS validation,
        count(*) FILTER (split = 'test') AS test,
        count(*) FILTER (is_out_of_order) AS out_of_order,
        count(*) FILTER (is_of_wrong_split) AS of_wrong_split
    FROM judged
    GROUP BY "user"
),
agreement AS (
    SELECT
        count(walks."user") AS users,
        count(*) FILTER (splits.train IS DISTINCT FROM walks.train
            OR splits.validation IS DISTINCT FROM
                CASE WHEN walks.early > 0 AND walks.validation > 0 THEN to_validation END
            OR splits.test IS DISTINCT FROM
                CASE WHEN walks.early + walks.validation > 0 AND walks.test > 0 THEN to_test END
            ) AS users_unlike_their_interactions,
        coalesce(sum(out_of_order), 0)::BIGINT AS interactions_out_of_order,
        coalesce(sum(of_wrong_split), 0)::BIGINT AS interactions_of_wrong_split
    FROM splits FULL JOIN walks USING ("user")
)
"""

#: Counts, shares (0 to 1) and quantiles of items. `coalesce` because the mean over no rows is null,
#: and because a comparison with null is neither true nor false: both must count as broken.
_PROFILE: Final = f"""
WITH {_SPLITS},
{_WALKS},
couples AS (
    SELECT count(*) AS pairs FROM (SELECT DISTINCT "user", item FROM interactions)
),
repeats AS (
    SELECT coalesce(sum(n - 1), 0)::BIGINT AS sequences_repeated
    FROM (SELECT count(*) AS n FROM sequences GROUP BY split, "user")
),
histories AS (
    SELECT
        len(items) - 1 AS length,
        items[-1] AS target,
        coalesce(list_contains(items[:-2], target), false) AS is_repeat,
        coalesce(tied, false) AS is_tied
    FROM sequences
    WHERE split = 'test'
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
places AS (
    SELECT item, count(*) AS n, count(*) FILTER (split = 'train') AS trained
    FROM (SELECT split, unnest(items) AS item FROM sequences)
    GROUP BY item
),
unknown AS (
    SELECT coalesce(sum(n), 0)::BIGINT AS sequence_places_of_unknown_items
    FROM places ANTI JOIN items USING (item)
    WHERE item IS NOT NULL
),
catalogue AS (
    SELECT
        count(*) AS items,
        count(*) FILTER (coalesce(items.item, '') = '') AS items_without_id,
        count(items.item) - count(DISTINCT items.item) AS items_with_repeated_id,
        count(*) FILTER (items.train_count IS DISTINCT FROM coalesce(trained, 0)) AS items_with_wrong_train_count,
        coalesce(avg(has_image::INT), 0) AS image_coverage
    FROM items LEFT JOIN places USING (item)
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
)
SELECT *, coalesce(pairs / (nullif(users, 0) * nullif(items, 0)), 0) AS density
FROM agreement, disjointness, couples, repeats, tests, catalogue, purchases, listed, unknown
"""  # noqa: S608


def profile_sequences(connection: duckdb.DuckDBPyConnection) -> dict[str, Any]:
    """Measure all tables of an open sequences file.

    Returns:
        One number a name. Quantiles of history length are None where there are no test users.
    """
    connection.execute(_MACROS)
    result = connection.execute(_PROFILE)
    row = result.fetchone()
    assert row is not None, "aggregates without GROUP BY give one row"
    return dict(zip((column[0] for column in result.description or ()), row, strict=True))
