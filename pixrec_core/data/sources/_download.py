"""Download a large file over HTTP: resumable, verified when complete, never a mixture of two versions.

A download in progress is `.<name>.partial`. That file and the complete one each have a JSON record of their URL and
version. URLs come from the user's settings, so every address is allowed, and environment proxies are used.
"""

import errno
import hashlib
import logging
import os
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
from pixrec_core.errors import PixRecError, SourceError
from pixrec_core.printable import shown_url

ATTEMPTS: Final = 5  # consecutive attempts without new bytes
TIMEOUT_S: Final = 60.0  # to connect, and to wait for the next bytes
HEADERS: Final = {"User-Agent": f"PixRec/{__version__}", "Accept-Encoding": "identity"}

log = logging.getLogger(__name__)


class _InterruptedError(Exception):
    """An attempt failed; another one may succeed."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Version:
    """Identity of a file on the server.

    Attributes:
        url: without user, password and query.
        etag: None if the server sent none.
        modified: `Last-Modified`; None if the server sent none.
        length: bytes of the complete file; None if the server did not declare it.
        key: of the whole URL. It differs for another signature of the same file, and for another file.
    """

    url: str
    etag: str | None
    modified: str | None
    length: int | None
    key: str

    @classmethod
    def of(cls, url: str, response: requests.Response) -> "Version":
        get = response.headers.get
        declared = get("Content-Length", "")
        length = int(declared) if declared.isdecimal() else None
        return cls(shown_url(url), get("ETag"), get("Last-Modified"), length, _key(url))

    @property
    def strong_etag(self) -> str | None:
        """The ETag, if it guarantees identical bytes."""
        return self.etag if self.etag and not self.etag.startswith("W/") else None

    def validator(self, key: str) -> str | None:
        """Value for `If-Range` in a request of the URL with this key; None if nothing shows that bytes are the same.

        A weak ETag does not, nor does the time of another URL.
        """
        return self.strong_etag or (self.modified if self.key == key else None)

    def conditions(self, key: str) -> dict[str, str]:
        """Headers that ask the URL with this key only for another version than this one."""
        same_url = {"If-None-Match": self.etag, "If-Modified-Since": self.modified}
        headers = same_url if self.key == key else {"If-None-Match": self.strong_etag}
        return {name: value for name, value in headers.items() if value}

    def matches(self, other: "Version") -> bool:
        """Return whether both have a common validator and all common ones are equal; of another URL, a strong ETag."""
        if self.key != other.key:
            return self.url == other.url and self.strong_etag is not None and self.strong_etag == other.strong_etag
        pairs = [(self.etag, other.etag), (self.modified, other.modified)]
        common = [(a, b) for a, b in pairs if a and b]
        return bool(common) and all(a == b for a, b in common)


def download(url: str, target: Path, sha256: str | None = None) -> None:
    """Download `url` to `target`, unless `target` is already the version on the server.

    `sha256` is the expected checksum, hexadecimal; None accepts any file.

    Raises:
        SourceError: the server refuses or keeps failing, the file is damaged or has another checksum, or the disk is
            full.
    """
    with requests.Session() as session:
        session.headers.update(HEADERS)
        transfer = _Download(session, url, target, sha256)
        best = transfer.size
        failures = 0
        while True:
            try:
                return transfer.attempt()
            except _InterruptedError as error:
                failures = 1 if transfer.size > best else failures + 1
                best = max(best, transfer.size)
                if failures >= ATTEMPTS:
                    raise SourceError(
                        f"{transfer.shown} cannot be downloaded: {error}, {ATTEMPTS} times in a row; run again to "
                        f"resume from byte {transfer.size:,}, or download the file elsewhere and {_USE_FOLDER}"
                    ) from None
                log.warning("warning: %s: %s; trying again", transfer.shown, error)
                time.sleep(wait_s(failures, error.wait_s))


_USE_FOLDER: Final = "set its `folder` in [datasets.<name>.source] of pixrec.toml"


class _Download:
    """The attempts to download one URL, and their files."""

    def __init__(self, session: requests.Session, url: str, target: Path, sha256: str | None) -> None:
        self.shown, self._key = shown_url(url), _key(url)
        self._session, self._url, self._target, self._sha256 = session, url, target, sha256
        self._partial = target.with_name(f".{target.name}.partial")
        self._partial_record = target.with_name(f".{target.name}.partial.json")
        self._record = target.with_name(f".{target.name}.json")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._complete = self._valid_target()
        if not (found := _version(self._partial_record)) or found.url != self.shown:
            self._start_over()

    @property
    def size(self) -> int:
        """Number of bytes of the partial file."""
        return self._partial.stat().st_size if self._partial.exists() else 0

    def attempt(self) -> None:
        """Request the missing bytes, append them, and verify the complete file."""
        version = _version(self._partial_record) if self.size else None
        if version and version.key == self._key and self.size == version.length:  # a killed run had received everything
            self._finish()
            return
        try:
            received = self._request(version if version and version.validator(self._key) else None)
        except (requests.exceptions.SSLError, requests.exceptions.InvalidURL, requests.TooManyRedirects) as error:
            raise SourceError(f"{self.shown} cannot be downloaded: {_reason(error)}; correct the URL") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if _lacks_network(error):
                raise SourceError(
                    f"{self.shown} cannot be downloaded: its host cannot be found or reached from here. Check the "
                    f"network and HTTPS_PROXY, or download the file elsewhere and {_USE_FOLDER}"
                ) from None
            raise _InterruptedError(_reason(error)) from None
        if received:
            self._finish()

    def _request(self, part: Version | None) -> bool:
        """Request the rest of `part`, or the file unless it is unchanged; return whether there are new bytes."""
        headers = self._range_headers(part) if part else {}
        if self._complete and not part:
            headers = self._complete.conditions(self._key)
        with self._session.get(self._url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
            now = Version.of(self._url, response)
            code = response.status_code
            if part and code == requests.codes.partial_content:
                self._receive(response, part, self._rest(response, part, now))
                return True
            if self._complete and (
                code == requests.codes.not_modified or (code == 200 and now.matches(self._complete))
            ):
                log.info("%s has not changed", self.shown)
                self._start_over()
                return False
            if code != requests.codes.ok:
                self._raise_for_status(response)
            self._start_over()
            files.write_json(self._partial_record, asdict(now))
            self._receive(response, now, now.length)
            return True

    def _range_headers(self, part: Version) -> dict[str, str]:
        validator = part.validator(self._key)
        assert validator is not None, "resuming a file of unknown version"
        return {"Range": f"bytes={self.size}-", "If-Range": validator}

    def _rest(self, response: requests.Response, part: Version, now: Version) -> int | None:
        """Return the number of bytes in a partial response, which must continue the partial file."""
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        valid_totals = {"*", str(part.length)} if part.length is not None else {total}
        changed = any(a and b and a != b for a, b in ((part.etag, now.etag), (part.modified, now.modified)))
        if changed or not span.startswith(f"{self.size}-") or total not in valid_totals:
            self._restart("the response is another range than requested, or the file changed on the server")
        return None if part.length is None else part.length - self.size

    def _raise_for_status(self, response: requests.Response) -> NoReturn:
        code = response.status_code
        if code == requests.codes.requested_range_not_satisfiable:
            self._restart("the file on the server is shorter than before")
        if is_transient(code):
            raise _InterruptedError(f"http {code}", retry_after(response.headers.get("Retry-After")))
        raise SourceError(
            f"{self.shown} cannot be downloaded: http {code}; correct the URL or the category in "
            f"[datasets.<name>.source] of pixrec.toml, or download the file yourself and {_USE_FOLDER}"
        )

    def _receive(self, response: requests.Response, version: Version, rest: int | None) -> None:
        """Append the response body to the partial file."""
        self._check_disk_space(rest or 0)
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
                f"{self._partial} cannot be written: {error.strerror}; free disk space and run again to resume"
            ) from error
        if version.length is not None and self.size < version.length:
            raise _InterruptedError(f"cut short after {self.size:,} of {version.length:,} bytes")
        if version.length is not None and self.size > version.length:
            self._restart(f"received more than the {version.length:,} bytes that the server declared")

    def _check_disk_space(self, wanted: int) -> None:
        free = shutil.disk_usage(self._target.parent).free
        if wanted > free:
            raise SourceError(
                f"{self._target.parent} has {free:,} bytes free, but {self.shown} needs {wanted:,} more; free "
                "disk space or move `data_dir`"
            )

    def _finish(self) -> None:
        """Verify the complete file, record its version, and rename it."""
        version = _version(self._partial_record)
        sha256 = files.sha256_file(self._partial)
        if self._sha256 and sha256 != self._sha256.lower():
            self._start_over()
            raise SourceError(
                f"{self.shown} has the checksum {sha256}, expected {self._sha256}; the file was removed. Correct "
                "the checksum in [datasets.<name>.source] of pixrec.toml, or find out who changed the file"
            )
        if fault := self._damage():
            self._start_over()
            raise SourceError(
                f"{self.shown} is complete but damaged ({fault}); the file was removed. Run again, or set another "
                "origin by `base_url` or `folder`"
            )
        assert version is not None, "a partial file without its record"
        files.write_json(self._record, {**asdict(version), "bytes": self.size, "sha256": sha256})
        self._partial.replace(self._target)
        files.remove(self._partial_record)

    def _damage(self) -> str | None:
        """Return how the file is damaged: not gzip despite its name, truncated, or corrupt; None if it is valid."""
        if not raw_lines.is_packed(self._partial):
            return "not a gzip file" if self._target.name.endswith(".gz") else None
        try:
            for _ in raw_lines.unpacked(self._partial):
                pass
        except raw_lines.DamageError as error:
            return str(error)
        return None

    def _valid_target(self) -> Version | None:
        """Return the version of the existing file, if it is an unmodified download of this URL and checksum."""
        version = _version(self._record)
        if version is None or version.url != self.shown or not self._target.is_file():
            return None
        sha256 = files.sha256_file(self._target)
        wanted = self._sha256.lower() if self._sha256 else sha256
        return version if sha256 == files.read_json(self._record)["sha256"] == wanted else None

    def _restart(self, reason: str) -> NoReturn:
        """Discard the partial file and start over with the next attempt."""
        self._start_over()
        raise _InterruptedError(reason)

    def _start_over(self) -> None:
        files.remove(self._partial)
        files.remove(self._partial_record)


def _version(record: Path) -> Version | None:
    """Return the version in a record; None if the record is missing or malformed."""
    try:
        found = files.read_json(record)
        return Version(found["url"], found["etag"], found["modified"], found["length"], found.get("key", ""))
    except (PixRecError, KeyError, TypeError):
        return None


def _key(url: str) -> str:
    """Return a hash of a URL, whose query may be secret."""
    return hashlib.sha256(url.encode()).hexdigest()[:16]


def _lacks_network(error: Exception) -> bool:
    """Return whether another attempt would fail too: the name of the host is unknown, or there is no route to it."""
    cause = getattr(error.args[0], "reason", None) if error.args else None
    text = str(cause)
    return isinstance(cause, urllib3.exceptions.NameResolutionError) or any(
        os.strerror(code) in text for code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN)
    )


def _reason(error: Exception) -> str:
    """Return a short reason without the URL, whose secrets an error message of requests would reveal."""
    kinds: dict[type[Exception] | tuple[type[Exception], ...], str] = {
        requests.exceptions.SSLError: "its certificate is not valid",
        (requests.Timeout, urllib3.exceptions.TimeoutError): f"no answer within {TIMEOUT_S:g} s",
        requests.exceptions.ProxyError: "the proxy does not answer",
        requests.exceptions.ConnectionError: "no connection",
        urllib3.exceptions.HTTPError: "the connection was closed",
    }
    return next((reason for kind, reason in kinds.items() if isinstance(error, kind)), type(error).__name__)
