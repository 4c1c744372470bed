"""Allowed hosts, and the deadline of connections and TLS handshakes."""

import socket
import ssl
import threading
from contextlib import ExitStack, contextmanager
from itertools import chain, repeat

import pytest
import trustme
from pydantic import ValidationError

from pixrec_core.data.fetching import Fetcher, FetchError
from pixrec_core.settings import ImageSettings
from tests.core.data.fake_resolver import resolves
from tests.core.data.hostile_server import hostile_server, sends, trickles

RECORD = b"\x16\x03\x03\x40\x00"  # the head of a TLS handshake record of 16384 bytes


@pytest.fixture
def server():
    with hostile_server() as running:
        yield running


def get(url, **settings):
    with Fetcher(ImageSettings(**{"timeout_s": 5, "deadline_s": 10, **settings})) as fetcher:
        return fetcher.get(url)


def failure(url, **settings):
    with pytest.raises(FetchError) as caught:
        get(url, **settings)
    return caught.value.reason


class TestHosts:
    @pytest.fixture(autouse=True)
    def names(self, monkeypatch):
        resolves(monkeypatch, {name: ["127.0.0.1"] for name in ("shop.test", "img.shop.test", "evilshop.test")})

    @pytest.mark.parametrize(
        ("host", "policy", "allowed"),
        [
            ("shop.test", {}, True),
            ("img.shop.test", {"allow_hosts": ("*.shop.test",)}, True),
            ("IMG.Shop.Test", {"allow_hosts": ("*.shop.test",)}, True),
            ("shop.test", {"allow_hosts": ("*.shop.test",)}, False),
            ("evilshop.test", {"allow_hosts": ("*.shop.test", "shop.test")}, False),
            ("shop.test", {"allow_hosts": ("*.other.test", "shop.test")}, True),
            ("shop.test", {"deny_hosts": ("img.shop.test",)}, True),
            ("img.shop.test", {"deny_hosts": ("img.shop.test",)}, False),
            ("img.shop.test.", {"deny_hosts": ("img.shop.test",)}, False),
            ("user:pass@img.shop.test", {"deny_hosts": ("img.*",)}, False),
            ("img.shop.test", {"allow_hosts": ("*.shop.test",), "deny_hosts": ("img.*",)}, False),
            ("127.0.0.1", {"deny_hosts": ("127.*",)}, False),
        ],
    )
    def test_patterns(self, server, host, policy, allowed):
        server.url("/a", sends(b"photo"))
        url = f"http://{host}:{server.server_port}/a"
        if allowed:
            assert get(url, allow_private_hosts=True, **policy) == b"photo"
        else:
            assert failure(url, allow_private_hosts=True, **policy) == "host not allowed"
            assert not server.hits

    def test_redirects_are_checked_too(self, server):
        target = f"http://img.shop.test:{server.server_port}/b"
        server.url("/a", sends(b"", 302, Location=target))
        server.url("/b", sends(b"photo"))
        url = f"http://shop.test:{server.server_port}/a"
        assert failure(url, allow_private_hosts=True, allow_hosts=("shop.test",)) == "host not allowed"
        assert dict(server.hits) == {"/a": 1}

    def test_an_allowed_host_must_be_public(self, server):
        assert failure(f"http://shop.test:{server.server_port}/a", allow_hosts=("shop.test",)) == "address not public"

    @pytest.mark.parametrize("pattern", ["", "https://shop.test", "Shop.test", "münchen.test", "shop.test/img", "a b"])
    def test_a_pattern_that_could_never_match_is_an_error(self, pattern):
        with pytest.raises(ValidationError, match="allow_hosts"):
            ImageSettings(allow_hosts=(pattern,))


class TestTls:
    @pytest.fixture
    def authority(self, tmp_path, monkeypatch):
        """A certificate authority that is trusted for the length of a test."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        monkeypatch.setattr("certifi.where", lambda: str(tmp_path / "ca.pem"))
        return authority

    @contextmanager
    def serving(self, authority, name):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(context)
        with hostile_server(context) as server:
            server.url("/a", sends(b"photo"))
            yield server

    def test_a_photo_is_downloaded_over_tls(self, authority, monkeypatch):
        resolves(monkeypatch, {"shop.test": ["127.0.0.1"]})
        with self.serving(authority, "shop.test") as server:
            assert get(f"https://shop.test:{server.server_port}/a", allow_private_hosts=True) == b"photo"

    def test_slow_headers_over_tls_are_aborted_at_the_deadline(self, authority):
        with self.serving(authority, "127.0.0.1") as server:
            server.url("/a", trickles(b"HTTP/1.1 200 OK\r\nX: ", every_s=0.02, then=b"1"))
            assert failure(f"https://{server.host}/a", allow_private_hosts=True, deadline_s=0.5) == "deadline"

    def test_a_certificate_of_another_name_is_rejected(self, authority, monkeypatch):
        resolves(monkeypatch, {"shop.test": ["127.0.0.1"]})
        with self.serving(authority, "other.test") as server:
            assert failure(f"https://shop.test:{server.server_port}/a", allow_private_hosts=True) == "tls"
            assert not server.hits

    def test_a_certificate_of_an_unknown_authority_is_rejected(self):
        with self.serving(trustme.CA(), "127.0.0.1") as server:
            assert failure(f"https://{server.host}/a", allow_private_hosts=True) == "tls"
            assert not server.hits


class TestDeadline:
    def meets_the_deadline(self, url):
        assert failure(url, allow_private_hosts=True, timeout_s=5, deadline_s=0.5) == "deadline"

    def test_a_slow_handshake(self):
        with trickling() as port:
            self.meets_the_deadline(f"https://127.0.0.1:{port}/a")

    def test_a_slow_handshake_after_a_slow_connection(self, monkeypatch):
        resolves(monkeypatch, {"two.test": ["127.0.0.2", "127.0.0.1"]})
        with trickling() as port, deaf("127.0.0.2", port):
            url = f"https://two.test:{port}/a"
            assert failure(url, allow_private_hosts=True, timeout_s=0.4, deadline_s=0.6) in {"deadline", "timeout"}

    def test_many_addresses_that_do_not_answer(self, server, monkeypatch):
        addresses = [f"127.0.0.{n}" for n in range(2, 6)]
        resolves(monkeypatch, {"many.test": addresses})
        with ExitStack() as stack:
            for address in addresses:
                stack.enter_context(deaf(address, server.server_port))
            self.meets_the_deadline(f"http://many.test:{server.server_port}/a")

    def test_the_next_address_is_tried_if_one_does_not_answer(self, server, monkeypatch):
        resolves(monkeypatch, {"two.test": ["127.0.0.2", "127.0.0.1"]})
        server.url("/a", sends(b"photo"))
        with deaf("127.0.0.2", server.server_port):
            url = f"http://two.test:{server.server_port}/a"
            assert get(url, allow_private_hosts=True, timeout_s=0.3) == b"photo"


@contextmanager
def trickling():
    """A port that answers a TLS handshake one byte at a time, without end."""
    ended = threading.Event()

    def trickle():
        try:
            connection, _ = listener.accept()
            with connection:
                for byte in chain(RECORD, repeat(0)):
                    connection.sendall(bytes([byte]))
                    if ended.wait(0.02):
                        return
        except OSError:
            pass  # the client has hung up, as it should

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            ended.set()
            thread.join()


@contextmanager
def deaf(address, port):
    """An address with a full queue of connections, so that new ones get no answer."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex((address, port))
        yield
