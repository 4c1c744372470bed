"""A synthetic shop: products with drawn photos, and shoppers whose taste in looks no text tells.

Everything follows from `seed`: fetching again gives the same bytes (photos and compressed files as
far as Pillow and zlib are the same). Each shopper has two favourite categories, keeps to the
category of the last purchase, and mostly buys one colour and one pattern, which drift towards what
was bought last. Only photos show colour and pattern, so a model that sees beats one that reads.
"""

import gzip
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field

from pixrec_core import files
from pixrec_core.data.sources import RawFiles, _sample_catalogue
from pixrec_core.data.sources._sample_catalogue import Product
from pixrec_core.data.sources._sample_dirt import soiled_metadata, soiled_reviews
from pixrec_core.data.sources._sample_photos import draw
from pixrec_core.data.sources._sample_records import metadata_records, review_records
from pixrec_core.data.sources._sample_shoppers import purchases

REVIEWS: Final = "reviews.jsonl.gz"
METADATA: Final = "meta.jsonl.gz"
JPEG_QUALITY: Final = 88


class Options(BaseModel):
    """`[datasets.<name>.source]` with `kind = "sample"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    users: int = Field(1000, ge=1, description="shoppers, with 5 to 14 interactions each")
    items: int = Field(400, ge=32, description="products; a shopper never runs out of new ones")
    seed: int = Field(0, description="of all chance; the same seed gives the same files")


def catalogue(options: Options) -> list[Product]:
    """The products with the looks that the files keep to themselves, for oracles in tests."""
    return _sample_catalogue.catalogue(options.items, options.seed)


def fetch(options: Options, _root: Path, raw: Path) -> RawFiles:
    """Generate reviews, metadata and photos into `raw`, all at once or not at all."""
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
    """Nothing: all is made from the options."""
    return []


def _write_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Compressed, without the time and the file name that gzip would note."""
    with path.open("wb") as file, gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:
        packed.writelines(line + b"\n" for line in lines)
