import gzip
import json
import logging
import socket
from typing import ClassVar

import pytest

from pixrec_core.data import fetching
from pixrec_core.data.fetching import MAX_REDIRECTS, Fetcher, FetchError
from pixrec_core.data.retrying import MAX_WAIT_S
from pixrec_core.errors import SettingsError
from pixrec_core.settings import ImageSettings, load_settings
from tests.core.data.fake_resolver import resolves
from tests.core.data.hostile_server import hostile_server, raw, sends, trickles, waits

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
BROTLI = b"\x0b\x02\x80photo\x03"  # "photo", packed by brotli 1.2


@pytest.fixture
def server():
    with hostile_server() as running:
        yield running


@pytest.fixture
def fetch(server):
    """Fetch with settings that a test names; private addresses are allowed unless the test forbids them."""

    def fetch(url, **settings):
        settings = {"timeout_s": 5, "deadline_s": 10, "allow_private_hosts": True, **settings}
        with Fetcher(ImageSettings(**settings)) as fetcher:
            return fetcher.get(url)

    return fetch


def failure(fetch, url, **settings):
    with pytest.raises(FetchError) as caught:
        fetch(url, **settings)
    return caught.value


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/a+b,c.jpg", "/a+b,c.jpg"),
        ("/a b.jpg", "/a%20b.jpg"),
        ("/41%2Bx.jpg?v=1,2", "/41%2Bx.jpg?v=1,2"),
        ("/é.jpg", "/%C3%A9.jpg"),
        ("/100%.jpg", "/100%25.jpg"),
    ],
)
def test_urls_of_real_catalogues(server, fetch, path, asked):
    server.answers[asked] = sends(b"photo")
    assert fetch(server.url(path)) == b"photo"


def test_a_connection_is_kept_and_shared_by_many_photos(server):
    ports = set()

    def answer(handler):
        ports.add(handler.client_address[1])
        sends(b"photo")(handler)

    with Fetcher(ImageSettings(allow_private_hosts=True)) as fetcher:
        for number in range(5):
            fetcher.get(server.url(f"/{number}", answer))
    assert len(ports) == 1


@pytest.mark.parametrize("code", [400, 401, 403, 404, 410, 204, 304])
def test_permanent_errors_are_not_retried(server, fetch, code):
    error = failure(fetch, server.url("/a", sends(b"", code)))
    assert (error.reason, error.transient, error.wait_s) == (f"http {code}", False, None)


@pytest.mark.parametrize("code", [408, 425, 429, 500, 502, 503, 504])
def test_transient_errors_can_be_retried(server, fetch, code):
    error = failure(fetch, server.url("/a", sends(b"", code)))
    assert (error.reason, error.transient) == (f"http {code}", True)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("7", 7),
        (" 7 ", 7),
        ("86400", MAX_WAIT_S),
        ("Fri, 01 Jan 2100 00:00:00 GMT", MAX_WAIT_S),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("soon", None),
        ("-5", None),
        ("9" * 5000, None),
    ],
)
def test_retry_after_is_read_and_bounded(server, fetch, header, wait_s):
    assert failure(fetch, server.url("/a", sends(b"", 429, Retry_After=header))).wait_s == wait_s


