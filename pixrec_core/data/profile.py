"""Profiles of catalogue, interactions, photos and sequences: the numbers that their contracts and statistics use.

A profile is one row. Shares are between 0 and 1, and 0 for a table without rows, whose quantiles are None.

Sequences are compared by hashes: the sum over the entries of a hash of (index, item, timestamp). The hash of a user's
interactions is therefore an ordinary aggregate, which spills to disk and creates no lists, and the hash of a history is
that of its sequence minus that of the target. Two different sequences have the same hash with a probability of about
2^-64. Distinct pairs of user and item are counted by the hash of the user, which is shorter than most ids.
"""

from collections.abc import Mapping
from typing import Any, Final

import duckdb
import polars as pl

from pixrec_core.data import database
from pixrec_core.data.image_manifest import FAILED, OK
from pixrec_core.data.interactions import MAX_TIMESTAMP
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM, MIN_TESTED_LENGTH

Profile = dict[str, Any]

#: The hash of a sequence is 0, which no interactions have, if it has no entry or not one timestamp per item.
_MACROS: Final = """
CREATE OR REPLACE TEMP MACRO entry_hash(index, item, time) AS hash(index::BIGINT, (item, time));
CREATE OR REPLACE TEMP MACRO sequence_hash(items, times) AS coalesce(CASE WHEN len(items) = len(times) THEN
    list_sum(list_transform(items, lambda item, index: entry_hash(index, item, times[index]))) END, 0);
"""

#: One row per user with a sequence. Under leave-one-out a user with few interactions has a train sequence only.
_SPLITS: Final = f"""
cut AS (
    SELECT
        min(start) FILTER (split = 'validation') AS validation_start,
        min(start) FILTER (split = 'test') AS test_start
    FROM cuts
),
hashed AS (
    SELECT
        split,
        "user",
        len(items) AS length,
        sequence_hash(items, timestamps) AS content_hash,
        content_hash - entry_hash(len(items), items[-1], timestamps[-1]) AS history,
        coalesce(CASE
            WHEN test_start IS NULL THEN split <> 'train' OR len(items) >= 1
            WHEN split = 'train' THEN list_max(timestamps) < validation_start
            WHEN split = 'validation' THEN list_max(timestamps[:-2]) < validation_start
                AND validation_start <= timestamps[-1] AND timestamps[-1] < test_start
            WHEN split = 'test' THEN list_max(timestamps[:-2]) < test_start AND test_start <= timestamps[-1]
            END, false) AS respects_cuts
    FROM sequences, cut
),
splits AS (
    SELECT
        "user",
        sum(content_hash) FILTER (split = 'train') AS train,
        sum(content_hash) FILTER (split = 'validation') AS validation,
        sum(content_hash) FILTER (split = 'test') AS test,
        sum(history) FILTER (split = 'validation') AS before_validation,
        sum(history) FILTER (split = 'test') AS before_test,
        bool_and(respects_cuts) AS respects_cuts,
        bool_and(split = 'train' AND length < {MIN_TESTED_LENGTH}) AS is_untested
    FROM hashed
    GROUP BY "user"
),
disjointness AS (
    SELECT count(*) FILTER (NOT (respects_cuts AND (test_start IS NOT NULL OR coalesce(
            is_untested OR train = before_validation AND validation = before_test, false
        )))) AS users_with_overlapping_splits
    FROM splits, cut
)
"""  # noqa: S608

