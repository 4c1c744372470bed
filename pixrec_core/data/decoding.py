"""Decode photos in separate processes, with limits of time and memory that no photo can exceed.

A photo of 136 bytes can need 1.3 GB, and one of 1 MB minutes of CPU time. The decoders are C libraries, which nothing
stops in the same process. So a decoding process (`photos.py`) sets its own limits of the operating system; it is
replaced after a photo has exceeded them.

A pool such as `pebble.ProcessPool` would need 0.22 ms CPU per photo in this process, more than a download. It would
also import the caller's `__main__` again, and limits time by the clock, so that a busy machine would reject good
photos.
"""

import atexit
import functools
import io
import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

from PIL import Image

from pixrec_core.data import photos
from pixrec_core.data.photos import ANSWER, CRASHES, KILLED, READY, REQUEST, TOO_SLOW, PhotoError
from pixrec_core.errors import PixRecError

#: Memory of one decoding process in MiB, as far as the total allows: enough for 50 million pixels of most formats.
PROCESS_MB: Final = 1024
POLL_S: Final = 0.2  # between two looks at `stop`


class StoppedError(Exception):
    """The run ends, and with it the work on a photo."""


class StoredPhoto(NamedTuple):
    """A decoded photo: its JPEG bytes, and its width and height in pixels."""

    data: bytes
    width: int
    height: int


class Decoders(AbstractContextManager["Decoders"]):
    """Decoding processes, which any number of threads share; they start when they are first needed."""

    def __init__(self, memory_mb: int, stop: threading.Event | None = None) -> None:
        """Share the memory among as many processes as cores and memory allow.

        When `stop` is set, `decode` raises `StoppedError` within half a second.
        """
        count = max(1, min(os.cpu_count() or 1, memory_mb // PROCESS_MB))
        self._memory = memory_mb * 2**20 // count
        self._stop = stop or threading.Event()
        self._idle: SimpleQueue[_Process | None] = SimpleQueue()  # None: not started yet, or lost
        for _ in range(count):
            self._idle.put(None)

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes that decode nothing."""
        with suppress(Empty):
            while True:
                if process := self._idle.get_nowait():
                    process.kill()

    def decode(self, body: bytes, size: int, max_pixels: int) -> StoredPhoto:
        """Decode a photo and scale its longest edge down to `size` pixels.

        Raises:
            PhotoError: the photo cannot be used, or exceeds a limit.
            StoppedError: `stop` was set.
        """
        try:
            return self._decode(body, size, max_pixels)
        except _LostError as error:
            if error.signal == signal.SIGPROF:
                raise PhotoError(TOO_SLOW) from None
        try:  # anything may have killed the process: a photo that crashes it does so again
            return self._decode(body, size, max_pixels)
        except _LostError as error:  # SIGKILL is the system's when memory runs out; another run may have more
            raise PhotoError(KILLED if error.signal == signal.SIGKILL else CRASHES) from None

    def _decode(self, body: bytes, size: int, max_pixels: int) -> StoredPhoto:
        process = self._take()
        try:
            process = process or _Process(self._memory)
            return process.decode(body, size, max_pixels, self._stop)
        except PhotoError:
            raise
        except BaseException:
            if process:
                process.kill()
            process = None
            raise
        finally:
            self._idle.put(process)

    def _take(self) -> "_Process | None":
        while not self._stop.is_set():
            with suppress(Empty):
                return self._idle.get(timeout=POLL_S)
        raise StoppedError


class _LostError(Exception):
    """A decoding process has ended; `signal` is the number of the signal that ended it, 0 if none did."""

    def __init__(self, number: int) -> None:
        super().__init__(f"a decoding process was ended by signal {number}")
        self.signal = number


class _Process:
    def __init__(self, memory: int) -> None:
        """Start a process.

        Its messages, which photos of strangers can provoke, are dropped. A session of its own keeps a terminal's Ctrl-C
        from it. It ends when this process has ended, since its standard input then ends.
        """
        command = [sys.executable, "-P", photos.__file__, str(memory)]
        self._popen = subprocess.Popen(  # noqa: S603  # this Python and a file of this package
            command,
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"MALLOC_ARENA_MAX": "1"},  # an arena of glibc reserves address space
        )
        assert self._popen.stdin
        assert self._popen.stdout
        self._to, self._from = self._popen.stdin.fileno(), self._popen.stdout.fileno()
        self._poll = select.poll()
        self._poll.register(self._from, select.POLLIN)
        try:
            self._read(len(READY), threading.Event())
        except _LostError:
            self.kill()
            raise PixRecError(
                f"the photo decoder does not start (exit code {self._popen.returncode}); run "
                f"`{' '.join(command)} < /dev/null` to see why, and raise images.decode_memory_mb if memory ran out"
            ) from None

    def decode(self, body: bytes, size: int, max_pixels: int, stop: threading.Event) -> StoredPhoto:
        """See `Decoders.decode`.

        Raises:
            _LostError: the process has ended.
        """
        message = memoryview(REQUEST.pack(len(body), size, max_pixels) + body)
        try:
            while message:
                message = message[os.write(self._to, message) :]
        except BrokenPipeError:
            raise self._lost() from None
        is_photo, width, height, length = ANSWER.unpack(self._read(ANSWER.size, stop))
        data = self._read(length, stop)
        if not is_photo:
            raise PhotoError(data.decode())
        return StoredPhoto(data, width, height)

    def _read(self, length: int, stop: threading.Event) -> bytes:
        data = bytearray()
        while len(data) < length:
            while not self._poll.poll(POLL_S * 1000):
                if stop.is_set():
                    raise StoppedError
            part = os.read(self._from, length - len(data))
            if not part:
                raise self._lost()
            data += part
        return bytes(data)

    def _lost(self) -> _LostError:
        return _LostError(max(0, -self._popen.wait()))

    def kill(self) -> None:
        with self._popen:  # closes the pipes and waits
            self._popen.kill()


@functools.cache
def _shared(_process_id: int) -> Decoders:
    """The decoding processes for single photos; a forked process must not share those of its parent."""
    decoders = Decoders(PROCESS_MB)
    atexit.register(decoders.close)
    return decoders


def decode_photo(body: bytes, size: int, max_pixels: int) -> Image.Image:
    """One photo as RGB, with the limits and in the form of stored photos; the decoding process is kept for the next.

    Raises:
        PhotoError: the photo cannot be used, or exceeds a limit.
    """
    return Image.open(io.BytesIO(_shared(os.getpid()).decode(body, size, max_pixels).data)).convert("RGB")
