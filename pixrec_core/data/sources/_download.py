"""One large file over HTTP to disk: resumed after a kill, checked when whole, never mixed of two versions.

Beside the file `<name>` lie `.<name>.partial` while it grows, and a JSON note for each of the two:
which version of which URL it is. A URL comes from the user's own settings, so any address may be
connected to; a proxy of the environment is used.
"""

import logging
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, NoReturn

import requests
import urllib3

from pixrec_core import __version__, files, progress
from pixrec_core.data import raw_lines
from pixrec_core.data.retrying import is_transient, retry_after, wait_s
from pixrec_core.errors import MissingArtefactError, SourceError
from pixrec_core.settings import without_secrets

ATTEMPTS: Final = 5  # tries in a row that bring nothing new
TIMEOUT_S: Final = 60.0  # for a connection, and for the next bytes
HEADERS: Final = {"User-Agent": f"PixRec/{__version__}", "Accept-Encoding": "identity"}

log = logging.getLogger(__name__)


class _InterruptedError(Exception):
    """A try failed; the next one may do better."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Version:
    """What the server said of a file.

    Attributes:
        url: without user, password and query.
        etag: None where there was none.
        modified: `Last-Modified`, likewise.
        length: bytes of the whole file; None where the server did not say.
    """

    url: str
    etag: str | None
    modified: str | None
    length: int | None

    @classmethod
    def of(cls, url: str, response: requests.Response) -> "Version":
        get = response.headers.get
        length = get("Content-Length", "")
        return cls(without_secrets(url), get("ETag"), get("Last-Modified"), int(length) if length.isdecimal() else None)

    @property
    def validator(self) -> str | None:
        """What `If-Range` may hold: a weak ETag does not promise the same bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else self.modified

    def agrees(self, other: "Version") -> bool:
        """Whether both are the same version as far as both tell, and they tell something."""
        pairs = [(self.etag, other.etag), (self.modified, other.modified)]
        told = [(a, b) for a, b in pairs if a and b]
        return self.url == other.url and bool(told) and all(a == b for a, b in told)


def download(url: str, target: Path, sha256: str | None = None) -> None:
    """Bring `url` to `target`; what is there already, and the same on the server, is kept.

    Raises:
        SourceError: the server has no such file or gives it up for good, the file is damaged, it is not the one of
            the checksum `sha256` (hexadecimal), or the disk is full.
    """
    with requests.Session() as session:
        session.headers.update(HEADERS)
        one = _Download(session, url, target, sha256)
        best = one.size
        fruitless = 0
        while True:
            try:
                return one.attempt()
            except _InterruptedError as error:
                fruitless = 1 if one.size > best else fruitless + 1
                best = max(best, one.size)
                if fruitless >= ATTEMPTS:
                    raise SourceError(
                        f"{one.shown} cannot be fetched: {error}, {ATTEMPTS} times in a row; the {one.size:,} bytes "
                        "so far are kept, and another run goes on from there"
                    ) from None
                log.warning("%s: %s; trying again", one.shown, error)
                time.sleep(wait_s(fruitless, error.wait_s))