#: The rows are stored in (user, ordinal) order, which is checked here too, so windows without ORDER BY need no sort.
#: The index in a train sequence does not count interactions that are in histories only.
_ORDER: Final = """
skips AS (
    SELECT "user", ordinal, count(*) FILTER (split = 'history') OVER (PARTITION BY "user" ORDER BY ordinal) AS skipped
    FROM interactions
    WHERE "user" IN (SELECT "user" FROM interactions WHERE split = 'history')
),
neighbours AS (
    SELECT
        *,
        row(timestamp, position) AS time_key,
        lag("user") OVER () AS user_before,
        lag("user", 2) OVER () AS user_two_before,
        lag(ordinal) OVER () AS ordinal_before,
        lag(row(timestamp, position)) OVER () AS time_key_before,
        lag(split) OVER () AS split_before,
        lead("user") OVER () AS next_user,
        lead("user", 2) OVER () AS next_but_one
    FROM interactions
),
checked AS (
    SELECT
        "user",
        split,
        entry_hash(ordinal, item, timestamp) AS content_hash,
        entry_hash(ordinal - coalesce(skipped, 0), item, timestamp) AS train_hash,
        "user" IS DISTINCT FROM user_before OR split IS DISTINCT FROM split_before AS is_first_of_split,
        "user" < user_before
            OR "user" = user_before AND (ordinal <= ordinal_before OR time_key <= time_key_before) AS is_out_of_order,
        NOT CASE
            WHEN test_start IS NULL THEN split = CASE
                WHEN "user" = user_two_before AND "user" IS DISTINCT FROM next_user THEN 'test'
                WHEN "user" = user_before AND "user" = next_user AND "user" IS DISTINCT FROM next_but_one
                    THEN 'validation'
                ELSE 'train' END
            WHEN timestamp >= test_start THEN split = 'test'
            WHEN timestamp >= validation_start THEN split = 'validation'
            ELSE split IN ('train', 'history') END AS is_of_wrong_split
    FROM neighbours LEFT JOIN skips USING ("user", ordinal), cut
),
totals AS (
    SELECT
        "user",
        sum(train_hash) FILTER (split = 'train') AS train,
        sum(content_hash) FILTER (split IN ('train', 'history')
            OR split = 'validation' AND is_first_of_split) AS to_validation,
        sum(content_hash) FILTER (split <> 'test' OR is_first_of_split) AS to_test,
        count(*) FILTER (split IN ('train', 'history')) AS early,
        count(*) FILTER (split = 'validation') AS validation,
        count(*) FILTER (split = 'test') AS test,
        count(*) FILTER (is_out_of_order) AS out_of_order,
        count(*) FILTER (is_of_wrong_split) AS of_wrong_split
    FROM checked
    GROUP BY "user"
),
agreement AS (
    SELECT
        count(totals."user") AS users,
        count(*) FILTER (splits.train IS DISTINCT FROM totals.train
            OR splits.validation IS DISTINCT FROM
                CASE WHEN totals.early > 0 AND totals.validation > 0 THEN to_validation END
            OR splits.test IS DISTINCT FROM
                CASE WHEN totals.early + totals.validation > 0 AND totals.test > 0 THEN to_test END
            ) AS users_with_inconsistent_sequences,
        coalesce(sum(out_of_order), 0)::BIGINT AS interactions_out_of_order,
        coalesce(sum(of_wrong_split), 0)::BIGINT AS interactions_of_wrong_split
    FROM splits FULL JOIN totals USING ("user")
)
"""

