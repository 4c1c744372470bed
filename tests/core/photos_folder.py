"""Writes a manifest and single-colour photos without running the stage `images`."""

from collections.abc import Mapping

import polars as pl
from PIL import Image

from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_SCHEMA


def write(paths: DatasetPaths, colours: Mapping[str, str]) -> None:
    """Write one photo per item, given the colour of each item."""
    rows = [dict.fromkeys(IMAGE_SCHEMA) | {"item": item, "status": "ok"} for item in sorted(colours)]
    paths.root.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, IMAGE_SCHEMA).write_parquet(paths.images_manifest)
    for item, colour in colours.items():
        paths.image(item).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), colour).save(paths.image(item))
