"""Metadata of an artefact in the Dagster UI: numbers (which it plots), sample rows, pictures."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dagster as dg
import polars as pl
from PIL import Image, ImageOps

from pixrec_core.data.database import open_read_only
from pixrec_core.paths import DatasetPaths
from pixrec_core.printable import markdown_cell, without_secrets
from pixrec_core.schemas import ITEM, QUARANTINE_SCHEMA

Metadata = dict[str, Any]

SAMPLE_ROWS: Final = 5
CELL_CHARACTERS: Final = 80
SIGNIFICANT_DIGITS: Final = 6  # of a fraction
MONTAGE_PHOTOS: Final = 18
MONTAGE_COLUMNS: Final = 6
THUMBNAIL: Final = 96  # pixels


def flatten_stats(stats: Mapping[str, Any], prefix: str = "") -> Metadata:
    """Return every value of a stage's statistics, rounded; a nested one is named `outer/inner`."""
    flat: Metadata = {}
    for name, value in stats.items():
        if isinstance(value, dict):
            flat |= flatten_stats(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
    return flat


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> dg.MarkdownMetadataValue:
    """Return a Markdown table; long cells are cut, and cell content is escaped."""
    lines = [columns, ["---"] * len(columns), *rows]
    return dg.MetadataValue.md("\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines))


def _cell(value: Any) -> str:
    text = without_secrets(" ".join(str(value).split()), to_end=True)
    return markdown_cell(text if len(text) <= CELL_CHARACTERS else f"{text[: CELL_CHARACTERS - 1]}…")


def table_metadata(path: Path) -> Metadata:
    """Return row count, columns and the first rows of a Parquet file."""
    table = pl.scan_parquet(path, glob=False)
    columns = [dg.TableColumn(column, str(kind)) for column, kind in table.collect_schema().items()]
    return {
        "dagster/row_count": table.select(pl.len()).collect().item(),
        "dagster/column_schema": dg.TableSchema(columns),
        "sample": _rows(table.head(SAMPLE_ROWS).collect()),
    }


def quarantine_metadata(path: Path) -> Metadata:
    """Return the number of rejected lines, their reasons, and the first of them."""
    if not path.exists():
        return {}
    lines = pl.read_parquet(path, glob=False)
    reasons = lines.group_by("reason").len("lines").sort("lines", "reason", descending=[True, False])
    return {
        "quarantine_lines": lines.height,
        "quarantine_reasons": _rows(reasons),
        "quarantine_sample": _rows(lines.select(list(QUARANTINE_SCHEMA)).head(SAMPLE_ROWS)),
    }


def sequences_metadata(path: Path) -> Metadata:
    """Return users per split and the first sequences; opened read-only, so a writer is not blocked."""
    with open_read_only(path) as database:
        splits = database.sql(
            "select split, count(*) as users, round(avg(len(items)), 2) as mean_items "
            "from sequences group by split order by users desc, split"
        )
        sample = database.sql("select * from sequences order by split, user limit ?", params=[SAMPLE_ROWS])
        return {
            "splits": markdown_table(splits.columns, splits.fetchall()),
            "sample": markdown_table(sample.columns, sample.fetchall()),
        }


def _rows(table: pl.DataFrame) -> dg.MarkdownMetadataValue:
    return markdown_table(table.columns, table.rows())


def photo_metadata(paths: DatasetPaths) -> Metadata:
    """Return a contact sheet of the first photos, embedded in the Markdown, and the reasons of failed ones."""
    manifest = pl.read_parquet(paths.images_manifest, glob=False)
    failed = manifest.filter(pl.col("status") != "ok").group_by("reason").len("photos")
    stored = manifest.filter(pl.col("status") == "ok").get_column(ITEM).head(MONTAGE_PHOTOS)
    shown = {"failures": _rows(failed.sort("photos", "reason", descending=[True, False]))}
    return shown | ({"photos": _montage([paths.image(item) for item in stored])} if len(stored) else {})


def _montage(photos: Sequence[Path]) -> dg.MarkdownMetadataValue:
    rows = -(-len(photos) // MONTAGE_COLUMNS)
    sheet = Image.new("RGB", (MONTAGE_COLUMNS * THUMBNAIL, rows * THUMBNAIL), "white")
    for number, photo in enumerate(photos):
        row, column = divmod(number, MONTAGE_COLUMNS)
        try:
            with Image.open(photo) as image:
                thumbnail = ImageOps.pad(image.convert("RGB"), (THUMBNAIL, THUMBNAIL), color="white")
        except (OSError, Image.DecompressionBombError):  # damaged on the disk: its place stays white
            continue
        sheet.paste(thumbnail, (column * THUMBNAIL, row * THUMBNAIL))
    jpeg = io.BytesIO()
    sheet.save(jpeg, "JPEG", quality=80)
    return dg.MetadataValue.md(f"![photos](data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()})")
