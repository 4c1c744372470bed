"""A promoted checkpoint's items for a vector database: one Parquet file, and how its vectors are to be compared."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
from pyarrow import parquet

from pixrec_core import files
from pixrec_core.data.sequences import read_items
from pixrec_core.errors import SettingsError
from pixrec_core.paths import DatasetPaths, PromotedPaths
from pixrec_core.retrieval import encode
from pixrec_core.schemas import HAS_IMAGE, IMAGE_URL, ITEM, TITLE
from pixrec_core.serving import promoted
from pixrec_core.stages import Stats

EXPORTED: Final = "items.parquet"
MANIFEST: Final = "export.json"
PHOTO: Final = "photo"  # path of the stored file within the dataset's folder; null without one
VECTOR: Final = "vector"
ROWS_AT_A_TIME: Final = 65_536  # 33 MB of vectors of 128 numbers


def export(folder: PromotedPaths, output: Path) -> Stats:
    """Write all items with their vectors and, last, a manifest; the folder as a whole or not at all.

    Args:
        folder: what serves.
        output: to write; an earlier export there is replaced.

    Returns:
        The manifest: what was exported, of which checkpoint, and how its vectors are compared.

    Raises:
        MissingArtefactError: nothing has been promoted.
        ArtefactError: some of it is damaged.
        SettingsError: something else than an earlier export has the output's name.
    """
    _refuse_others(output)
    promotion = promoted.read(folder)
    copies = promoted.verify(folder, promotion)
    items, vectors = encode.read_item_vectors(copies.item_vectors)
    catalogue = read_items(copies.dataset)
    assert catalogue[ITEM].to_list() == items, "a promotion has one catalogue"
    with files.replacing(output) as temporary:
        temporary.mkdir()
        _write(temporary / EXPORTED, _frames(catalogue, vectors))
        manifest = {
            "dataset": promotion.dataset,
            "variant": promotion.variant,
            "promoted_at": promotion.promoted_at,
            "checkpoint_sha256": promotion.checkpoint_sha256,
            "exported_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "items": len(items),
            "items_sha256": files.sha256_file(temporary / EXPORTED),
            "dimension": vectors.shape[1],
            "metric": "inner_product",
            "unit_vectors": True,
        }
        files.write_json(temporary / MANIFEST, manifest)
    return manifest


def _refuse_others(output: Path) -> None:
    """A folder is replaced as a whole, so it must hold nothing that an export did not write."""
    if output.exists() and not (output.is_dir() and {each.name for each in output.iterdir()} <= {EXPORTED, MANIFEST}):
        raise SettingsError(f"{output} is there and is no earlier export; name a folder that is not there yet")


def _frames(catalogue: pl.DataFrame, vectors: encode.Vectors) -> Iterator[pl.DataFrame]:
    """Rows of the export, so many of them in memory at a time."""
    place = DatasetPaths(Path())
    for start in range(0, len(vectors), ROWS_AT_A_TIME):
        some = catalogue[start : start + ROWS_AT_A_TIME]
        photos = [
            place.image(item).as_posix() if has_image else None
            for item, has_image in some.select(ITEM, HAS_IMAGE).iter_rows()
        ]
        yield some.select(
            ITEM,
            TITLE,
            IMAGE_URL,
            pl.Series(PHOTO, photos, pl.String),
            pl.Series(VECTOR, vectors[start : start + ROWS_AT_A_TIME]),
        )


def _write(path: Path, frames: Iterator[pl.DataFrame]) -> None:
    """Frames one after the other; a vector is a list of fixed size."""
    tables = (frame.to_arrow(compat_level=pl.CompatLevel.oldest()) for frame in frames)
    first = next(tables)
    with parquet.ParquetWriter(path, first.schema) as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)
