"""Amazon Reviews 2023: a category by its name, two URLs, or local files; or any shop in the same format.

A category's files are at `{base_url}/raw/review_categories/{Category}.jsonl.gz` and
`{base_url}/raw/meta_categories/meta_{Category}.jsonl.gz` (https://amazon-reviews-2023.github.io).
"""

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pixrec_core import files
from pixrec_core.data.sources import RawFiles, absolute_path
from pixrec_core.data.sources._amazon_records import load_interactions, load_items
from pixrec_core.data.sources._download import download
from pixrec_core.data.sources._mapping import known
from pixrec_core.errors import SourceError

__all__ = ("Options", "fetch", "load_interactions", "load_items", "watched")

#: Thirty-three categories, and `Unknown` for what belongs to none.
CATEGORIES: Final = (
    "All_Beauty",
    "Amazon_Fashion",
    "Appliances",
    "Arts_Crafts_and_Sewing",
    "Automotive",
    "Baby_Products",
    "Beauty_and_Personal_Care",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Gift_Cards",
    "Grocery_and_Gourmet_Food",
    "Handmade_Products",
    "Health_and_Household",
    "Health_and_Personal_Care",
    "Home_and_Kitchen",
    "Industrial_and_Scientific",
    "Kindle_Store",
    "Magazine_Subscriptions",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Software",
    "Sports_and_Outdoors",
    "Subscription_Boxes",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Video_Games",
    "Unknown",
)

_ENDINGS = (".jsonl", ".jsonl.gz")
_PREFIX = "meta_"

