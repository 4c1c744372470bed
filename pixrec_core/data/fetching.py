"""Safe HTTP GET of URLs from strangers: limits of address, size and time.

A catalogue may name `http://169.254.169.254/`, and the downloading machine is inside somebody's network. So every
connection checks its host and address where the socket is created: the name is resolved once, and the checked address
is the one that is connected to. A check before the request would leave time for the name to change its address (DNS
rebinding).

A socket's timeout limits a single read, so a server that sends one byte now and then could hold a thread for days.
Here every connection, TLS handshake and read waits no longer than the photo's deadline allows.

Environment proxies, `.netrc` and cookies are not used: behind a proxy the address could not be checked, and a
catalogue's URL has no claim to credentials except those in it. urllib3 is used directly because a session of
`requests` doubles the time per photo.
"""

import functools
import io
import ipaddress
import socket
import time
from contextlib import closing
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http import HTTPStatus
from http.client import HTTPResponse
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import unquote, urljoin

import certifi
from urllib3 import BaseHTTPResponse
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NewConnectionError, ProtocolError, SSLError
from urllib3.exceptions import TimeoutError as NoAnswerError
from urllib3.poolmanager import PoolManager
from urllib3.util import make_headers, parse_url

from pixrec_core import __version__
from pixrec_core.data.photos import PhotoError
from pixrec_core.data.retrying import is_transient, retry_after
from pixrec_core.settings import ImageSettings

