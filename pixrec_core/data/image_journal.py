"""What came of each photo, line by line while a download runs, so that a killed one can go on.

The first line holds the settings, every other one an outcome in the columns of the manifest. A
try that failed and will be repeated is written too, as status "trying": a resumed run counts on
from it, so that it ends with the manifest of an undisturbed one.
"""

import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from pydantic import TypeAdapter

from pixrec_core import files
from pixrec_core.settings import ImageSettings

OK: Final = "ok"
FAILED: Final = "failed"
TRYING: Final = "trying"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
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


_LINE: Final = TypeAdapter(Outcome)


class Journal:
    """An append-only file of outcomes; several threads may write to it."""

    def __init__(self, path: Path, settings: ImageSettings) -> None:
        """Open the journal, going on with what a killed run left.

        Under other settings than that run's, only its photos are believed, and only where the size
        is the same: what failed may succeed now.
        """
        self._settings = settings
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary, temporary.open("wb") as file:
            file.write(settings.model_dump_json().encode() + b"\n")
            file.writelines(_believed(path, settings))
        self._file = path.open("ab")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def append(self, outcome: Outcome) -> None:
        """Note an outcome; it has left this process when the call returns."""
        line = _LINE.dump_json(outcome) + b"\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()

    def take_over(self, path: Path) -> None:
        """Note as its own what another journal of a killed run holds, and remove that one."""
        with self._lock:
            self._file.writelines(_believed(path, self._settings))
            self._file.flush()
        files.remove(path)


def _believed(path: Path, settings: ImageSettings) -> Iterator[bytes]:
    """Lines to go on with: whole ones, up to the first that is damaged. One at a time: there may be millions."""
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            before = json.loads(file.readline())
            same, same_size = before == settings.model_dump(mode="json"), before["size"] == settings.size
            for line in file:
                if line.endswith(b"\n"):  # a kill can tear the last one
                    outcome = _LINE.validate_json(line)
                    if same or (same_size and outcome.status == OK):
                        yield line
    except (ValueError, TypeError, KeyError) as error:
        log.warning("%s is damaged (%s); what it told from there on is fetched again", path, error)
