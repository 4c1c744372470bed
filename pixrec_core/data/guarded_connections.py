"""urllib3 connections that check the host and address they connect to and that end at a deadline.

The check stands where the socket is made: the name is resolved once, the answer is checked, and
that very answer is connected to. A check ahead of the request would leave a gap in which the name
can come to mean another address (DNS rebinding).

A socket's timeout bounds one read alone, so a server that sends a byte now and then, in the
headers or in the body, could hold a thread for days. Here every connection, TLS handshake and read
waits no longer than the deadline allows.
"""

import functools
import io
import socket
import time
from dataclasses import dataclass
from fnmatch import fnmatchcase
from http.client import HTTPResponse
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool
from urllib3.exceptions import ConnectTimeoutError
from urllib3.poolmanager import PoolManager

from pixrec_core.data.addresses import is_public
from pixrec_core.settings import ImageSettings


class FetchError(Exception):
    """A URL gave no photo.

    Attributes:
        reason: a few words, the same for all URLs that fail alike.
        transient: whether another try may do better.
        wait_s: seconds that the server asked to be left alone; None where it did not.
    """

    def __init__(self, reason: str, *, transient: bool = False, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.transient = transient
        self.wait_s = wait_s


@dataclass
class Guard:
    """What the connections of one fetcher may do; it fetches one photo at a time.

    Attributes:
        settings: seconds to wait, and which hosts and addresses may be connected to.
        until: when the photo must be complete, on the monotonic clock.
    """

    settings: ImageSettings
    until: float = 0.0

    def patience(self) -> float:
        """Seconds to wait for the next bytes.

        Raises:
            TimeoutError: the deadline has passed.
        """
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError("the photo's deadline has passed")
        return min(self.settings.timeout_s, left)

    def addresses(self, host: str, port: int) -> list[str]:
        """Resolve a host to the addresses that may be connected to.

        Raises:
            FetchError: the host is unknown, not allowed, or leads to an address that is not public.
        """
        if not _allowed(host, self.settings):
            raise FetchError("host not allowed")
        try:
            answers = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except UnicodeError:
            raise FetchError("bad url") from None
        except socket.gaierror as error:
            raise FetchError("unknown host", transient=error.errno == socket.EAI_AGAIN) from None
        found = [str(answer[4][0]) for answer in answers]
        if not (self.settings.allow_private_hosts or all(map(is_public, found))):
            raise FetchError("address not public")
        return found


def _allowed(host: str, settings: ImageSettings) -> bool:
    """Whether the settings' patterns let a host be asked; a denial outweighs a permission."""
    name = host.strip("[]").rstrip(".").lower()

    def among(patterns: tuple[str, ...]) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    return not among(settings.deny_hosts) and (not settings.allow_hosts or among(settings.allow_hosts))


class _TimedReader(io.RawIOBase):
    """Reads from a socket, each time for as long as the guard has patience."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, guard: Guard) -> None:
        self._raw, self._sock, self._guard = raw, sock, guard

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._guard.patience())
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
        """Connect to a checked address, in the resolver's order until one answers."""
        name = self._dns_host
        *others, last = self._guard.addresses(name, self.port)
        for address in others:
            try:
                return self._connect_to(address, name)
            except ConnectTimeoutError:  # refused, unreachable or deaf
                continue
        return self._connect_to(last, name)

    def _connect_to(self, address: str, name: str) -> socket.socket:
        self._dns_host = address
        self.timeout = self._guard.patience()
        try:
            connected = super()._new_conn()
        finally:
            self._dns_host = name  # certificates and the Host header go by the name
        connected.settimeout(self._guard.patience())  # of a whole TLS handshake, however it trickles
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
