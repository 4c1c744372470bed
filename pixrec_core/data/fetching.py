"""One safe HTTP GET: a URL of unknown origin to bytes, within limits of address, size and time.

Environment proxies, `.netrc` and cookies are ignored on purpose: behind a proxy nobody here could
check the address that is connected to, and a catalogue's URL has no claim to credentials.
"""

import time
from http.cookiejar import DefaultCookiePolicy
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import urljoin

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.exceptions import ChunkedEncodingError, InvalidSchema, InvalidURL, MissingSchema, SSLError, Timeout
from urllib3.exceptions import ReadTimeoutError

from pixrec_core import __version__
from pixrec_core.data.guarded_connections import FetchError, Guard, GuardedPools
from pixrec_core.data.retrying import is_transient, retry_after
from pixrec_core.settings import ImageSettings

MAX_REDIRECTS: Final = 5
CHUNK_BYTES: Final = 65_536
HEADERS: Final = {"User-Agent": f"PixRec/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}


class _Adapter(HTTPAdapter):
    """Sends through guarded connections."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **kwargs: Any) -> None:
        self.poolmanager = GuardedPools(self._guard, num_pools=connections, maxsize=maxsize, block=block, **kwargs)


class _Session(requests.Session):
    """A session that leaves redirects to its caller: its own way reads each one's body to the end, however long."""

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self.trust_env = False
        self.headers.update(HEADERS)
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        for scheme in ("http://", "https://"):
            self.mount(scheme, _Adapter(guard))

    def get_redirect_target(self, resp: requests.Response) -> None:  # noqa: ARG002 - the parent's signature
        return None

    def location(self, response: requests.Response) -> str | None:
        """Where a redirect leads; None for any other response."""
        return super().get_redirect_target(response)


class Fetcher:
    """Fetches photos one after another over connections that stay open. Use one a thread."""

    def __init__(self, settings: ImageSettings, own_host: str | None = None) -> None:
        self._settings = settings
        self._guard = Guard(settings, own_host)
        self._session = _Session(self._guard)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._session.close()

    def get(self, url: str) -> bytes:
        """The body behind a URL, after at most `MAX_REDIRECTS` redirects, each of them checked.

        Raises:
            FetchError: there is none, or it goes past a limit.
        """
        self._guard.until = time.monotonic() + self._settings.deadline_s
        try:
            return self._follow(url)
        except (requests.RequestException, TimeoutError) as error:
            raise self._failure(error) from error
        except (ValueError, urllib3.exceptions.LocationParseError):  # a URL that requests lets pass
            raise FetchError("bad url") from None

    def _follow(self, url: str) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            with self._session.get(url, timeout=self._guard.patience(), stream=True) as response:
                target = self._session.location(response)
                if target is None:
                    return self._body(response)
            url = urljoin(url, target)
        raise FetchError("too many redirects")

    def _body(self, response: requests.Response) -> bytes:
        code = response.status_code
        if code != requests.codes.ok:
            raise FetchError(f"http {code}", transient=is_transient(code), wait_s=retry_after(response))
        declared = response.headers.get("Content-Length", "")
        room = self._settings.max_bytes
        body = bytearray()
        if declared.isdecimal() and len(declared) < 20 and int(declared) > room:
            raise FetchError("too many bytes")
        for chunk in response.iter_content(CHUNK_BYTES):
            body += chunk
            if len(body) > room:
                raise FetchError("too many bytes")
        return bytes(body)

    def _failure(self, error: Exception) -> FetchError:
        """Name what requests raised, so that failures can be counted by kind."""
        if time.monotonic() >= self._guard.until:
            return FetchError("deadline")
        if isinstance(error, InvalidURL | InvalidSchema | MissingSchema):
            return FetchError("bad url")
        if isinstance(error, SSLError):
            return FetchError("tls")
        if isinstance(error, Timeout) or any(isinstance(cause, ReadTimeoutError) for cause in error.args):
            return FetchError("timeout", transient=True)
        if isinstance(error, ChunkedEncodingError):
            return FetchError("cut short", transient=True)
        return FetchError("connection", transient=True)
