"""Log of the server's answers: one JSON object per list, in files that one process writes."""

import json
import logging
import os
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from threading import Lock
from typing import Final, TextIO

from pixrec_core.schemas import clean_id
from pixrec_core.serving.server.schemas import Answer, Question

log = logging.getLogger(__name__)

MAX_BYTES: Final = 64_000_000  # of one file; then the next one is started


class OnlineLog:
    """Appends answers to `shown-<start>-<process>-<random>.jsonl`.

    A line has `time` (milliseconds since 1970), `user` (null without one), `method`, `promotion`, and the `items` in
    their order. Texts and photos of queries are not written.

    Args:
        folder: of the files; created with the first line.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, Lock()
        self._file: TextIO | None = None

    def write(self, answers: Sequence[tuple[Question, Answer]]) -> None:
        """Append one line per answer. If that fails, as on a full disk, the answers are sent without being logged."""
        try:
            self._append(answers)
        except OSError as error:
            log.warning("warning: cannot write to %s (%s); answers are sent without being logged", self._folder, error)

    def _append(self, answers: Sequence[tuple[Question, Answer]]) -> None:
        now = int(time.time() * 1000)
        lines = "".join(
            json.dumps(
                {
                    "time": now,
                    "user": clean_id(question.user or "") or None,  # a shop may send an empty id for a guest
                    "method": answer.method,
                    "promotion": answer.promotion,
                    "items": [each.item for each in answer.items],
                },
                ensure_ascii=False,
            )
            + "\n"
            for question, answer in answers
        )
        with self._lock:
            if self._file is None or self._file.tell() >= MAX_BYTES:
                self._start_file(now)
            assert self._file is not None
            self._file.write(lines)
            self._file.flush()

    def close(self) -> None:
        """Close the present file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None

    def _start_file(self, now: int) -> None:
        if self._file is not None:
            self._file.close()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"shown-{now}-{os.getpid()}-{uuid.uuid4().hex[:8]}.jsonl"
        self._file = (self._folder / name).open("a", encoding="utf-8")
