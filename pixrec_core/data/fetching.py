"""Safe HTTP GET of URLs from strangers: limits of address, size and time.

A catalogue may name `http://169.254.169.254/`, and the downloading machine is inside somebody's network. So every
address is checked where its socket is created, after the name was resolved: a check before the request would leave
time for the name to change its address (DNS rebinding).

libcurl, by pycurl, does the rest: it limits the time of the whole transfer and not of single reads, keeps connections,
unpacks gzip and brotli, and runs outside Python's lock. A photo takes 0.10 ms CPU with it, and 0.34 ms with urllib3.

Environment proxies, `.netrc` and cookies are not used: behind a proxy the address could not be checked, and a
catalogue's URL has no claim to credentials except those in it.
"""

import ipaddress
import math
import re
import socket
import threading
import time
from base64 import b64encode
from contextlib import AbstractContextManager
from fnmatch import fnmatchcase
from http import HTTPStatus
from typing import Any, Final, NamedTuple
from urllib.parse import unquote, urljoin

import certifi
import pycurl
from urllib3.exceptions import LocationParseError
from urllib3.util import parse_url

from pixrec_core import __version__
from pixrec_core.data.decoding import StoppedError
from pixrec_core.data.photos import PhotoError
from pixrec_core.data.retrying import is_transient, retry_after
from pixrec_core.settings import ImageSettings

MAX_REDIRECTS: Final = 5
MAX_URL: Final = 100_000  # characters; libcurl refuses 8 million, and parsing as many would take seconds
HEADERS: Final = {"User-Agent": f"PixRec/{__version__}", "Accept": "image/*"}
NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

#: Addresses at which clouds tell a machine its credentials, besides the link-local 169.254.0.0/16 and fe80::/10.
METADATA: Final = {
    ipaddress.ip_address(address)
    for address in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192")
}

#: Networks that are not public, though `is_global` says so, the second one in some versions of Python.
_NOT_PUBLIC_NETWORKS: Final = tuple(map(ipaddress.ip_network, ("fec0::/10", "192.0.0.0/24")))

#: Reasons of addresses and hosts that the settings exclude.
NOT_PUBLIC: Final = "address not public"
NOT_ALLOWED: Final = "host not allowed"

_STATUS_LINE: Final = re.compile(rb"HTTP/\d(?:\.\d)? (\d{3})(?:\s|$)")

_REASONS: Final = {
    pycurl.E_URL_MALFORMAT: "bad url",
    pycurl.E_FILESIZE_EXCEEDED: "too many bytes",
    pycurl.E_PEER_FAILED_VERIFICATION: "tls",
    pycurl.E_SSL_CONNECT_ERROR: "tls",
}


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


class _Target(NamedTuple):
    """A parsed URL: `url` is in the form that curl reads as this host and no other."""

    url: str
    host: str
    credentials: dict[str, str]


