"""Local files of the Amazon Reviews 2023 release, or of any shop in the same shape."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from pixrec_core.data.sources import RawFiles
from pixrec_core.errors import SourceError

_ENDINGS = (".jsonl", ".jsonl.gz")
_PREFIX = "meta_"


class Options(BaseModel):
    """Fields of `[datasets.<name>.source]` beside `kind = "amazon_2023"`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(description="where both files lie; relative to the folder of pixrec.toml")
    reviews: str | None = Field(None, description="name of the reviews file; none: the one there is")
    metadata: str | None = Field(None, description="name of the metadata file; none: the one there is")
    serve_photos: bool | None = Field(
        None, description="whether the folder holds the photos too; none: it does if it has a folder `images`"
    )


def fetch(options: Options, root: Path, raw: Path) -> RawFiles:  # noqa: ARG001  # files are read in place
    """Find both files.

    Raises:
        SourceError: no such folder, or no telling which files are meant.
    """
    folder = _folder(options, root)
    reviews, metadata = watched(options, root)
    has_photos = (folder / "images").is_dir() if options.serve_photos is None else options.serve_photos
    return RawFiles(reviews, metadata, folder if has_photos else None)


def watched(options: Options, root: Path) -> list[Path]:
    """The reviews file and the metadata file.

    Raises:
        SourceError: as `fetch`.
    """
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


def _folder(options: Options, root: Path) -> Path:
    folder = (root / options.folder.expanduser()).resolve()
    if not folder.is_dir():
        raise SourceError(f"{folder} is no folder; mend `folder` in [datasets.<name>.source] of pixrec.toml")
    return folder


def _pairs(folder: Path) -> list[tuple[str, str]]:
    """Names of reviews and metadata that belong together."""
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
