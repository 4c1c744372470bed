import http.client

import pytest

from pixrec_core.data.photo_server import serving


@pytest.fixture
def connection(tmp_path):
    folder = tmp_path / "photos"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a+b, c.jpg").write_bytes(b"photo")
    (folder / "link.txt").symlink_to(tmp_path / "secret.txt")
    (folder / "loop").symlink_to(folder / "loop")
    (tmp_path / "secret.txt").write_text("secret")
    with serving(folder) as host:
        open_connection = http.client.HTTPConnection(host, timeout=5)
        yield open_connection
        open_connection.close()


def ask(connection, path, method="GET"):
    connection.request(method, path)
    response = connection.getresponse()
    return response.status, response.read()


@pytest.mark.parametrize(
    "path", ["/images/a+b,%20c.jpg", "/images/a%2Bb%2C%20c.jpg", "/images/../images/a+b,%20c.jpg?v=2"]
)
def test_a_file_by_any_spelling(connection, path):
    assert ask(connection, path) == (200, b"photo")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/images", "/images/", "/none.jpg", "//secret.txt", "/link.txt", "/loop", "/a%00b", "/" + "a" * 5000),
        *("/../secret.txt", "/%2e%2e/secret.txt", "/images/..%2f..%2fsecret.txt"),
    ],
)
def test_nothing_else(connection, path):
    status, body = ask(connection, path)
    assert status == 404
    assert b"secret" not in body.replace(b"secret.txt", b"")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
def test_read_only(connection, method):
    assert ask(connection, "/images/a+b,%20c.jpg", method)[0] == 501


def test_quiet_and_alive_for_many_requests(connection, capfd):
    for _ in range(20):
        assert ask(connection, "/images/a+b,%20c.jpg")[0] == 200
    assert capfd.readouterr() == ("", "")