class Fetcher(AbstractContextManager["Fetcher"]):
    """Fetches one photo after another over connections that stay open. Each thread needs its own fetcher."""

    def __init__(self, settings: ImageSettings, stop: threading.Event | None = None) -> None:
        """Open no connection yet; `get` raises `StoppedError` within about a second after `stop` is set."""
        self._settings = settings
        self._stop = stop or threading.Event()
        self._refused: str | None = None
        self._opened: list[socket.socket] = []
        self._curl = curl = pycurl.Curl()
        for option, value in {
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.PATH_AS_IS: 1,
            pycurl.ACCEPT_ENCODING: "",  # all that this libcurl unpacks
            pycurl.PROXY: "",  # no proxy of the environment either
            pycurl.CAINFO: certifi.where(),
            pycurl.NOSIGNAL: 1,  # signals belong to the main thread
            pycurl.MAXFILESIZE_LARGE: settings.max_bytes,
            pycurl.CONNECTTIMEOUT_MS: math.ceil(settings.timeout_s * 1000),
            pycurl.LOW_SPEED_LIMIT: 1,
            pycurl.LOW_SPEED_TIME: math.ceil(settings.timeout_s),
            pycurl.OPENSOCKETFUNCTION: self._open_socket,
            pycurl.NOPROGRESS: 0,
            pycurl.XFERINFOFUNCTION: lambda *_: self._stop.is_set(),
        }.items():
            curl.setopt(option, value)

    def __exit__(self, *_: object) -> None:
        self._curl.close()

    def get(self, url: str) -> bytes:
        """The body of a URL, after at most `MAX_REDIRECTS` redirects, each of which is checked.

        Raises:
            FetchError: the URL has no body, or exceeds a limit.
            StoppedError: `stop` was set.
        """
        deadline = time.monotonic() + self._settings.deadline_s
        for _ in range(1 + MAX_REDIRECTS):
            answer = self._request(_parse(url), deadline)
            if answer.status == HTTPStatus.OK:
                return bytes(answer.body)
            if not answer.is_redirect:
                wait_s = retry_after(answer.header("Retry-After"))
                raise FetchError(f"http {answer.status}", transient=is_transient(answer.status), wait_s=wait_s)
            url = _redirected(url, answer.header("Location") or "")
        raise FetchError("too many redirects")

    def _request(self, target: _Target, deadline: float) -> "_Answer":
        """The answer to one request; its body is complete if its status is 200."""
        if not _is_allowed(target.host, self._settings):
            raise FetchError(NOT_ALLOWED)
        left = deadline - time.monotonic()
        if left <= 0:
            raise FetchError("deadline")
        headers = HEADERS | _headers_for(target.host, self._settings) | target.credentials
        curl, answer = self._curl, _Answer(self._settings.max_bytes)
        self._refused = None
        curl.setopt(pycurl.URL, target.url)
        curl.setopt(pycurl.HTTPHEADER, [f"{name}: {value}" for name, value in headers.items()])
        curl.setopt(pycurl.TIMEOUT_MS, math.ceil(left * 1000))
        curl.setopt(pycurl.HEADERFUNCTION, answer.read_header)
        curl.setopt(pycurl.WRITEFUNCTION, answer.read_body)
        try:
            curl.perform()
        except pycurl.error as error:
            if not answer.has_unread_body:
                raise self._failure(error.args[0], target, answer, deadline) from None
        finally:
            while self._opened:
                self._opened.pop().close()  # libcurl has its copy
        return answer

    def _failure(self, code: int, target: _Target, answer: "_Answer", deadline: float) -> FetchError:
        """The reason of an error of libcurl, so that failures can be counted by kind."""
        if code == pycurl.E_ABORTED_BY_CALLBACK:
            raise StoppedError
        if self._refused:
            return FetchError(self._refused)
        if answer.is_too_long:
            return FetchError("too many bytes")
        if code == pycurl.E_OPERATION_TIMEDOUT:
            is_deadline = time.monotonic() >= deadline
            return FetchError("deadline") if is_deadline else FetchError("timeout", transient=True)
        if code == pycurl.E_COULDNT_RESOLVE_HOST:
            return FetchError("unknown host", transient=_may_be_known_later(target.host))
        if code in _REASONS:
            return FetchError(_REASONS[code])
        return FetchError("cut short" if answer.status else "connection", transient=True)

    def _open_socket(self, _purpose: int, address: Any) -> socket.socket | int:
        """A socket for an address that curl wants to connect to, unless the settings exclude the address."""
        family, kind, protocol, (ip, *_) = address
        name = ip.decode() if isinstance(ip, bytes) else ip
        is_denied = _is_denied(name, self._settings)
        if not is_denied and may_connect(name, self._settings):
            opened = socket.socket(family, kind, protocol)
            self._opened.append(opened)
            return opened
        self._refused = NOT_ALLOWED if is_denied else NOT_PUBLIC
        bad: int = pycurl.SOCKET_BAD
        return bad


class _Answer:
    """An answer while it arrives."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._headers: list[bytes] = []
        self.body = bytearray()
        self.is_too_long = False
        self.has_unread_body = False  # libcurl reports it as an error

    def read_header(self, line: bytes) -> None:
        if _STATUS_LINE.match(line):  # a `100 Continue` has come before
            self._headers.clear()
        self._headers.append(line)

    def read_body(self, part: bytes) -> int:
        """Keep a part of the body; 0 aborts the transfer."""
        if self.status != HTTPStatus.OK:
            self.has_unread_body = True
            return 0
        self.body += part
        self.is_too_long = len(self.body) > self._max_bytes
        return 0 if self.is_too_long else len(part)

    @property
    def status(self) -> int:
        """The HTTP status; 0 if no header has arrived."""
        found = _STATUS_LINE.match(self._headers[0]) if self._headers else None
        return int(found[1]) if found else 0

    @property
    def is_redirect(self) -> bool:
        return self.status in {301, 302, 303, 307, 308} and bool(self.header("Location"))

    def header(self, name: str) -> str | None:
        """A header's value, read as UTF-8."""
        for line in self._headers[1:]:
            found, _, value = line.decode(errors="replace").partition(":")
            if found.strip().lower() == name.lower():
                return value.strip()
        return None