class TestLimits:
    def test_a_silent_server(self, server, fetch):
        error = failure(fetch, server.url("/a", waits()), timeout_s=0.2)
        assert (error.reason, error.transient) == ("timeout", True)

    def test_a_body_that_stops(self, server, fetch):
        answer = waits(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")
        error = failure(fetch, server.url("/a", answer), timeout_s=0.2)
        assert (error.reason, error.transient) == ("timeout", True)

    @pytest.mark.parametrize(
        "start",
        [
            b"HTTP/1.1 200 ",
            b"HTTP/1.1 200 OK\r\nX-Long: ",
            b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: ",
            b"HTTP/1.1 302 Found\r\nLocation: /b\r\nX: ",
        ],
        ids=["status line", "headers", "body", "trailer", "redirect"],
    )
    def test_a_slow_body_is_aborted_at_the_deadline(self, server, fetch, start):
        error = failure(fetch, server.url("/a", trickles(start, every_s=0.02, then=b"0")), timeout_s=5, deadline_s=0.4)
        assert (error.reason, error.transient) == ("deadline", False)

    def test_the_body_of_a_redirect_is_not_read(self, server, fetch):
        endless = trickles(b"HTTP/1.1 302 Found\r\nLocation: /b\r\n\r\n", every_s=0.05, then=b"x" * 1000)
        server.url("/b", sends(b"photo"))
        assert fetch(server.url("/a", endless)) == b"photo"

    def test_a_body_with_a_too_large_length_is_not_read(self, server, fetch):
        answer = waits(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n")
        assert failure(fetch, server.url("/a", answer), max_bytes=1000).reason == "too many bytes"

    def test_a_body_without_a_length_is_counted(self, server, fetch):
        answer = raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 5000)
        assert failure(fetch, server.url("/a", answer), max_bytes=4999).reason == "too many bytes"
        assert len(fetch(server.url("/a", answer), max_bytes=5000)) == 5000

    def test_a_gzip_bomb_is_counted_while_it_is_unpacked(self, server, fetch):
        answer = sends(gzip.compress(b"0" * 3_000_000), Content_Encoding="gzip")
        assert failure(fetch, server.url("/a", answer), max_bytes=1_000_000).reason == "too many bytes"

    def test_a_body_shorter_than_its_length(self, server, fetch):
        answer = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nabc")
        error = failure(fetch, server.url("/a", answer))
        assert (error.reason, error.transient) == ("cut short", True)

    def test_a_body_longer_than_its_length_is_truncated(self, server, fetch):
        assert fetch(server.url("/a", raw(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef"))) == b"abc"

    @pytest.mark.parametrize(
        "answer",
        [
            b"",
            b"\x00\xff" * 50,
            b"HTTP/1.1 OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nX: " + b"x" * 400_000,
            b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 60_000 + b"\r\n",
            *(
                CHUNKED + size + b"\r\nabc\r\n0\r\n\r\n"
                for size in (b"ZZ", b"-1", b"-3", b"f" * 15, b"f" * 99, b"0" * 99)
            ),
            CHUNKED + b"3\r\nabcdef\r\n0\r\n\r\n",
            CHUNKED + b"3\r\nabc\r\n",
        ],
    )
    def test_faults_of_the_server_are_retried(self, server, fetch, answer):
        error = failure(fetch, server.url("/a", raw(answer)))
        assert (error.reason in {"connection", "cut short"}, error.transient) == (True, True)

    @pytest.mark.parametrize(
        "answer",
        [
            CHUNKED + b"3\r\npho\r\n2;name=value\r\nto\r\n0\r\nTrailer: x\r\nOther: y\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\n" + CHUNKED + b"5\r\nphoto\r\n0\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nphoto",
            b"HTTP/1.0 200 OK\r\n\r\nphoto",
            b"HTTP/1.1 200 OK\r\nHTTP/x: y\r\nContent-Length: 5\r\n\r\nphoto",
        ],
        ids=["trailers", "100 Continue", "103 Early Hints", "HTTP/1.0", "a header like a status line"],
    )
    def test_rare_forms_of_answers(self, server, fetch, answer):
        assert fetch(server.url("/a", raw(answer))) == b"photo"

    @pytest.mark.parametrize(("coding", "pack"), [("gzip", gzip.compress), ("br", lambda _: BROTLI)])
    def test_packed_answers_are_unpacked(self, server, fetch, coding, pack):
        assert fetch(server.url("/a", sends(pack(b"photo"), Content_Encoding=coding))) == b"photo"

    def test_a_closed_port(self, fetch):
        with socket.socket() as idle:  # bound and not listening: the port is nobody else's
            idle.bind(("127.0.0.1", 0))
            host = f"127.0.0.1:{idle.getsockname()[1]}"
            error = failure(fetch, f"http://{host}/a")
        assert (error.reason, error.transient) == ("connection", True)


class TestAddresses:
    @pytest.mark.parametrize(
        "host",
        [
            "127.0.0.1",
            "localhost",
            "127.1",
            "2130706433",
            "0x7f.1",
            "0.0.0.0",
            "[::1]",
            "[::ffff:127.0.0.1]",
            "10.0.0.1",
            "169.254.169.254",
            "192.168.0.1",
            "user:pass@127.0.0.1",
            "[fe80::1]",
            "[64:ff9b::7f00:1]",
        ],
    )
    def test_private_addresses_are_rejected_in_any_notation(self, server, fetch, host):
        error = failure(fetch, f"http://{host}:{server.server_port}/a", allow_private_hosts=False)
        assert error.reason in {"address not public", "unknown host"}  # a machine without IPv6 cannot resolve some
        assert not server.hits

    @pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1"])
    def test_a_denied_address_is_denied_in_any_notation(self, server, fetch, host):
        error = failure(fetch, f"http://{host}:{server.server_port}/a", deny_hosts=["127.0.0.1"])
        assert error.reason == "host not allowed"
        assert not server.hits

    def test_a_setting_allows_private_addresses(self, server, fetch):
        assert fetch(server.url("/a", sends(b"photo"))) == b"photo"

    def test_a_redirect_is_checked_like_a_url(self, server, fetch, monkeypatch):
        monkeypatch.setattr("pixrec_core.data.fetching.is_public", lambda ip: ip == "127.0.0.1")
        url = server.url("/a", sends(b"", 302, Location=f"http://127.0.0.2:{server.server_port}/secret"))
        assert failure(fetch, url, allow_private_hosts=False).reason == "address not public"
        assert dict(server.hits) == {"/a": 1}

    def test_a_name_that_changes_its_address_does_not_reach_a_private_one(self, server, fetch, monkeypatch):
        """DNS rebinding: the name is public when it is first resolved, and loopback later."""
        answers = [["192.0.2.1"], ["127.0.0.1"], ["192.0.2.1", "127.0.0.1"]]
        resolves(monkeypatch, {"rebind.test": lambda: answers.pop(0)})
        monkeypatch.setattr(fetching, "is_public", lambda ip: ip == "192.0.2.1")
        monkeypatch.setattr(socket, "getaddrinfo", None)  # no name is resolved for a check beforehand
        url = f"http://rebind.test:{server.server_port}/a"
        with Fetcher(ImageSettings(timeout_s=0.3, deadline_s=2)) as fetcher:
            reasons = [failure(fetcher.get, url).reason for _ in range(3)]
        assert reasons[0] in {"timeout", "connection"}
        assert reasons[1] == "address not public"
        assert not answers
        assert not server.hits

    def test_of_several_addresses_only_public_ones_are_connected_to(self, server, fetch, monkeypatch):
        resolves(monkeypatch, {"two.test": ["127.0.0.2", "127.0.0.1"]})
        monkeypatch.setattr(fetching, "is_public", lambda ip: ip == "127.0.0.1")
        connected = []
        server.url("/a", lambda handler: (connected.append(handler.request.getsockname()[0]), sends(b"photo")(handler)))
        assert fetch(f"http://two.test:{server.server_port}/a", allow_private_hosts=False) == b"photo"
        assert connected == ["127.0.0.1"]

    def test_the_next_address_is_tried_if_the_first_does_not_answer(self, server, fetch, monkeypatch):
        resolves(monkeypatch, {"two.test": ["127.0.0.2", "127.0.0.1"]})
        server.url("/a", sends(b"photo"))
        assert fetch(f"http://two.test:{server.server_port}/a") == b"photo"

    def test_the_host_header_keeps_the_name(self, server, fetch):
        named = []
        server.url("/a", lambda handler: (named.append(handler.headers["Host"]), sends(b"")(handler)))
        fetch(f"http://localhost:{server.server_port}/a")
        assert named == [f"localhost:{server.server_port}"]

    def test_proxies_of_the_environment_are_ignored(self, server, fetch, monkeypatch):
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
        monkeypatch.setenv("all_proxy", "http://127.0.0.1:9")
        assert fetch(server.url("/a", sends(b"photo"))) == b"photo"


class TestUrls:
    @pytest.mark.parametrize(
        "url",
        [
            "",
            " ",
            "photo.jpg",
            "/photo.jpg",
            "//host/photo.jpg",
            "ftp://host/a.jpg",
            "file:///etc/passwd",
            "http://",
            "http:///a.jpg",
            "data:image/png;base64,AAAA",
            "gopher://host/",
            "http://[::1/a.jpg",
            "http://host:99999/a",
            "http://host:port/a.jpg",
            "http://.example/",
            "http://" + "a" * 64 + ".example/",
            "javascript:alert(1)",
            pytest.param("http://127.0.0.1/" + "a" * 9_000_000, id="too long for libcurl"),
        ],
    )
    def test_invalid_urls(self, fetch, url):
        error = failure(fetch, url, allow_private_hosts=False)
        assert (error.reason, error.transient) == ("bad url", False)

    def test_an_unknown_host(self, fetch):
        assert failure(fetch, "http://no-such-host.invalid/a.jpg").reason == "unknown host"

    @pytest.mark.parametrize("target", ["ftp://host/a", "file:///etc/passwd", "http://[::1/a", "http://host:99999/"])
    def test_a_redirect_to_an_invalid_url(self, server, fetch, target):
        assert failure(fetch, server.url("/a", sends(b"", 302, Location=target))).reason == "bad url"

    @pytest.mark.parametrize("hops", [1, MAX_REDIRECTS])
    def test_redirects_are_followed(self, server, fetch, hops):
        for hop in range(hops):
            server.url(f"/{hop}", sends(b"moved", 302, Location=str(hop + 1)))
        server.url(f"/{hops}", sends(b"photo"))
        assert fetch(server.url("/0")) == b"photo"

    def test_endless_redirects(self, server, fetch):
        assert failure(fetch, server.url("/a", sends(b"", 301, Location="/a"))).reason == "too many redirects"
        assert server.hits["/a"] == 1 + MAX_REDIRECTS


class TestPrivacy:
    def test_the_log_contains_no_secrets(self, server, fetch, caplog):
        caplog.set_level(logging.INFO)
        url = server.url("/a?token=sesame", sends(b"", 503)).replace("://", "://user:sesame@")
        error = failure(fetch, url)
        assert "sesame" not in caplog.text + str(error)

    def test_passwords_of_netrc_are_not_sent(self, server, fetch, monkeypatch, tmp_path):
        (tmp_path / "netrc").write_text("default login user password sesame\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        seen = []

        def answer(handler):
            seen.append(handler.headers["Authorization"])
            sends(b"photo")(handler)

        fetch(server.url("/a", answer))
        assert seen == [None]

    def test_cookies_are_not_kept(self, server):
        seen = []

        def answer(handler):
            seen.append(handler.headers["Cookie"])
            sends(b"", Set_Cookie="id=1")(handler)

        url = server.url("/a", answer)
        with Fetcher(ImageSettings(allow_private_hosts=True)) as fetcher:
            fetcher.get(url)
            fetcher.get(url)
        assert seen == [None, None]


class TestHeaders:
    HEADERS: ClassVar = {
        "*": {"User-Agent": "shop", "X-All": "1"},
        "127.0.0.1": {"authorization": "sesame", "x-all": "2"},
        "other.test": {"Cookie": "sesame"},
    }

    def test_headers_go_to_matching_hosts_only(self, server, fetch, monkeypatch):
        resolves(monkeypatch, {"other.test": ["127.0.0.1"], "third.test": ["127.0.0.1"]})
        seen = {}

        def answer(then):
            return lambda handler: (seen.update({handler.path: handler.headers}), then(handler))

        elsewhere = f"http://third.test:{server.server_port}/b"
        server.url("/b", answer(sends(b"photo")))
        url = server.url("/a", answer(sends(b"", 302, Location=elsewhere)))
        assert fetch(url, headers=self.HEADERS) == b"photo"
        names = ("User-Agent", "X-All", "Authorization", "Cookie")
        assert [seen["/a"][name] for name in names] == ["shop", "2", "sesame", None]
        assert [seen["/b"][name] for name in names] == ["shop", "1", None, None]

    @pytest.mark.parametrize(
        ("credentials", "sent"),
        [("user:pass", "Basic dXNlcjpwYXNz"), ("%E2%82%AC:x", "Basic 4oKsOng=")],  # UTF-8: RFC 7617, section 2.1
    )
    def test_credentials_of_the_url_take_precedence(self, server, fetch, credentials, sent):
        seen = []
        url = server.url("/a", lambda handler: (seen.append(handler.headers["Authorization"]), sends(b"")(handler)))
        fetch(url.replace("://", f"://{credentials}@"), headers=self.HEADERS)
        assert seen == [sent]

    @pytest.mark.parametrize(
        "headers",
        [
            {"*": {"Cookie": "sesame\r\nHost: x"}},
            {"*": {"Coo kie": "sesame"}},
            {"a/b": {"Cookie": "sesame"}},
            {"*": ["sesame"]},
            ["sesame"],
            {"*": {"Cookie": ["sesame"]}},
        ],
    )
    def test_errors_do_not_contain_values(self, tmp_path, monkeypatch, headers):
        (tmp_path / "pixrec.toml").write_text('[datasets.shop.source]\nkind = "sample"\n')
        monkeypatch.setenv("PIXREC_CONFIG", str(tmp_path / "pixrec.toml"))
        monkeypatch.setenv("PIXREC_IMAGES__HEADERS", json.dumps(headers))
        with pytest.raises(SettingsError, match="headers") as caught:
            load_settings()
        assert "sesame" not in str(caught.value)
