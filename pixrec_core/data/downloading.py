"""One photo from its URL to its file: fetch, try again, decode, store, note what came of it."""

import hashlib
import os
import threading
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from pixrec_core import files
from pixrec_core.data import local_photos, photos
from pixrec_core.data.fetching import Fetcher
from pixrec_core.data.guarded_connections import FetchError
from pixrec_core.data.image_journal import FAILED, OK, TRYING, Journal, Outcome
from pixrec_core.data.retrying import wait_s
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import ImageSettings


@dataclass(frozen=True, slots=True)
class Task:
    """One item whose photo is wanted. `before` is what an earlier run made of the same URL."""

    item: str
    url: str
    before: Outcome | None

    @property
    def host(self) -> str:
        """The host whose requests are limited; empty for a local photo, and for a URL that will fail."""
        try:
            return urlsplit(self.url).netloc.rpartition("@")[2].lower()
        except ValueError:
            return ""


class Downloader:
    """Settles tasks in any number of threads: each borrows a fetcher with connections of its own."""

    def __init__(
        self,
        settings: ImageSettings,
        paths: DatasetPaths,
        journal: Journal,
        stop: threading.Event,
    ) -> None:
        self._settings = settings
        self._paths = paths
        self._journal = journal
        self._folder = local_photos.photo_folder(paths)
        self._stop = stop
        self._idle: list[Fetcher] = []
        self._closing = ExitStack()
        # A decoded photo can take hundreds of megabytes, and more of them at a time than cores gain nothing.
        self._decoding = threading.BoundedSemaphore(os.cpu_count() or 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closing.close()

    def settle(self, task: Task) -> bool:
        """Bring one photo, or find out why there is none, and note it; returns whether it was read anew."""
        before = task.before
        if before and before.status == FAILED:  # noted by the killed run that this one goes on with
            return False
        if before and before.status == OK and _unchanged(self._paths.image(task.item), before):
            self._journal.append(before)
            return False
        tried = before.attempts if before and before.status == TRYING else 0
        self._journal.append(self._outcome(task, tried))
        return True

    def _outcome(self, task: Task, tried: int) -> Outcome:
        attempts = tried
        while True:
            attempts += 1
            try:
                return self._store(task, self._read(task.url), attempts)
            except photos.PhotoError as error:
                return Outcome(task.item, task.url, FAILED, attempts, str(error))
            except FetchError as error:
                if not error.transient or attempts >= self._settings.attempts:
                    return Outcome(task.item, task.url, FAILED, attempts, error.reason)
                self._journal.append(Outcome(task.item, task.url, TRYING, attempts, error.reason))
                if self._stop.wait(wait_s(attempts, error.wait_s)):
                    raise  # the run ends; the next one goes on from the journal

    def _read(self, url: str) -> bytes:
        """Bytes of a photo, from the web or from the dataset's photo folder."""
        path = local_photos.local_path(url)
        if path is None:
            return self._get(url)
        return local_photos.read_photo(self._folder, path, self._settings.max_bytes)

    def _get(self, url: str) -> bytes:
        """Fetch with a fetcher that no other thread uses meanwhile."""
        try:
            fetcher = self._idle.pop()
        except IndexError:
            fetcher = self._closing.enter_context(Fetcher(self._settings))
        try:
            return fetcher.get(url.strip())
        finally:
            self._idle.append(fetcher)

    def _store(self, task: Task, body: bytes, attempts: int) -> Outcome:
        with self._decoding:
            photo = photos.normalise(body, self._settings.size, self._settings.max_pixels)
            data = photos.encode(photo)
        with files.replacing(self._paths.image(task.item)) as temporary:
            temporary.write_bytes(data)
        return Outcome(
            task.item,
            task.url,
            OK,
            attempts,
            sha256=hashlib.sha256(data).hexdigest(),
            width=photo.width,
            height=photo.height,
            bytes=len(data),
        )


def _unchanged(path: Path, outcome: Outcome) -> bool:
    return path.is_file() and files.sha256_file(path) == outcome.sha256
