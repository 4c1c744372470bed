"""The recommender of a dataset, replaced in the background when another promotion serves."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

from pixrec_core.errors import PixRecError
from pixrec_core.paths import DatasetPaths
from pixrec_core.serving.recommender import Recommender
from pixrec_core.settings import CandidateRules

log = logging.getLogger(__name__)


@dataclass
class LiveRecommender:
    """The newest promotion of a dataset that could be loaded.

    A request takes `current` once and keeps it to its end, so a replacement disturbs no request.

    Attributes:
        paths: of the dataset.
        rules: of the settings file.
        current: None until a promotion has been loaded.
        error: why the newest promotion could not be loaded; None if it could.
    """

    paths: DatasetPaths
    rules: CandidateRules
    current: Recommender | None = None
    error: str | None = None
    _manifest: bytes | None = None
    _lock: Lock = field(default_factory=Lock)
    _on_load: Callable[[Recommender], None] = lambda _: None

    def watch(self, on_load: Callable[[Recommender], None]) -> None:
        """Call a function with the present recommender, and with each new one just before it serves."""
        with self._lock:
            self._on_load = on_load
            if self.current is not None:
                on_load(self.current)

    def refresh(self) -> bool:
        """Load the promotion that serves, unless it is loaded; return whether another one serves now.

        The loaded recommender has answered a query, so the first request does not wait for files. If the new one cannot
        be loaded, the present one goes on and `error` says why.
        """
        with self._lock:
            path = self.paths.promoted.manifest
            manifest = path.read_bytes() if path.is_file() else None
            if manifest is not None and manifest == self._manifest and self.error is None:
                return False
            try:
                loaded = Recommender.load(self.paths.promoted.root, self.rules)
                loaded.for_items([], 1)
            except PixRecError as error:
                if str(error) != self.error:
                    log.warning(
                        "warning: %s: the new promotion cannot be loaded: %s. The present one, if any, keeps serving",
                        self.paths.root.name,
                        error,
                    )
                self.error = str(error)
                return False
            self._on_load(loaded)  # first, so that metrics never name an older promotion than an answer
            self._manifest, self.current, self.error = manifest, loaded, None
            serves = loaded.promotion
            log.info("%s: promotion %d serves by %s", serves.dataset, serves.number, serves.method)
            return True


class Watcher:
    """Refreshes recommenders in a thread, as a context manager.

    Args:
        recommenders: by dataset.
        seconds: between two looks at the manifests.
    """

    def __init__(self, recommenders: Mapping[str, LiveRecommender], seconds: float) -> None:
        self._recommenders, self._seconds, self._stop = recommenders, seconds, Event()
        self._thread = Thread(target=self._watch, name="promotions", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._seconds):
            for name, live in self._recommenders.items():
                try:
                    live.refresh()
                except Exception:  # the next look may succeed; without this the thread would end silently
                    log.exception("%s: looking for a new promotion failed", name)


def open_recommenders(data_dir: Path, rules: Mapping[str, CandidateRules]) -> dict[str, LiveRecommender]:
    """Return a loaded recommender of each dataset. One without a promotion is loaded when it has one."""
    recommenders = {name: LiveRecommender(DatasetPaths.of(data_dir, name), each) for name, each in rules.items()}
    for each in recommenders.values():
        each.refresh()
    return recommenders
