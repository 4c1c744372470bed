"""Export of a promoted tower's item vectors for a vector database: a Parquet file and a manifest."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
from pyarrow import parquet

from pixrec_core import files, hub
from pixrec_core.data.sequences import read_items
from pixrec_core.errors import QueryError, SettingsError
from pixrec_core.models.checkpoint import read_seen_offset
from pixrec_core.paths import DatasetPaths, PromotedPaths
from pixrec_core.printable import shown_url
from pixrec_core.retrieval.encode import Vectors, read_item_vectors
from pixrec_core.schemas import HAS_IMAGE, IMAGE_URL, ITEM, TITLE
from pixrec_core.serving.promotion import Promotion, parts_of_method, read_promotion, verify_promotion
from pixrec_core.stages import Stats

EXPORTED: Final = "items.parquet"
MANIFEST: Final = "export.json"
PHOTO: Final = "photo"  # path of the stored file within the dataset's folder; null without one
VECTOR: Final = "vector"
ROWS_PER_BATCH: Final = 65_536  # 33 MB of vectors with 128 dimensions


def export_items(folder: PromotedPaths, output: Path, method: str | None = None, *, whole_urls: bool = False) -> Stats:
    """Write all items with their vectors, and a manifest. The folder appears complete or not at all.

    Args:
        folder: the promoted folder.
        output: folder to write; replaces an earlier export.
        method: a dual tower; by default the best one on validation.
        whole_urls: write photo URLs with password and query, which may be secret.

    Returns:
        The manifest: the origin of the vectors and the metric that compares them.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: a promoted file is damaged.
        QueryError: the method has not been promoted, or is no dual tower.
        SettingsError: `output` exists and is no earlier export.
    """
    check_output(output, {EXPORTED, MANIFEST})
    promotion = read_promotion(folder)
    tower = choose_tower(promotion, method)
    copies = verify_promotion(folder, promotion, ["sequences.duckdb", *parts_of_method(promotion, tower)])
    items, vectors = read_item_vectors(copies.variant(tower).item_vectors)
    catalogue = read_items(copies)
    assert catalogue[ITEM].to_list() == items, "the vectors and the catalogue of a promotion differ"
    if not whole_urls:
        urls = (url and shown_url(url) for url in catalogue[IMAGE_URL])
        catalogue = catalogue.with_columns(pl.Series(IMAGE_URL, urls, pl.String))
    with files.replacing(output) as temporary:
        temporary.mkdir()
        _write_frames(temporary / EXPORTED, _frames(catalogue, vectors))
        manifest = {
            "dataset": promotion.dataset,
            "method": tower,
            "promoted_at": promotion.promoted_at,
            "checkpoint_sha256": promotion.checkpoint_sha256[tower],
            "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "items": len(items),
            "items_sha256": files.sha256_file(temporary / EXPORTED),
            "dimension": vectors.shape[1],
            "metric": "inner_product",
            "unit_vectors": True,
            "seen_offset": read_seen_offset(copies.variant(tower).checkpoint),
        }
        files.write_json(temporary / MANIFEST, manifest)
    return manifest


def push_checkpoint(folder: PromotedPaths, repository: str, method: str | None = None, *, private: bool = True) -> str:
    """Upload a promoted checkpoint with its model card to the Hugging Face hub; return the URL of the repository.

    Args:
        folder: the promoted folder.
        repository: `owner/name`; created if it does not exist.
        method: a dual tower; by default the best one on validation.
        private: whether a new repository is private.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: a promoted file is damaged.
        QueryError: the method has not been promoted, or is no dual tower.
        SettingsError: the hub refuses the upload or cannot be reached.
    """
    promotion = read_promotion(folder)
    tower = choose_tower(promotion, method)
    copies = verify_promotion(folder, promotion, parts_of_method(promotion, tower))
    message = f"{tower} of {promotion.dataset}, promotion {promotion.number} of {promotion.promoted_at}"
    return hub.push_folder(copies.variant(tower).checkpoint, repository, message, private=private)


def choose_tower(promotion: Promotion, method: str | None) -> str:
    """Return the dual tower to export; by default the best one on validation.

    Raises:
        QueryError: the method has not been promoted, or is no dual tower.
    """
    if not promotion.towers:
        raise QueryError(f"no promoted method of {promotion.dataset} has item vectors")
    if method and promotion.require_method(method) not in promotion.towers:
        raise QueryError(f"method {method} has no item vectors; name one of {', '.join(promotion.towers)}")
    return method or promotion.towers[0]


def check_output(output: Path, names: set[str]) -> None:
    """Refuse a folder with other files than those of an export, since an export replaces the whole folder.

    Raises:
        SettingsError: there are such files, or `output` is a file.
    """
    if output.exists() and not (output.is_dir() and {each.name for each in output.iterdir()} <= names):
        raise SettingsError(f"{output} exists and is no earlier export; name a folder that does not exist yet")


def _frames(catalogue: pl.DataFrame, vectors: Vectors) -> Iterator[pl.DataFrame]:
    """Rows of the export, `ROWS_PER_BATCH` at a time."""
    relative = DatasetPaths(Path())
    for start in range(0, len(vectors), ROWS_PER_BATCH):
        batch = catalogue[start : start + ROWS_PER_BATCH]
        photos = [
            relative.image(item).as_posix() if has_image else None
            for item, has_image in batch.select(ITEM, HAS_IMAGE).iter_rows()
        ]
        yield batch.select(
            ITEM,
            TITLE,
            IMAGE_URL,
            pl.Series(PHOTO, photos, pl.String),
            pl.Series(VECTOR, vectors[start : start + ROWS_PER_BATCH]),
        )


def _write_frames(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    """Write frames to one Parquet file, with vectors as fixed-size lists."""
    tables = (frame.to_arrow(compat_level=pl.CompatLevel.oldest()) for frame in frames)
    first = next(tables)
    with parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
