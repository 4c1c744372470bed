"""A synthetic shop (`pixrec_core.data.sample`) in the format of Amazon Reviews 2023.

The same `seed` gives the same bytes (photos and compressed files with the same versions of Pillow and zlib). Each
shopper has two favourite categories, tends to stay in the category of the last purchase, and mostly buys one colour
and one pattern, which drift towards the last purchase. Only photos show colour and pattern, so a model that uses
photos beats one that only uses text.
"""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from pixrec_core import files
from pixrec_core.data.sample import catalogue as sample_catalogue
from pixrec_core.data.sample.catalogue import Product
from pixrec_core.data.sample.photos import draw
from pixrec_core.data.sample.records import metadata_records, review_records, soiled_metadata, soiled_reviews
from pixrec_core.data.sample.shoppers import purchases
from pixrec_core.data.sources import RawFiles
from pixrec_core.data.sources._amazon_records import load_interactions, load_items

__all__ = ("Options", "fetch", "load_interactions", "load_items", "watched")

REVIEWS: Final = "reviews.jsonl.gz"
METADATA: Final = "meta.jsonl.gz"
JPEG_QUALITY: Final = 88


class Options(BaseModel):
    """`[datasets.<name>.source]` with `kind = "sample"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(1000, ge=1, description="shoppers, with 5 to 14 interactions each")
    items: int = Field(400, ge=32, description="products; enough that a shopper always finds a new one")
    seed: int = Field(0, description="random seed; the same seed gives the same files")


def catalogue(options: Options) -> list[Product]:
    """Return the products with colour and pattern, which the files do not contain."""
    return sample_catalogue.catalogue(options.items, options.seed)


def fetch(options: Options, _root: Path, raw: Path) -> RawFiles:
    """Generate reviews, metadata and photos in `raw`, atomically."""
    products = catalogue(options)
    reviews = review_records(list(purchases(products, options.users, options.seed)), options.seed)
    metadata = metadata_records(products, reviews, options.seed)
    with files.replacing(raw) as folder:
        (folder / "images").mkdir(parents=True)
        _write_lines(folder / REVIEWS, soiled_reviews(reviews, options.seed))
        _write_lines(folder / METADATA, soiled_metadata(metadata, options.seed))
        for product in products:
            draw(product).save(folder / "images" / product.photo, quality=JPEG_QUALITY)
    return RawFiles(raw / REVIEWS, raw / METADATA, photos=raw)


def watched(_options: Options, _root: Path) -> list[Path]:
    """Return no files: everything is generated from the options."""
    return []


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write a gzip file without time and file name, so that its bytes only depend on the lines."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.writelines(line + b"\n" for line in lines)
