"""One safe HTTP GET: a URL of unknown origin to bytes, within limits of address, size and time.

It stands on urllib3 alone: a session of `requests` takes as long again for each photo. So there are no
environment proxies, `.netrc` and cookies, on purpose: behind a proxy nobody here could check the
address that is connected to, and a catalogue's URL has no claim to credentials but those in it.
"""

import time
from contextlib import closing
from http import HTTPStatus
from types import TracebackType
from typing import Final, Self
from urllib.parse import unquote, urljoin

import certifi
from urllib3 import BaseHTTPResponse
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as NoAnswerError
from urllib3.util import make_headers, parse_url

from pixrec_core import __version__
from pixrec_core.data.guarded_connections import FetchError, Guard, GuardedPools
from pixrec_core.data.retrying import is_transient, retry_after
from pixrec_core.settings import ImageSettings

MAX_REDIRECTS: Final = 5
CHUNK_BYTES: Final = 65_536
HEADERS: Final = {"User-Agent": f"PixRec/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}


class Fetcher:
    """Fetches photos one after another over connections that stay open. Use one a thread."""

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._guard = Guard(settings)
        self._pools = GuardedPools(self._guard, ca_certs=certifi.where())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pools.clear()

    def get(self, url: str) -> bytes:
        """The body behind a URL, after at most `MAX_REDIRECTS` redirects, each of them checked.

        Raises:
            FetchError: there is none, or it goes past a limit.
        """
        self._guard.until = time.monotonic() + self._settings.deadline_s
        try:
            return self._follow(url)
        except (HTTPError, ValueError, TimeoutError) as error:
            raise self._failure(error) from error

    def _follow(self, url: str) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            with closing(self._ask(url)) as response:  # what is not read to its end loses its connection
                target = response.get_redirect_location()
                if not target:
                    return self._body(response)
            url = urljoin(url, target.encode("latin-1").decode())  # headers are read as Latin-1, and sent as UTF-8
        raise FetchError("too many redirects")

    def _ask(self, url: str) -> BaseHTTPResponse:
        parts = parse_url(url)
        if parts.scheme not in {"http", "https"} or not parts.host:
            raise FetchError("bad url")
        own = make_headers(basic_auth=unquote(parts.auth)) if parts.auth else {}
        return self._pools.connection_from_host(parts.host, parts.port, parts.scheme).urlopen(
            "GET",
            parts.request_uri,
            headers=HEADERS | own,
            timeout=self._guard.patience(),
            retries=False,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
        )

    def _body(self, response: BaseHTTPResponse) -> bytes:
        code = response.status
        if code != HTTPStatus.OK:
            raise FetchError(f"http {code}", transient=is_transient(code), wait_s=retry_after(response))
        declared = response.headers.get("Content-Length", "")
        room = self._settings.max_bytes
        body = bytearray()
        if declared.isdecimal() and len(declared) < 20 and int(declared) > room:
            raise FetchError("too many bytes")
        try:
            for chunk in response.stream(CHUNK_BYTES):
                body += chunk
                if len(body) > room:
                    raise FetchError("too many bytes")
        except ProtocolError:
            raise FetchError("cut short", transient=True) from None
        return bytes(body)

    def _failure(self, error: Exception) -> FetchError:
        """Name what urllib3 raised, so that failures can be counted by kind."""
        if isinstance(error, ValueError):  # of the URL: what is sent and read raises its own kinds
            return FetchError("bad url")
        if time.monotonic() >= self._guard.until:
            return FetchError("deadline")
        if isinstance(error, SSLError):
            return FetchError("tls")
        if isinstance(error, NoAnswerError) and not isinstance(error, NewConnectionError):
            return FetchError("timeout", transient=True)
        return FetchError("connection", transient=True)
