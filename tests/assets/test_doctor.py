"""`pixrec doctor` finds each fault where it is, names the mend, and asks the network only for what a run would."""

import functools
import http.server
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import polars as pl
import pytest

from pixrec_assets.doctor import network, places
from pixrec_core.schemas import ITEM_SCHEMA
from pixrec_core.settings import load_settings
from pixrec_core.stages import Work


@pytest.fixture
def doctor(pixrec):
    """Run it: exit code, and subject -> (level, what was told with its mend)."""

    def call() -> tuple[int, dict[str, tuple[str, str]]]:
        code, out, err = pixrec("doctor")
        assert "Traceback" not in out + err
        lines = re.findall(r"^(ok|warning|fault) +([^:]+): (.*(?:\n +.*)*)", out, re.MULTILINE)
        return code, {subject: (level, told) for level, subject, told in lines}

    return call


def write(text: str) -> None:
    Path("pixrec.toml").write_text(text)


def test_all_is_well_without_a_network(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", None)
    code, told = doctor()
    assert code == 0
    assert told.keys() == {
        *("python", "machine", "torch", "settings", "source sample", "data_dir", "DAGSTER_HOME", "dagster")
    }
    assert {told[name][0] for name in ("python", "settings", "source sample", "data_dir")} == {"ok"}
    assert told["dagster"][0] == "warning", "an instance without dagster.yaml has pools that need a daemon"
    assert "granularity: op" in told["dagster"][1]


def test_without_dagster_home_the_one_that_pixrec_takes_is_named(doctor, settings):
    code, told = doctor()
    assert code == 0
    assert told["DAGSTER_HOME"][0] == "warning"
    assert f"export DAGSTER_HOME={settings.data_dir / '.dagster'}" in told["DAGSTER_HOME"][1]
    assert told["dagster"][0] == "ok"


def test_a_wrong_setting_is_a_fault_with_file_and_key(doctor, project):
    write("[training]\nepochs = 0\n")
    code, told = doctor()
    level, text = told["settings"]
    assert (code, level) == (1, "fault")
    assert str(project / "pixrec.toml") in text
    assert "training.epochs: Input should be greater than or equal to 1 (received 0)" in text


def test_a_source_that_is_not_there(doctor):
    write('[datasets.books.source]\nkind = "amazon_2023"\nfolder = "nowhere"\n')
    code, told = doctor()
    assert (code, told["source books"][0]) == (1, "fault")
    assert "nowhere is no folder; mend `folder`" in told["source books"][1]


@pytest.mark.parametrize("home", ["relative", "/proc/nowhere"])
def test_a_dagster_home_that_cannot_serve(doctor, monkeypatch, home):
    monkeypatch.setenv("DAGSTER_HOME", home)
    code, told = doctor()
    assert (code, told["DAGSTER_HOME"][0]) == (1, "fault")
    assert "export DAGSTER_HOME=$PWD" in told["DAGSTER_HOME"][1]


def test_an_instance_that_does_not_open(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("storage: {sqlyte: {}}\n")
    code, told = doctor()
    assert (code, told["dagster"][0]) == (1, "fault")
    assert "mend dagster.yaml" in told["dagster"][1]


def test_a_folder_that_cannot_be_written_to(doctor):
    write('data_dir = "/proc/nowhere"\n')
    code, told = doctor()
    assert (code, told["data_dir"][0]) == (1, "fault")
    assert "/proc cannot be written to" in told["data_dir"][1]


@pytest.mark.parametrize(("limit", "level", "code"), [("ROOMY", "warning", 0), ("LEAST_FREE", "fault", 1)])
def test_a_disk_with_little_room(doctor, monkeypatch, limit, level, code):
    monkeypatch.setattr(places, limit, 2**60)
    got, told = doctor()
    assert (got, told["data_dir"][0]) == (code, level)
    assert "make room" in told["data_dir"][1]


def test_a_cluster_of_ray_that_does_not_answer(doctor):
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        write(f'[engine]\nkind = "ray"\naddress = "{address}"\n')
        assert doctor()[1]["engine"] == ("ok", f"ray at {address} answers")
    code, told = doctor()
    assert (code, told["engine"][0]) == (1, "fault")
    assert f"ray at {address} does not answer" in told["engine"][1]
    assert "mend `address` in [engine]" in told["engine"][1]
    write('[engine]\nkind = "ray"\n')
    assert doctor()[1]["engine"] == ("ok", "ray, on this machine")


def test_an_engine_that_is_not_installed(doctor, monkeypatch):
    write('[engine]\nkind = "ray"\n')
    monkeypatch.setitem(sys.modules, "ray", None)
    code, told = doctor()
    assert (code, told["engine"][0]) == (1, "fault")
    assert "needs Ray, which is not installed" in told["engine"][1]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A host with a reviews file and a photo."""
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "reviews.jsonl").write_text("{}\n")
    (folder / "photo.jpg").write_text("bytes\n")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as host:
        thread = Thread(target=host.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()
        thread.join()


def test_raw_files_are_asked_for(doctor, server):
    source = '[datasets.books.source]\nkind = "amazon_2023"\nreviews_url = "{}"\nmetadata_url = "{}"\n'
    write(source.format(f"{server}/reviews.jsonl?key=secret", f"{server}/reviews.jsonl"))
    code, told = doctor()
    assert (code, told["network books"]) == (0, ("ok", f"{server}/reviews.jsonl answers"))
    write(source.format(f"{server}/reviews.jsonl", f"{server}/gone.jsonl"))
    code, told = doctor()
    assert code == 1
    assert told["network books"][1].startswith(f"{server}/gone.jsonl answers HTTP 404")


def test_a_host_that_cannot_be_reached(doctor, monkeypatch):
    monkeypatch.setattr(network, "TIMEOUT_S", 0.5)
    with socket.socket() as closed:  # bound, and nobody listens
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/r.jsonl"
        write(f'[datasets.books.source]\nkind = "amazon_2023"\nreviews_url = "{url}"\nmetadata_url = "{url}"\n')
        code, told = doctor()
    assert (code, told["network books"][0]) == (1, "fault")
    assert "cannot be reached: ConnectionError" in told["network books"][1]


def test_the_host_of_most_photos_is_asked_by_the_rules_for_photos(doctor, server, settings):
    path = Work(settings, "sample").paths.items
    path.parent.mkdir(parents=True)
    urls = ["images/a.jpg"] * 3 + [f"{server}/photo.jpg"] * 2 + ["http://other.example/b.jpg"]
    rows = [{"item": str(n), "image_url": url} for n, url in enumerate(urls)]
    pl.DataFrame(rows, schema=ITEM_SCHEMA).write_parquet(path)
    code, told = doctor()
    assert (code, told["network sample"][0]) == (0, "warning")
    assert "does not come: address not public" in told["network sample"][1]
    write("[images]\nallow_private_hosts = true\n")
    assert load_settings().images.allow_private_hosts
    assert doctor()[1]["network sample"] == ("ok", f"the photo {server}/photo.jpg comes")
