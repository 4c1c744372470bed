"""Profiles of catalogue, interactions and photos: the numbers that their contracts check.

Each profile is one row. Shares are between 0 and 1, and 0 for a table without rows, whose quantiles are None.
"""

from typing import Any, Final

import polars as pl

from pixrec_core.data import database
from pixrec_core.data.image_manifest import FAILED, OK
from pixrec_core.data.interactions import MAX_TIMESTAMP
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM

Profile = dict[str, Any]

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
    SELECT count(*) AS pairs FROM (SELECT DISTINCT "user", item FROM bought)
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


def items(paths: DatasetPaths) -> Profile:
    """Return the profile of items.parquet.

    Raises:
        MissingArtefactError: it has not been made.
        ArtefactError: it is damaged.
    """
    return _one_row(_ITEMS, {"items": database.parquet_path(paths.items)})


def interactions(paths: DatasetPaths) -> Profile:
    """Return the profile of interactions.parquet, compared with items.parquet.

    Raises:
        MissingArtefactError: one of them has not been made.
        ArtefactError: one of them is damaged.
    """
    return _one_row(
        _INTERACTIONS,
        {
            "interactions": database.parquet_path(paths.interactions),
            "items": database.parquet_path(paths.items),
            "latest": MAX_TIMESTAMP,
        },
    )


def images(paths: DatasetPaths) -> Profile:
    """Return the profile of images.parquet, compared with items.parquet and the stored photos.

    Raises:
        MissingArtefactError: one of them has not been made.
        ArtefactError: one of them is damaged.
    """
    with database.connect_in_memory() as connection:
        manifest, catalogue = (
            connection.sql("FROM read_parquet($file)", params={"file": database.parquet_path(path)}).pl()
            for path in (paths.images_manifest, paths.items)
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


def _one_row(query: str, parameters: dict[str, Any]) -> Profile:
    with database.connect_in_memory() as connection:
        result = connection.execute(query, parameters)
        (row,) = result.fetchall()
        return dict(zip((column[0] for column in result.description or ()), row, strict=True))