#: Counts, shares (0 to 1) and quantiles. `coalesce` because the mean of no rows is null, and because a comparison with
#: null is neither true nor false; both must count as broken.
_PROFILE: Final = f"""
WITH {_SPLITS},
{_ORDER},
user_items AS (
    SELECT count(*) AS pairs FROM (SELECT DISTINCT hash("user"), item FROM interactions)
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
occurrences AS (
    SELECT item, count(*) AS n, count(*) FILTER (split = 'train') AS trained
    FROM (SELECT split, unnest(items) AS item FROM sequences)
    GROUP BY item
),
unknown AS (
    SELECT coalesce(sum(n), 0)::BIGINT AS sequence_items_unknown
    FROM occurrences ANTI JOIN items USING (item)
    WHERE item IS NOT NULL
),
catalogue AS (
    SELECT
        count(*) AS items,
        count(*) FILTER (coalesce(items.item, '') = '') AS items_without_id,
        count(items.item) - count(DISTINCT items.item) AS items_with_repeated_id,
        count(*) FILTER (items.train_count IS DISTINCT FROM coalesce(trained, 0)) AS items_with_wrong_train_count,
        coalesce(avg(has_image::INT), 0) AS image_coverage
    FROM items LEFT JOIN occurrences USING (item)
),
interaction_counts AS (
    SELECT
        count(*) AS interactions,
        count(*) FILTER ("user" IS NULL OR item IS NULL OR timestamp IS NULL OR position IS NULL OR ordinal IS NULL
            OR split IS NULL) AS interactions_with_nulls,
        count(*) FILTER (item NOT IN (SELECT item FROM items WHERE item IS NOT NULL)) AS interactions_of_unknown_items,
        count(*) FILTER (timestamp <= 0) AS interactions_with_impossible_time,
        count(*) FILTER (rating NOT BETWEEN 0 AND 5) AS interactions_with_impossible_rating
    FROM interactions
),
sequence_counts AS (
    SELECT
        count(*) FILTER (split = 'train') AS train_users,
        count(*) FILTER (split = 'validation') AS validation_users,
        count(*) FILTER (split = 'test') AS test_users,
        count(*) FILTER (split IS NULL OR "user" IS NULL OR items IS NULL OR timestamps IS NULL OR tied IS NULL
            OR list_count(items) <> len(items) OR list_count(timestamps) <> len(items)) AS sequences_with_nulls,
        count(*) FILTER (split NOT IN ('train', 'validation', 'test')) AS sequences_of_unknown_split
    FROM sequences
)
SELECT *, coalesce(pairs / (nullif(users, 0) * nullif(items, 0)), 0) AS density
FROM agreement, disjointness, user_items, repeats, tests, catalogue, interaction_counts, sequence_counts, unknown
"""  # noqa: S608


def profile_sequences(connection: duckdb.DuckDBPyConnection) -> Profile:
    """Return the profile of an open sequences file, numbers by name.

    Quantiles of the history length are None if there are no test users.
    """
    connection.execute(_MACROS)
    return _one_row(connection, _PROFILE)


_ITEMS: Final = """
SELECT
    count(*) AS rows,
    count(*) FILTER (coalesce(item, '') = '') AS rows_without_id,
    count(item) - count(DISTINCT item) AS rows_with_repeated_id,
    count(*) FILTER (price <= 0 OR NOT isfinite(price)) AS rows_with_impossible_price,
    coalesce(avg((coalesce(title, '') <> '')::INT), 0) AS share_with_title,
    coalesce(avg((image_url IS NOT NULL)::INT), 0) AS share_with_image_url,
    coalesce(avg((price IS NOT NULL)::INT), 0) AS share_with_price
FROM read_parquet($items)
"""

#: Order is that of the file: a window without ORDER BY follows it and does not sort. In sorted rows, tied rows are
#: neighbours.
_INTERACTIONS: Final = """
WITH bought AS (FROM read_parquet($interactions)),
neighbours AS (
    SELECT
        *,
        lag("user") OVER () AS user_before,
        lag(timestamp) OVER () AS time_before,
        lag(position) OVER () AS position_before,
        lead("user") OVER () AS next_user,
        lead(timestamp) OVER () AS next_time
    FROM bought
),
rows AS (
    SELECT
        count(*) AS rows,
        count(DISTINCT item) AS items,
        count(*) FILTER ("user" IS NULL OR item IS NULL OR timestamp IS NULL OR position IS NULL) AS rows_with_nulls,
        count(*) FILTER ("user" = '' OR item = '') AS rows_without_id,
        count(*) FILTER (timestamp NOT BETWEEN 1 AND $latest) AS rows_with_impossible_time,
        count(*) FILTER (rating NOT BETWEEN 0 AND 5) AS rows_with_impossible_rating,
        count(*) FILTER ("user" < user_before OR "user" = user_before AND (
            timestamp < time_before OR timestamp = time_before AND position <= position_before)) AS rows_out_of_order,
        coalesce(avg((coalesce("user" = user_before AND timestamp = time_before, false)
            OR coalesce("user" = next_user AND timestamp = next_time, false))::INT), 0) AS share_tied
    FROM neighbours
),
repeats AS (
    SELECT coalesce(sum(n - 1), 0)::BIGINT AS rows_repeated
    FROM (SELECT count(*) AS n FROM bought GROUP BY "user", item, timestamp)
),
pairs AS (
    SELECT count(*) AS pairs FROM (SELECT DISTINCT hash("user"), item FROM bought)
),
people AS (
    SELECT
        count(*) AS users,
        min(n) AS user_rows_min,
        quantile_disc(n, 0.5) AS user_rows_median,
        quantile_disc(n, 0.9) AS user_rows_p90,
        quantile_disc(n, 0.99) AS user_rows_p99,
        max(n) AS user_rows_max
    FROM (SELECT count(*) AS n FROM bought GROUP BY "user")
),
known AS (
    SELECT count(*) AS rows_of_known_items FROM bought SEMI JOIN read_parquet($items) USING (item)
)
SELECT
    * EXCLUDE (pairs, rows_of_known_items),
    coalesce(pairs / (nullif(users, 0) * nullif(items, 0)), 0) AS density,
    coalesce(rows_of_known_items / nullif(rows, 0), 0) AS share_of_known_items
FROM rows, people, repeats, pairs, known
"""


