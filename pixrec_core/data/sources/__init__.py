"""Sources of raw data: one module per kind.

A source module has five names:

`Options`
    a pydantic model of the fields that `[datasets.<name>.source]` may have besides `kind`;
`fetch(options, root, raw) -> RawFiles`
    brings the raw files to this machine and returns where they are: in the folder `raw` if the source downloads or
    generates them, in place if they are local already. Relative paths start from `root`. The same options give the
    same bytes;
`watched(options, root) -> list[Path]`
    the local files that are read in place, reviews before metadata, so that a change makes later stages stale;
`load_interactions(db, raw, folder, max_expansion) -> list[RawTable]`, `load_items(...)`
    load each raw file into a DuckDB connection as canonical rows: `user`, `item`, `timestamp`, `rating` and
    `is_variant`, or the columns of `ITEM_SCHEMA` with `image_urls` (a list) in place of its URLs, `parent` (id of the
    product whose variants the rows are) and `unread_price` (a text that is no price); and `fault` and `dropped` (why a
    row is rejected, or left out by a rule). `folder` is for temporary files; a gzip file may expand to
    `max_expansion` times its size. Limits of values, repeated rows, order and quarantine are the stages' work.

It may have `preview(options, root) -> list[str]`: lines for `pixrec doctor` that show how the first rows are read. And
`photos(options, root) -> Path | None`, if the files on the disk decide whether there are local photos: their folder.
In messages, `<name>` stands for the dataset's name.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pixrec_core.errors import SourceError


@dataclass(frozen=True)
class RawFiles:
    """Local raw files of one dataset.

    Attributes:
        reviews: file of the interactions, or a folder or pattern of files (`raw_lines.list_files`).
        metadata: file of the items, likewise.
        photos: folder of local photos, which the metadata name by their paths relative to it; None if all photos are
            on the web.
        reading: how to read the files, as JSON values; part of their data version.
    """

    reviews: Path
    metadata: Path
    photos: Path | None = None
    reading: dict[str, Any] = field(default_factory=dict)


def absolute_path(path: Path, root: Path) -> Path:
    """Return the absolute path of a path in the options of a source; a relative one starts from `root`.

    Raises:
        SourceError: no file can have that path.
    """
    try:
        return (root / path.expanduser()).resolve()
    except (RuntimeError, ValueError, OSError) as error:  # an unknown user after `~`, a loop of links, a NUL
        raise SourceError(
            f"{str(path)!r} is not a path that can be used ({error}); correct [datasets.<name>.source] of pixrec.toml"
        ) from error
