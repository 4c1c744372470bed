"""Raw files as the raw stage leaves them, and what the stages after it make of them."""

import json
from pathlib import Path

import polars as pl

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import QUARANTINE_SCHEMA
from pixrec_core.settings import IngestSettings

LENIENT = IngestSettings(max_bad_share=1.0)


def at(root: Path, reviews: Path, metadata: Path, photos: Path | None = None) -> DatasetPaths:
    """Return the paths of a dataset with these raw files and photo folder."""
    paths = DatasetPaths(root / "shop")
    manifest = {"reviews": {"path": str(reviews)}, "metadata": {"path": str(metadata)}}
    files.write_json(paths.raw_manifest, manifest | {"photos": str(photos) if photos else None})
    return paths


def of(root: Path, raw: bytes, name: str = "raw.jsonl") -> DatasetPaths:
    """Return the paths of a dataset whose reviews and metadata are both these bytes."""
    path = root / name
    path.write_bytes(raw)
    return at(root, path, path)


def tables(rows: Path, quarantine: Path, schema: pl.Schema) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return valid rows and rejected lines of a stage; check their schemas and that no other file was written."""
    good, bad = pl.read_parquet(rows), pl.read_parquet(quarantine)
    assert good.schema == schema
    assert bad.schema == QUARANTINE_SCHEMA
    assert not [path for path in rows.parent.iterdir() if path.name.startswith(".")]
    return good, bad


def review(**fields: object) -> bytes:
    """Return a valid review line with changed `fields`; a field with value `...` is left out."""
    good = {"user_id": "u1", "asin": "a", "parent_asin": "p", "timestamp": 1000, "rating": 5.0}
    return _line(good | fields)


def item(**fields: object) -> bytes:
    """Return a valid metadata line with changed `fields`; a field with value `...` is left out."""
    return _line({"parent_asin": "p", "title": "Lamp"} | fields)


def _line(fields: dict[str, object]) -> bytes:
    return json.dumps({key: value for key, value in fields.items() if value is not ...}).encode() + b"\n"
