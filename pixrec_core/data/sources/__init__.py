"""Where raw files come from: one module a kind of source.

A source module has three names:

`Options`
    a pydantic model of the fields that `[datasets.<name>.source]` may hold beside `kind`;
`fetch(options, root, raw) -> RawFiles`
    brings reviews and metadata in the Amazon Reviews 2023 shape to local files and says where they
    lie: inside `raw` (the folder given for it) where the source makes or downloads them, in place
    where they are local already. `root` is the folder that relative paths start from. Fetching
    again with the same options gives the same bytes;
`watched(options, root) -> list[Path]`
    the local files that it reads in place, reviews before metadata, so that a change of one makes
    later stages stale.
"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RawFiles:
    """Local raw files of one dataset.

    A source that reads another format writes one line a row. For a row that it cannot read it writes
    an object with the reason under `json_lines.FAULT`, so that the row is quarantined like any bad line.

    Attributes:
        reviews: `.jsonl` or `.jsonl.gz`, one review a line.
        metadata: `.jsonl` or `.jsonl.gz`, one item a line.
        photos: folder of local photos, which the metadata name by their paths relative to it; None if all photos are
            on the web.
        reviews_stand_for: the user's own file that `reviews` was made from, line n from line n; None where it is
            that file itself.
        metadata_stand_for: the same for `metadata`.
    """

    reviews: Path
    metadata: Path
    photos: Path | None = None
    reviews_stand_for: Path | None = None
    metadata_stand_for: Path | None = None