MAX_REDIRECTS: Final = 5
CHUNK_BYTES: Final = 65_536
HEADERS: Final = {"User-Agent": f"PixRec/{__version__}", "Accept": "image/*", "Accept-Encoding": "identity"}
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class FetchError(PhotoError):
    """A URL gave no photo.

    Attributes:
        reason: a few words, the same for all failures of one kind.
        transient: whether another try may succeed.
        wait_s: seconds that the server asked to wait before it; None if it did not ask.
    """

    def __init__(self, reason: str, *, transient: bool = False, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transient = transient
        self.wait_s = wait_s


class Fetcher:
    """Fetches one photo after another over connections that stay open. Each thread needs its own fetcher."""

    def __init__(self, settings: ImageSettings) -> None:
        self._settings = settings
        self._guard = Guard(settings)
        self._pools = GuardedPools(self._guard, ca_certs=certifi.where())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._pools.clear()

    def get(self, url: str) -> bytes:
        """The body of a URL, after at most `MAX_REDIRECTS` redirects, each of which is checked.

        Raises:
            FetchError: the URL has no body, or exceeds a limit.
        """
        self._guard.deadline = time.monotonic() + self._settings.deadline_s
        try:
            return self._follow(url)
        except (HTTPError, ValueError, TimeoutError) as error:
            raise self._failure(error) from error

    def _follow(self, url: str) -> bytes:
        for _ in range(1 + MAX_REDIRECTS):
            with closing(self._request(url)) as response:  # an unread body closes its connection
                target = response.get_redirect_location()
                if not target:
                    return self._body(response)
            url = urljoin(url, target.encode("latin-1").decode())  # sent as UTF-8, decoded as Latin-1 by http.client
        raise FetchError("too many redirects")

    def _request(self, url: str) -> BaseHTTPResponse:
        parts = parse_url(url)
        if parts.scheme not in {"http", "https"} or not parts.host:
            raise FetchError("bad url")
        credentials = make_headers(basic_auth=unquote(parts.auth)) if parts.auth else {}
        return self._pools.connection_from_host(parts.host, parts.port, parts.scheme).urlopen(
            "GET",
            parts.request_uri,
            headers=HEADERS | credentials,
            timeout=self._guard.timeout_s(),
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
        limit = self._settings.max_bytes
        body = bytearray()
        if declared.isdecimal() and len(declared) < 20 and int(declared) > limit:
            raise FetchError("too many bytes")
        try:
            for chunk in response.stream(CHUNK_BYTES):
                body += chunk
                if len(body) > limit:
                    raise FetchError("too many bytes")
        except ProtocolError:
            raise FetchError("cut short", transient=True) from None
        return bytes(body)

    def _failure(self, error: Exception) -> FetchError:
        """The reason of a urllib3 exception, so that failures can be counted by kind."""
        if isinstance(error, ValueError):  # raised for URLs only: reading and writing raise urllib3's exceptions
            return FetchError("bad url")
        if time.monotonic() >= self._guard.deadline:
            return FetchError("deadline")
        if isinstance(error, SSLError):
            return FetchError("tls")
        if isinstance(error, NoAnswerError) and not isinstance(error, NewConnectionError):
            return FetchError("timeout", transient=True)
        return FetchError("connection", transient=True)


@dataclass
class Guard:
    """Limits of the connections of one fetcher.

    Attributes:
        settings: timeout in seconds, and which hosts and addresses may be connected to.
        deadline: when the present photo must be complete, on the monotonic clock.
    """

    settings: ImageSettings
    deadline: float = 0.0

    def timeout_s(self) -> float:
        """Seconds to wait for the next bytes.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the photo's deadline has passed")
        return min(self.settings.timeout_s, left)

    def resolve(self, host: str, port: int) -> list[str]:
        """Addresses of a host, all of which may be connected to.

        Raises:
            FetchError: the host is unknown or not allowed, or one of its addresses is not public.
        """
        if not _is_allowed(host, self.settings):
            raise FetchError("host not allowed")
        try:
            answers = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise FetchError("bad url") from None
        except socket.gaierror as error:
            raise FetchError("unknown host", transient=error.errno == socket.EAI_AGAIN) from None
        addresses = [str(answer[4][0]) for answer in answers]
        if not (self.settings.allow_private_hosts or all(map(is_public, addresses))):
            raise FetchError("address not public")
        return addresses


def _is_allowed(host: str, settings: ImageSettings) -> bool:
    """Whether the settings allow requests to a host; `deny_hosts` overrules `allow_hosts`."""
    name = host.strip("[]").rstrip(".").lower()

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return not matches(settings.deny_hosts) and (not settings.allow_hosts or matches(settings.allow_hosts))


def is_public(address: str) -> bool:
    """Whether an IP address, as `getaddrinfo` returns it, belongs to the public internet.

    Private, loopback, link-local, shared, reserved, multicast and unspecified addresses do not, nor do IPv6 addresses
    that embed one of them: mapped (`::ffff:`), 6to4 and NAT64.
    """
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        ip = nat64 or ip.ipv4_mapped or ip.sixtofour or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


class _TimedReader(io.RawIOBase):
    """Reads from a socket with the guard's timeout."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, guard: Guard) -> None:
        self._raw, self._sock, self._guard = raw, sock, guard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._guard.timeout_s())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(self, guard: Guard, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_TimedReader(self.fp.detach(), sock, guard))


class _GuardedHTTP(HTTPConnection):
    def __init__(self, *args: Any, guard: Guard, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = guard
        self.response_class = functools.partial(_TimedResponse, guard)  # type: ignore[assignment]

    def _new_conn(self) -> socket.socket:
        """Connect to a checked address: the first, in the resolver's order, that accepts."""
        name = self._dns_host
        *others, last = self._guard.resolve(name, self.port)
        for address in others:
            try:
                return self._connect_to(address, name)
            except ConnectTimeoutError:  # refused, unreachable or silent
                continue
        return self._connect_to(last, name)

    def _connect_to(self, address: str, name: str) -> socket.socket:
        self._dns_host = address
        self.timeout = self._guard.timeout_s()
        try:
            connected = super()._new_conn()
        finally:
            self._dns_host = name  # certificates and the Host header need the name
        connected.settimeout(self._guard.timeout_s())  # of the whole TLS handshake
        return connected


class _GuardedHTTPS(_GuardedHTTP, HTTPSConnection):
    pass


class GuardedPools(PoolManager):
    """Pools of guarded connections, kept alive between requests."""

    def __init__(self, guard: Guard, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._guard = guard

    def _new_pool(self, scheme: str, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        pool = super()._new_pool(scheme, *args, **kwargs)
        connection = _GuardedHTTPS if scheme == "https" else _GuardedHTTP
        pool.ConnectionCls = functools.partial(connection, guard=self._guard)  # type: ignore[assignment]
        return pool