Url = Annotated[str, Field(pattern=r"^https?://[^\s/]")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")]

#: The three ways to name the files, and the options that only go with each.
WAYS: Final = {
    "folder": ("reviews", "metadata", "serve_photos"),
    "category": ("base_url",),
    "reviews_url": ("metadata_url",),
}


class Options(BaseModel):
    """Fields of `[datasets.<name>.source]` besides `kind = "amazon_2023"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path | None = Field(None, description="folder of both files; relative to the folder of pixrec.toml")
    reviews: str | None = Field(None, description="name of the reviews file in `folder`; none: the only one")
    metadata: str | None = Field(None, description="name of the metadata file in `folder`; none: the only one")
    serve_photos: bool | None = Field(
        None, description="whether the folder has the photos too; none: if it has a folder `images`"
    )
    category: str | None = Field(None, description="one of the release, such as Magazine_Subscriptions; downloaded")
    base_url: Url = Field(
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023", description="above `raw/` of the release"
    )
    reviews_url: Url | None = Field(None, description="of the reviews, .jsonl or .jsonl.gz; downloaded")
    metadata_url: Url | None = Field(None, description="of the metadata, likewise; needed with `reviews_url`")
    reviews_sha256: Sha256 | None = Field(None, description="expected of the downloaded reviews file, hexadecimal")
    metadata_sha256: Sha256 | None = Field(None, description="expected of the downloaded metadata file, hexadecimal")

    @field_validator("category")
    @classmethod
    def _known_category(cls, category: str | None) -> str | None:
        if category is not None and category not in CATEGORIES:
            raise ValueError(f"no such category; {known(category, CATEGORIES)}")
        return category

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [way for way in WAYS if getattr(self, way) is not None]
        if len(ways) != 1:
            raise ValueError(
                f"give exactly one of `folder`, `category`, or `reviews_url` with `metadata_url`; {len(ways)} are given"
            )
        given = self.model_fields_set
        strange = [name for way in WAYS if way != ways[0] for name in WAYS[way] if name in given]
        if ways[0] == "folder":
            strange += sorted({"reviews_sha256", "metadata_sha256"} & given)
        if strange:
            raise ValueError(f"{', '.join(strange)} cannot go with `{ways[0]}`")
        if self.reviews_url and not self.metadata_url:
            raise ValueError("`reviews_url` needs `metadata_url` too")
        return self

    @property
    def urls(self) -> tuple[str, str] | None:
        """URLs of reviews and metadata; None if both are local."""
        if self.category:
            raw = f"{self.base_url.rstrip('/')}/raw"
            return (
                f"{raw}/review_categories/{self.category}.jsonl.gz",
                f"{raw}/meta_categories/{_PREFIX}{self.category}.jsonl.gz",
            )
        return (self.reviews_url, self.metadata_url) if self.reviews_url and self.metadata_url else None


def fetch(options: Options, root: Path, raw: Path) -> RawFiles:
    """Find both files, or download them.

    Raises:
        SourceError: the folder is missing, it is not clear which files are meant, or a download failed.
    """
    if options.urls:
        return _downloaded(options, options.urls, raw)
    reviews, metadata = watched(options, root)
    return RawFiles(reviews, metadata, photos(options, root))


def _downloaded(options: Options, urls: tuple[str, str], raw: Path) -> RawFiles:
    """Download both files under fixed names, so that another category replaces the previous one."""
    packed = [".gz" if url.partition("?")[0].endswith(".gz") else "" for url in urls]
    reviews, metadata = raw / f"reviews.jsonl{packed[0]}", raw / f"meta.jsonl{packed[1]}"
    download(urls[0], reviews, options.reviews_sha256)
    download(urls[1], metadata, options.metadata_sha256)
    _remove_others(raw, {reviews.name, metadata.name})
    return RawFiles(reviews, metadata)


def _remove_others(raw: Path, names: set[str]) -> None:
    """Remove files of another source or URL from the folder, but keep the notes of these downloads."""
    kept = names | {f".{name}.json" for name in names}
    for path in raw.iterdir():
        if path.name not in kept:
            files.remove(path)


def watched(options: Options, root: Path) -> list[Path]:
    """Return the reviews file and the metadata file; none if they are downloaded, since only a run asks the server.

    Raises:
        SourceError: as `fetch`.
    """
    if options.urls:
        return []
    folder = _folder(options, root)
    if options.reviews and options.metadata:
        return [folder / options.reviews, folder / options.metadata]
    pairs = _pairs(folder)
    if len(pairs) != 1:
        names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())) or "no files"
        raise SourceError(
            f"{folder} holds {len(pairs)} pairs of reviews and metadata where one is needed: reviews.jsonl and "
            f"meta.jsonl, or <Category>.jsonl and meta_<Category>.jsonl, each plain or .gz. It holds: {names}. "
            "Name both files by `reviews` and `metadata` in [datasets.<name>.source] of pixrec.toml"
        )
    reviews, metadata = pairs[0]
    return [folder / (options.reviews or reviews), folder / (options.metadata or metadata)]


def photos(options: Options, root: Path) -> Path | None:
    """Return the folder of the photos, if they are local.

    Raises:
        SourceError: the folder is missing.
    """
    if options.urls:
        return None
    folder = _folder(options, root)
    has_photos = (folder / "images").is_dir() if options.serve_photos is None else options.serve_photos
    return folder if has_photos else None


def _folder(options: Options, root: Path) -> Path:
    assert options.folder is not None, "asked for the folder of files that are downloaded"
    folder = absolute_path(options.folder, root)
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder; correct `folder` in [datasets.<name>.source] of pixrec.toml")
    return folder


def _pairs(folder: Path) -> list[tuple[str, str]]:
    """Return the names of reviews and metadata that belong together."""
    names = {path.name for path in folder.iterdir() if path.is_file()}
    stems = sorted(name.partition(".jsonl")[0] for name in names if name.endswith(_ENDINGS))
    partners = {stem: "meta" if stem == "reviews" else _PREFIX + stem for stem in stems}
    return [
        (stem + ending, partner + other)
        for stem, partner in sorted(partners.items())
        for ending in _ENDINGS
        for other in _ENDINGS
        if {stem + ending, partner + other} <= names
    ]
