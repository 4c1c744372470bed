"""Writes a manifest and single-colour photos without running the stage `images`."""

from collections.abc import Mapping

import polars as pl
from PIL import Image

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA


def write(paths: DatasetPaths, colours: Mapping[str, str]) -> None:
    """Write one photo per item, given the colour of each item."""
    paths.root.mkdir(parents=True, exist_ok=True)
    rows = []
    for item, colour in sorted(colours.items()):
        paths.image(item).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(paths.image(item))
        sha256 = files.sha256_file(paths.image(item))
        rows.append(dict.fromkeys(IMAGE_SCHEMA) | {"item": item, "status": "ok", "sha256": sha256})
    pl.DataFrame(rows, IMAGE_SCHEMA).write_parquet(paths.images_manifest)
