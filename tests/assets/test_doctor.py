"""`pixrec doctor` reports each fault with its fix, and contacts only hosts that a run would need."""

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

from pixrec_assets import doctor as checks
from pixrec_core.models.encoders import base
from pixrec_core.schemas import ITEM_SCHEMA
from pixrec_core.settings import load_settings
from pixrec_core.stages import Work


@pytest.fixture
def doctor(pixrec):
    """Run it: exit code, and subject -> (level, text with its fix)."""

    def call() -> tuple[int, dict[str, tuple[str, str]]]:
        code, out, err = pixrec("doctor")
        assert "Traceback" not in out + err
        lines = re.findall(r"^(ok|warning|fault) +([^:]+): (.*(?:\n +.*)*)", out, re.MULTILINE)
        return code, {subject: (level, found) for level, subject, found in lines}

    return call


def write(text: str) -> None:
    Path("pixrec.toml").write_text(text)


def test_nothing_is_wrong_without_a_network(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setattr(socket.socket, "connect", None)
    code, found = doctor()
    assert code == 0
    assert found.keys() == {
        *("python", "machine", "torch", "lightgbm", "settings", "source sample", "data_dir"),
        *("DAGSTER_HOME", "dagster"),
    }
    assert {found[name][0] for name in ("python", "lightgbm", "settings", "source sample", "data_dir")} == {"ok"}
    assert found["dagster"][0] == "warning", "an instance without dagster.yaml has pools that need a daemon"
    assert "granularity: op" in found["dagster"][1]


def test_the_library_of_lightgbm_needs_openmp(doctor, monkeypatch):
    def load(path: str) -> None:
        raise OSError(f"dlopen({path}): Library not loaded: @rpath/libomp.dylib")

    monkeypatch.setattr(checks.ctypes, "CDLL", load)
    code, found = doctor()
    assert (code, found["lightgbm"][0]) == (1, "fault")
    assert re.search(
        r"lib_lightgbm\.\w+\): Library not loaded.*on macOS: `brew install libomp`", found["lightgbm"][1], re.DOTALL
    )


def test_without_dagster_home_the_folder_that_pixrec_uses_is_reported(doctor, settings):
    code, found = doctor()
    assert code == 0
    assert found["DAGSTER_HOME"][0] == "warning"
    assert f"export DAGSTER_HOME={settings.data_dir / '.dagster'}" in found["DAGSTER_HOME"][1]
    assert found["dagster"][0] == "ok"


def test_a_wrong_setting_is_a_fault_with_file_and_key(doctor, project):
    write("[training]\nepochs = 0\n")
    code, found = doctor()
    level, text = found["settings"]
    assert (code, level) == (1, "fault")
    assert str(project / "pixrec.toml") in text
    assert "training.epochs: Input should be greater than or equal to 1 (received 0)" in text


def test_a_missing_source(doctor):
    write('[datasets.books.source]\nkind = "amazon_2023"\nfolder = "nowhere"\n')
    code, found = doctor()
    assert (code, found["source books"][0]) == (1, "fault")
    assert "nowhere is not a folder; correct `folder`" in found["source books"][1]


def refuse(*_: object, **__: object) -> None:
    raise ConnectionRefusedError


def test_the_default_towers_read_no_backbone(doctor):
    write('[datasets.books]\nsource = { kind = "sample" }\nmodel = { backbone = "./nowhere" }\n')
    code, found = doctor()
    assert code == 0
    assert "backbone books" not in found


def test_a_missing_folder_of_an_encoder_is_a_fault(doctor):
    write('[datasets.books]\nsource = { kind = "sample" }\nmodel = { text_encoder = "models/of/nobody" }\n')
    code, found = doctor()
    assert (code, found["text_encoder books"][0]) == (1, "fault")
    assert "'models/of/nobody' is neither" in found["text_encoder books"][1]


def test_an_encoder_needs_its_extra(doctor, monkeypatch):
    monkeypatch.setattr(base, "find_spec", lambda name: None)
    write('[datasets.books]\nsource = { kind = "sample" }\nmodel = { photo_encoder = "cnn" }\n')
    code, found = doctor()
    assert (code, found["settings books"][0]) == (1, "fault")
    assert "pip install 'pixrec[photos]'" in found["settings books"][1]


@pytest.mark.parametrize(
    ("backbone", "level", "text"),
    [
        ("models/whole", "ok", "models/whole"),
        ("models/half", "fault", "models/half lacks *.safetensors, preprocessor_config.json"),
        ("./nowhere", "fault", "is neither a name of PixRec's own, nor a folder, nor a model of the Hugging Face hub"),
        (
            "no/model",
            "fault",
            "model.backbone = 'no/model', revision of the default branch, is no local folder and was ",
        ),
    ],
)
def test_the_backbone_of_each_dataset_is_looked_for(doctor, monkeypatch, project, backbone, level, text):
    for folder, left_out in (("whole", ()), ("half", ("model.safetensors", "preprocessor_config.json"))):
        (project / "models" / folder).mkdir(parents=True)
        for name in ("config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"):
            if name not in left_out:
                (project / "models" / folder / name).touch()
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    model = f'{{ backbone = "{backbone}", item_encoder = "backbone" }}'
    write(f'[datasets.books]\nsource = {{ kind = "sample" }}\nmodel = {model}\n')
    code, found = doctor()
    assert (code, found["backbone books"][0]) == (int(level == "fault"), level)
    assert text in found["backbone books"][1]
    assert level == "ok" or "[datasets.books.model]" in found["backbone books"][1]


@pytest.mark.parametrize("home", ["relative", "/proc/nowhere"])
def test_an_unusable_dagster_home(doctor, monkeypatch, home):
    monkeypatch.setenv("DAGSTER_HOME", home)
    code, found = doctor()
    assert (code, found["DAGSTER_HOME"][0]) == (1, "fault")
    assert "export DAGSTER_HOME=$PWD" in found["DAGSTER_HOME"][1]


def test_an_instance_that_does_not_open(doctor, monkeypatch, tmp_path):
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    (tmp_path / "dagster.yaml").write_text("storage: {sqlyte: {}}\n")
    code, found = doctor()
    assert (code, found["dagster"][0]) == (1, "fault")
    assert "correct dagster.yaml" in found["dagster"][1]


def test_a_read_only_folder(doctor):
    write('data_dir = "/proc/nowhere"\n')
    code, found = doctor()
    assert (code, found["data_dir"][0]) == (1, "fault")
    assert "/proc is not writable" in found["data_dir"][1]


@pytest.mark.parametrize(("limit", "level", "code"), [("ENOUGH_FREE", "warning", 0), ("MIN_FREE", "fault", 1)])
def test_a_disk_with_little_free_space(doctor, monkeypatch, limit, level, code):
    monkeypatch.setattr(checks, limit, 2**60)
    got, found = doctor()
    assert (got, found["data_dir"][0]) == (code, level)
    assert "free disk space" in found["data_dir"][1]


def test_a_cluster_of_ray_that_does_not_answer(doctor):
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        write(f'[engine]\nkind = "ray"\naddress = "{address}"\n')
        assert doctor()[1]["engine"] == ("ok", f"ray at {address} answers")
    code, found = doctor()
    assert (code, found["engine"][0]) == (1, "fault")
    assert f"ray at {address} does not answer" in found["engine"][1]
    assert "correct `address` in [engine]" in found["engine"][1]
    write('[engine]\nkind = "ray"\n')
    assert doctor()[1]["engine"] == ("ok", "ray, on this machine")


def test_an_engine_that_is_not_installed(doctor, monkeypatch):
    write('[engine]\nkind = "ray"\n')
    monkeypatch.setitem(sys.modules, "ray", None)
    code, found = doctor()
    assert (code, found["engine"][0]) == (1, "fault")
    assert "Ray is not installed" in found["engine"][1]


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


def test_urls_of_raw_files_are_requested(doctor, server):
    source = '[datasets.books.source]\nkind = "amazon_2023"\nreviews_url = "{}"\nmetadata_url = "{}"\n'
    write(source.format(f"{server}/reviews.jsonl?key=secret", f"{server}/reviews.jsonl"))
    code, found = doctor()
    assert (code, found["network books"]) == (0, ("ok", f"{server}/reviews.jsonl answers"))
    write(source.format(f"{server}/reviews.jsonl", f"{server}/gone.jsonl"))
    code, found = doctor()
    assert code == 1
    assert found["network books"][1].startswith(f"{server}/gone.jsonl answers HTTP 404")


def test_a_host_that_cannot_be_reached(doctor, monkeypatch):
    monkeypatch.setattr(checks, "TIMEOUT_S", 0.5)
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/r.jsonl"
        write(f'[datasets.books.source]\nkind = "amazon_2023"\nreviews_url = "{url}"\nmetadata_url = "{url}"\n')
        code, found = doctor()
    assert (code, found["network books"][0]) == (1, "fault")
    assert "cannot be reached: ConnectionError" in found["network books"][1]


def test_the_main_photo_host_is_tried_with_the_limits_of_photos(doctor, server, settings):
    path = Work(settings, "sample").paths.items
    path.parent.mkdir(parents=True)
    urls = ["images/a.jpg"] * 3 + [f"{server}/photo.jpg"] * 2 + ["http://other.example/b.jpg"]
    rows = [{"item": str(n), "image_url": url} for n, url in enumerate(urls)]
    pl.DataFrame(rows, schema=ITEM_SCHEMA).write_parquet(path)
    code, found = doctor()
    assert (code, found["network sample"][0]) == (0, "warning")
    assert "cannot be downloaded: address not public" in found["network sample"][1]
    write("[images]\nallow_private_hosts = true\n")
    assert load_settings().images.allow_private_hosts
    assert doctor()[1]["network sample"] == ("ok", f"the photo {server}/photo.jpg can be downloaded")
