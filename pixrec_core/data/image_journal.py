"""What came of each photo, line by line while a download runs, so that a killed one can go on.

The first line holds the settings, every other one an outcome in the columns of the manifest. A
try that failed and will be repeated is written too, as status "trying": a resumed run counts on
from it, so that it ends with the manifest of an undisturbed one.
"""

import dataclasses
import json
import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import polars as pl

from pixrec_core import files
from pixrec_core.schemas import IMAGE_SCHEMA, ITEM
from pixrec_core.settings import ImageSettings

OK: Final = "ok"
FAILED: Final = "failed"
TRYING: Final = "trying"

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """One row of the manifest; see `IMAGE_SCHEMA` for the units."""

    item: str
    url: str
    status: str
    attempts: int
    reason: str | None = None
    sha256: str | None = None
    width: int | None = None
    height: int | None = None
    bytes: int | None = None


class Journal:
    """An append-only file of outcomes; several threads may write to it."""

    def __init__(self, path: Path, settings: ImageSettings) -> None:
        """Open the journal, going on with what a killed run left.

        Under other settings than that run's, only its photos are believed, and only where the size
        is the same: what failed may succeed now.
        """
        self._path = path
        self._lock = threading.Lock()
        header = settings.model_dump(mode="json")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(_whole_lines(path))
        before, self.earlier = _read(path)
        if before != header:
            same_size = before is not None and before.get("size") == settings.size
            self.earlier = self.earlier.filter(pl.col("status") == OK, pl.lit(same_size))
            self._file.truncate(0)
            self._write(header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def append(self, outcome: Outcome) -> None:
        """Note an outcome; it has left this process when the call returns."""
        self._write(dataclasses.asdict(outcome))

    def _write(self, value: dict[str, object]) -> None:
        line = json.dumps(value).encode() + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def take_over(self, path: Path, settings: ImageSettings) -> None:
        """Note as its own what another journal of a killed run holds, and remove that one."""
        with Journal(path, settings) as other:
            for row in other.earlier.iter_rows(named=True):
                self.append(Outcome(**row))
        files.remove(path)
        self.earlier = newest([self.earlier, other.earlier])


def outcomes(paths: Iterable[Path]) -> pl.DataFrame:
    """What all journals of a run hold, the newest of each item and URL. Schema: `IMAGE_SCHEMA`."""
    return newest([_read(path)[1] for path in paths])


def newest(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Outcomes of all parts, of each item and URL the last. Schema: `IMAGE_SCHEMA`."""
    return pl.concat(parts).unique([ITEM, "url"], keep="last", maintain_order=True)


def _whole_lines(path: Path) -> int:
    """Length in bytes of the lines that are whole; a kill can tear the last one."""
    with path.open("rb") as file:
        return sum(len(line) for line in file if line.endswith(b"\n"))


def _read(path: Path) -> tuple[dict[str, object] | None, pl.DataFrame]:
    """Settings and outcomes; neither where the file is damaged. Read as a stream: there may be millions of lines."""
    with path.open("rb") as file:
        header = file.readline()
    if not header:
        return None, IMAGE_SCHEMA.to_frame()
    try:
        before = json.loads(header)
        lines = pl.scan_ndjson(path, schema=IMAGE_SCHEMA)
        rows = lines.drop_nulls(ITEM).collect(engine="streaming")  # the settings' line is a row of nulls
    except (ValueError, pl.exceptions.PolarsError) as error:
        log.warning("%s is damaged (%s); its photos are fetched again", path, error)
        return None, IMAGE_SCHEMA.to_frame()
    return before, newest([rows])