def _parse(url: str) -> _Target:
    if len(url) > MAX_URL:
        raise FetchError("bad url")
    try:
        parts = parse_url(url)
        if parts.scheme not in {"http", "https"} or not parts.host:
            raise FetchError("bad url")
        parts.host.strip("[]").encode("idna")  # no label is empty or too long
    except (LocationParseError, UnicodeError):
        raise FetchError("bad url") from None
    credentials = {}
    if parts.auth:  # in UTF-8 (RFC 7617): not every name has an encoding in Latin-1, which urllib3 takes
        credentials["Authorization"] = f"Basic {b64encode(unquote(parts.auth).encode()).decode()}"
    plain = parts._replace(auth=None, fragment=None)
    return _Target(plain.url, parts.host, credentials)


def _redirected(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        raise FetchError("bad url") from None


def _may_be_known_later(host: str) -> bool:
    """Whether the resolver failed to answer, and did not answer that the host does not exist."""
    try:
        socket.getaddrinfo(host, None)
    except socket.gaierror as error:
        return error.errno == socket.EAI_AGAIN
    return True


def _matches(name: str, patterns: Any) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _host_name(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()


def _is_allowed(host: str, settings: ImageSettings) -> bool:
    """Whether the settings allow requests to a host; `deny_hosts` overrules `allow_hosts`."""
    name, allowed = _host_name(host), settings.allow_hosts
    return not _matches(name, settings.deny_hosts) and (not allowed or _matches(name, allowed))


def _headers_for(host: str, settings: ImageSettings) -> dict[str, str]:
    """The headers that the settings add for a host; later patterns take precedence."""
    name = _host_name(host)
    found: dict[str, str] = {}
    for pattern, headers in settings.headers.items():
        if fnmatchcase(name, pattern):
            found |= {key.title(): value.get_secret_value() for key, value in headers.items()}
    return found


def _is_denied(address: str, settings: ImageSettings) -> bool:
    """Whether `deny_hosts` has an IP address, which a URL may spell in other ways, such as 127.1."""
    names = {address, str(_embedded(ipaddress.ip_address(address)))}
    return any(_matches(name, settings.deny_hosts) for name in names)


def may_connect(address: str, settings: ImageSettings) -> bool:
    """Whether the settings allow connections to an IP address, as `getaddrinfo` returns it.

    `allow_private_hosts` does not include link-local addresses and those of cloud metadata: a pattern of `allow_hosts`
    that is more than `*` must match such an address itself, and not only a name that resolves to it.
    """
    if is_public(address):
        return True
    ip = _embedded(ipaddress.ip_address(address))
    if not settings.allow_private_hosts:
        return False
    if ip.is_link_local or ip in METADATA:
        return _matches(str(ip), (pattern for pattern in settings.allow_hosts if pattern.strip("*.:")))
    return True


def is_public(address: str) -> bool:
    """Whether an IP address, as `getaddrinfo` returns it, belongs to the public internet.

    Private, loopback, link-local, shared, reserved, multicast, unspecified and metadata addresses do not, nor do IPv6
    addresses that embed one of them: mapped (`::ffff:`), 6to4 and NAT64.
    """
    ip = _embedded(ipaddress.ip_address(address))
    never = (
        ip.is_multicast or ip.is_reserved or ip in METADATA or any(ip in network for network in _NOT_PUBLIC_NETWORKS)
    )
    return ip.is_global and not never


def _embedded(ip: IPAddress) -> IPAddress:
    """The IPv4 address in an IPv6 address; without one, the address itself."""
    if isinstance(ip, ipaddress.IPv6Address):
        nat64 = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        return nat64 or ip.ipv4_mapped or ip.sixtofour or ip
    return ip
