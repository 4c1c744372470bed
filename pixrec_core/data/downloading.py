"""Download photos in threads, with a limit per host: read, retry, decode, store, and log the outcome in the journal."""

import hashlib
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import islice
from queue import Empty, SimpleQueue
from typing import Final
from urllib.parse import urlsplit

from pixrec_core import files
from pixrec_core.data import local_photos, photos
from pixrec_core.data.decoding import POLL_S, Decoders, StoppedError
from pixrec_core.data.fetching import Fetcher, FetchError
from pixrec_core.data.image_manifest import FAILED, OK, TRYING, Journal, Outcome
from pixrec_core.data.retrying import wait_s
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import ImageSettings

#: Tasks read ahead, so that another host's task can start while one host is busy.
LOOKAHEAD: Final = 512


@dataclass(frozen=True, slots=True)
class Task:
    """One item whose photo is wanted.

    Attributes:
        item: its id.
        url: of its photo.
        previous: outcome of an earlier run that would try the same URLs.
        others: URLs that are tried in this order if `url` fails.
    """

    item: str
    url: str
    previous: Outcome | None
    others: Sequence[str] = ()

    @property
    def host(self) -> str:
        """The host whose requests are limited; empty for a local photo, and for a malformed URL, which fails later."""
        try:
            return urlsplit(self.url).netloc.rpartition("@")[2].lower()
        except ValueError:
            return ""


class Downloader(ExitStack):
    """Processes tasks in any number of threads; each thread borrows a fetcher that no other one uses meanwhile."""

    def __init__(self, settings: ImageSettings, paths: DatasetPaths, journal: Journal, stop: threading.Event) -> None:
        super().__init__()
        self._settings = settings
        self._paths = paths
        self._journal = journal
        self._folder = local_photos.photo_folder(paths)
        self._stop = stop
        self._idle: list[Fetcher] = []
        self._decoders = self.enter_context(Decoders(settings.decode_memory_mb, stop))

    def process(self, task: Task) -> bool:
        """Store the photo or the reason for its failure; returns whether it had to be read or downloaded.

        Raises:
            StoppedError: `stop` was set.
        """
        previous = task.previous
        if previous and (previous.status == FAILED or (previous.status == OK and self._is_stored(previous))):
            self._journal.append(previous)
            return False
        tries = previous.attempts if previous and previous.status == TRYING else 0
        outcome, tried = self._download(task, tries), [task.url]
        for other in task.others if outcome.status == FAILED else ():
            found = self._download(replace(task, url=other), 0)
            tried.append(other)
            if found.status == OK:
                outcome = replace(found, url=task.url)  # the manifest has one row per item, under its first URL
                break
        self._journal.append(replace(outcome, tried_urls=tried))
        return True

    def _is_stored(self, outcome: Outcome) -> bool:
        path = self._paths.image(outcome.item)
        return path.is_file() and files.sha256_file(path) == outcome.sha256

    def _download(self, task: Task, attempts: int) -> Outcome:
        while True:
            attempts += 1
            try:
                return self._store(task, self._read(task.url), attempts)
            except FetchError as error:
                if not error.transient or attempts >= self._settings.attempts:
                    return Outcome(task.item, task.url, FAILED, attempts, error.reason)
                if task.url not in task.others:
                    self._journal.append(Outcome(task.item, task.url, TRYING, attempts, error.reason))
                if self._stop.wait(wait_s(attempts, error.wait_s)):
                    raise StoppedError from None  # the next run resumes from the journal
            except photos.PhotoError as error:
                return Outcome(task.item, task.url, FAILED, attempts, str(error))

    def _read(self, url: str) -> bytes:
        path = local_photos.local_path(url)
        if path is not None:
            return local_photos.read_photo(self._folder, path, self._settings.max_bytes)
        try:
            fetcher = self._idle.pop()
        except IndexError:
            fetcher = self.enter_context(Fetcher(self._settings, self._stop))
        try:
            return fetcher.get(url.strip())
        finally:
            self._idle.append(fetcher)

    def _store(self, task: Task, body: bytes, attempts: int) -> Outcome:
        photo = self._decoders.decode(body, self._settings.size, self._settings.max_pixels)
        with files.replacing(self._paths.image(task.item)) as temporary:
            temporary.write_bytes(photo.data)
        sha256 = hashlib.sha256(photo.data).hexdigest()
        return Outcome(task.item, task.url, OK, attempts, None, sha256, photo.width, photo.height, len(photo.data))


def map_by_host(
    work: Callable[[Task], bool], tasks: Iterable[Task], threads: int, per_host: int, stop: threading.Event
) -> Iterator[bool]:
    """Yield `work(task)` of every task, in the order in which they finish.

    At most `LOOKAHEAD` + `threads` tasks are in memory. An exception of `work` is raised here after the running tasks
    have ended.

    Args:
        work: called in a thread.
        tasks: read as they are needed.
        threads: tasks at a time.
        per_host: of them, tasks of one host.
        stop: set after an exception, and when the caller closes the iterator, so that `work` can stop waiting.
    """
    source = iter(tasks)
    waiting: dict[str, deque[Task]] = {}
    running: dict[Future[bool], str] = {}
    ended: SimpleQueue[Future[bool]] = SimpleQueue()
    with ThreadPoolExecutor(threads, thread_name_prefix="pixrec-photo") as pool:
        try:
            while True:
                for task in islice(source, LOOKAHEAD - sum(map(len, waiting.values()))):
                    waiting.setdefault(task.host, deque()).append(task)
                for host, task in _pop_startable(waiting, Counter(running.values()), threads, per_host):
                    future = pool.submit(work, task)
                    running[future] = host
                    future.add_done_callback(ended.put)
                if not running:
                    return
                future = _first(ended)
                del running[future]
                yield future.result()
        except BaseException:
            stop.set()
            raise


def _first(ended: SimpleQueue[Future[bool]]) -> Future[bool]:
    """The first element. Polars has system calls restarted after a signal, so Ctrl-C ends no wait without a timeout."""
    while True:
        with suppress(Empty):
            return ended.get(timeout=POLL_S)


def _pop_startable(
    waiting: dict[str, deque[Task]], running: Counter[str], threads: int, per_host: int
) -> Iterator[tuple[str, Task]]:
    """Pop from `waiting` the tasks that both limits allow to start, with their hosts."""
    free = threads - running.total()
    for host in list(waiting):
        for _ in range(min(free, per_host - running[host], len(waiting[host]))):
            free -= 1
            yield host, waiting[host].popleft()
        if not waiting[host]:
            del waiting[host]