def profile_items(paths: DatasetPaths) -> Profile:
    """Return the profile of items.parquet.

    Raises:
        MissingArtefactError: it has not been made.
        ArtefactError: it is damaged.
    """
    with database.connect_in_memory() as connection:
        return _one_row(connection, _ITEMS, {"items": database.parquet_path(paths.items)})


def profile_interactions(paths: DatasetPaths) -> Profile:
    """Return the profile of interactions.parquet, compared with items.parquet.

    Raises:
        MissingArtefactError: one of them has not been made.
        ArtefactError: one of them is damaged.
    """
    files = {"interactions": paths.interactions, "items": paths.items}
    parameters = {name: database.parquet_path(path) for name, path in files.items()} | {"latest": MAX_TIMESTAMP}
    with database.connect_in_memory() as connection:
        return _one_row(connection, _INTERACTIONS, parameters)


def profile_images(paths: DatasetPaths) -> Profile:
    """Return the profile of images.parquet, compared with items.parquet and the stored photos.

    Raises:
        MissingArtefactError: one of them has not been made.
        ArtefactError: one of them is damaged.
    """
    with database.connect_in_memory() as connection:
        manifest, catalogue = (
            connection.sql(query, params={"file": database.parquet_path(path)}).pl()
            for path, query in (
                (
                    paths.images_manifest,
                    "SELECT item, status, reason, sha256, width, height, bytes FROM read_parquet($file)",
                ),
                (paths.items, "SELECT item FROM read_parquet($file)"),  # texts of large catalogues fill the memory
            )
        )
    stored = {path.name for path in paths.images.rglob("*") if not path.is_dir()}
    photos = manifest.filter(pl.col("status") == OK)
    failed = manifest.filter(pl.col("status") == FAILED)
    sized = pl.all_horizontal(pl.col("width", "height", "bytes").fill_null(0) > 0)
    hashed = pl.col("sha256").fill_null("").str.contains("^[0-9a-f]{64}$")
    return {
        "rows": manifest.height,
        "photos": photos.height,
        "rows_with_repeated_item": manifest.height - manifest[ITEM].n_unique(),
        "rows_of_unknown_items": manifest.join(catalogue, on=ITEM, how="anti").height,
        "rows_with_unknown_status": manifest.height - photos.height - failed.height,
        "failures_without_reason": failed.filter(pl.col("reason").fill_null("") == "").height,
        "photos_without_size": photos.filter(~sized).height,
        "photos_without_sha256": photos.filter(~hashed).height,
        "photos_without_file": sum(paths.image(item).name not in stored for item in photos[ITEM]),
        "share_failed": failed.height / manifest.height if manifest.height else 0.0,
        "image_coverage": photos.height / catalogue.height if catalogue.height else 0.0,
    }


def _one_row(connection: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None = None) -> Profile:
    result = connection.execute(query, dict(parameters or {}))
    (row,) = result.fetchall()
    return dict(zip((column[0] for column in result.description or ()), row, strict=True))