class _Download:
    """Tries of one URL, and what they left on disk."""

    def __init__(self, session: requests.Session, url: str, target: Path, sha256: str | None) -> None:
        self.shown = without_secrets(url)
        self._session, self._url, self._target, self._sha256 = session, url, target, sha256
        self._partial = target.with_name(f".{target.name}.partial")
        self._partial_note = target.with_name(f".{target.name}.partial.json")
        self._note = target.with_name(f".{target.name}.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._whole = self._kept()
        if not (found := _version(self._partial_note)) or found.url != self.shown:
            self._start_over()

    @property
    def size(self) -> int:
        """Bytes of the partial file."""
        return self._partial.stat().st_size if self._partial.exists() else 0

    def attempt(self) -> None:
        """One try: ask for what is missing, take it, check the whole."""
        version = _version(self._partial_note) if self.size else None
        if version and self.size == version.length:  # a killed run had it all
            self._finish()
            return
        try:
            came = self._request(version if version and version.validator else None)
        except (requests.exceptions.SSLError, requests.exceptions.InvalidURL, requests.TooManyRedirects) as error:
            raise SourceError(f"{self.shown} cannot be fetched: {_reason(error)}; mend the URL") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _InterruptedError(_reason(error)) from None
        if came:
            self._finish()

    def _request(self, part: Version | None) -> bool:
        """Ask for the rest of `part`, or for the file if it is not the one there is; returns whether bytes came."""
        headers = _going_on(part, self.size) if part else _if_changed(self._whole)
        with self._session.get(self._url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            now = Version.of(self._url, response)
            code = response.status_code
            if part and code == requests.codes.partial_content:
                self._receive(response, part, self._rest(response, part, now))
                return True
            if self._whole and (code == requests.codes.not_modified or (code == 200 and now.agrees(self._whole))):
                log.info("%s has not changed", self.shown)
                self._start_over()
                return False
            if code != requests.codes.ok:
                self._refused(response)
            self._start_over()
            files.write_json(self._partial_note, asdict(now))
            self._receive(response, now, now.length)
            return True

    def _rest(self, response: requests.Response, part: Version, now: Version) -> int | None:
        """Bytes that a partial answer holds, after a look that it goes on where and with what we have."""
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        told = {"*", str(part.length)} if part.length is not None else {total}
        changed = any(a and b and a != b for a, b in ((part.etag, now.etag), (part.modified, now.modified)))
        if changed or not span.startswith(f"{self.size}-") or total not in told:
            self._give_up("another part came than was asked for, or the file changed on the server")
        return None if part.length is None else part.length - self.size

    def _refused(self, response: requests.Response) -> NoReturn:
        code = response.status_code
        if code == requests.codes.requested_range_not_satisfiable:
            self._give_up("the file on the server is shorter than before")
        if is_transient(code):
            raise _InterruptedError(f"http {code}", retry_after(response.raw))
        raise SourceError(
            f"{self.shown} cannot be fetched: http {code}; mend the URL or the category in [datasets.<name>.source] "
            "of pixrec.toml, or fetch the file yourself and name its `folder` there"
        )

    def _receive(self, response: requests.Response, version: Version, rest: int | None) -> None:
        """Append the answer's body to the partial file."""
        self._check_room(rest or 0)
        pieces = response.raw.stream(raw_lines.CHUNK, decode_content=False)
        total = None if rest is None else -(-rest // raw_lines.CHUNK)
        try:
            with self._partial.open("ab") as file:
                for piece in progress.track(pieces, f"{self._target.name}, MiB", total, log):
                    file.write(piece)
                    if version.length is not None and file.tell() > version.length:
                        break
        except OSError as error:
            raise SourceError(
                f"{self._partial} cannot be written: {error.strerror}; make room and run again: it goes on from there"
            ) from error
        if version.length is not None and self.size < version.length:
            raise _InterruptedError(f"cut short after {self.size:,} of {version.length:,} bytes")
        if version.length is not None and self.size > version.length:
            self._give_up(f"more than the {version.length:,} bytes came that the server had told")

    def _check_room(self, wanted: int) -> None:
        free = shutil.disk_usage(self._target.parent).free
        if wanted > free:
            raise SourceError(
                f"{self._target.parent} has {free:,} bytes free, and {self.shown} needs {wanted:,} more; make room or "
                "move `data_dir`"
            )

    def _finish(self) -> None:
        """Check the whole file, note its version, and give it its name."""
        version = _version(self._partial_note)
        sha256 = files.sha256_file(self._partial)
        if self._sha256 and sha256 != self._sha256.lower():
            self._start_over()
            raise SourceError(
                f"{self.shown} has the checksum {sha256} where {self._sha256} is expected; the file was removed. Mend "
                "the checksum in [datasets.<name>.source] of pixrec.toml, or ask who changed the file"
            )
        if fault := self._damage():
            self._start_over()
            raise SourceError(
                f"{self.shown} came whole and is damaged ({fault}); the file was removed. Run again, or take the file "
                "from elsewhere by `base_url` or `folder`"
            )
        assert version is not None, "a partial file without its note"
        files.write_json(self._note, {**asdict(version), "bytes": self.size, "sha256": sha256})
        self._partial.replace(self._target)
        files.remove(self._partial_note)

    def _damage(self) -> str | None:
        """What is wrong with the file: not gzip though its name says so, cut short, or spoilt."""
        if not raw_lines.is_packed(self._partial):
            return "it is no gzip file" if self._target.name.endswith(".gz") else None
        try:
            for _ in raw_lines.unpacked(self._partial):
                pass
        except raw_lines.DamageError as error:
            return str(error)
        return None

    def _kept(self) -> Version | None:
        """The version of the file that is there, if it is the one that was fetched, from this URL, and is wanted."""
        version = _version(self._note)
        if version is None or version.url != self.shown or not self._target.is_file():
            return None
        sha256 = files.sha256_file(self._target)
        wanted = self._sha256.lower() if self._sha256 else sha256
        return version if sha256 == files.read_json(self._note)["sha256"] == wanted else None

    def _give_up(self, reason: str) -> NoReturn:
        """Begin anew at the next try."""
        self._start_over()
        raise _InterruptedError(reason)

    def _start_over(self) -> None:
        files.remove(self._partial)
        files.remove(self._partial_note)


def _version(note: Path) -> Version | None:
    """The version that a note tells; None where there is none, or one of an older make."""
    try:
        found = files.read_json(note)
        return Version(found["url"], found["etag"], found["modified"], found["length"])
    except (MissingArtefactError, KeyError, ValueError):
        return None


def _going_on(part: Version, size: int) -> dict[str, str]:
    assert part.validator is not None, "going on with a file of unknown version"
    return {"Range": f"bytes={size}-", "If-Range": part.validator}


def _if_changed(whole: Version | None) -> dict[str, str]:
    headers = {"If-None-Match": whole.etag, "If-Modified-Since": whole.modified} if whole else {}
    return {name: value for name, value in headers.items() if value}


def _reason(error: Exception) -> str:
    """A few words without the URL, which an exception of requests tells in full."""
    kinds: dict[type[Exception] | tuple[type[Exception], ...], str] = {
        requests.exceptions.SSLError: "its certificate is not valid",
        (requests.Timeout, urllib3.exceptions.TimeoutError): f"no answer within {TIMEOUT_S:g} s",
        requests.exceptions.ProxyError: "the proxy does not answer",
        requests.exceptions.ConnectionError: "no connection",
        urllib3.exceptions.HTTPError: "the connection broke off",
    }
    return next((told for kind, told in kinds.items() if isinstance(error, kind)), type(error).__name__)
