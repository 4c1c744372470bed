"""Requirements on every source; a new source needs one example here."""

import gzip
import hashlib
import inspect
import json
import shutil
from pathlib import Path

import pytest
from pydantic import BaseModel

from pixrec_core import files
from pixrec_core.data import interactions, items, raw_files
from pixrec_core.data.sources import RawFiles
from pixrec_core.errors import SettingsError, SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.pipeline import RAW
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.settings import IngestSettings, Settings, SourceSettings
from pixrec_core.stages import Work
from tests.core.data.hostile_server import hostile_server, sends
from tests.core.data.raw_shop import item, review

REVIEWS = review() + review(user_id="u2", parent_asin="q")
METADATA = item() + item(parent_asin="q", images=[{"variant": "MAIN", "large": "images/q.jpg"}])


def sample(root, server):
    return {"users": 20, "items": 32}


def folder(root, server):
    (root / "shop" / "images").mkdir(parents=True, exist_ok=True)
    (root / "shop" / "reviews.jsonl").write_bytes(REVIEWS)
    (root / "shop" / "meta.jsonl").write_bytes(METADATA)
    return {"folder": "shop"}


def category(root, server):
    server.url("/raw/review_categories/Software.jsonl.gz", sends(gzip.compress(REVIEWS), ETag='"1"'))
    server.url("/raw/meta_categories/meta_Software.jsonl.gz", sends(gzip.compress(METADATA), ETag='"2"'))
    return {"category": "Software", "base_url": f"http://{server.host}"}


def urls(root, server):
    return {
        "reviews_url": server.url("/r.jsonl", sends(REVIEWS)),
        "metadata_url": server.url("/m.jsonl", sends(METADATA)),
    }


def tables(root, server):
    (root / "pics").mkdir(exist_ok=True)
    (root / "orders.csv").write_text("who,what,when\nu1,p,2024-05-01\nu2,q,2024-05-02\n")
    (root / "products.csv").write_text("sku,name,photo\np,Lamp,\nq,Sofa,q.jpg\n")
    return {
        "interactions": "orders.csv",
        "items": "products.csv",
        "photos": "pics",
        "interaction_columns": {"user": "who", "item": "what", "timestamp": "when"},
        "item_columns": {"item": "sku", "title": "name", "image": "photo"},
    }


EXAMPLES = {
    "sample": ("sample", sample),
    "amazon_2023, folder": ("amazon_2023", folder),
    "amazon_2023, category": ("amazon_2023", category),
    "amazon_2023, urls": ("amazon_2023", urls),
    "tables": ("tables", tables),
}
NAMES = plugin_names(raw_files.SOURCES)


@pytest.fixture
def server():
    with hostile_server() as server:
        yield server


@pytest.fixture(params=EXAMPLES)
def source(request, tmp_path, server):
    kind, example = EXAMPLES[request.param]
    return SourceSettings(kind=kind, **example(tmp_path, server))


@pytest.fixture
def work(source, tmp_path):
    return Work(Settings(root=tmp_path, data_dir=tmp_path / "data", datasets={"shop": {"source": source}}), "shop")


def watched(source, root):
    module = load_plugin(raw_files.SOURCES, source.kind)
    return module.watched(module.Options(**source.options), root)


def contents(found):
    """Return all bytes that a source wrote."""
    folders = [found.photos] if found.photos and found.photos.is_relative_to(found.reviews.parent) else []
    more = sorted(path for folder in folders for path in folder.rglob("*") if path.is_file())
    return [path.read_bytes() for path in (found.reviews, found.metadata, *more)]


def test_every_source_has_an_example():
    assert sorted({kind for kind, _ in EXAMPLES.values()}) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_source_has_the_required_names(name):
    module = load_plugin(raw_files.SOURCES, name)
    assert issubclass(module.Options, BaseModel)
    assert module.Options.model_config.get("frozen")
    assert module.Options.model_config.get("extra") == "forbid"
    assert module.__doc__
    assert len(inspect.signature(module.fetch).parameters) == 3
    assert len(inspect.signature(module.watched).parameters) == 2
    assert list(inspect.signature(module.load_items).parameters) == ["db", "raw", "folder", "max_expansion"]
    assert inspect.signature(module.load_items) == inspect.signature(module.load_interactions)


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_described(name):
    def undescribed(model):
        for field, info in model.model_fields.items():
            if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
                yield from undescribed(info.annotation)
            elif not info.description:
                yield f"{model.__name__}.{field}"

    assert not list(undescribed(load_plugin(raw_files.SOURCES, name).Options))


def test_the_next_stages_can_read_its_files(source, tmp_path):
    paths = DatasetPaths(tmp_path / "data" / "shop")
    raw_files.fetch(source, tmp_path, paths)
    found = raw_files.locate(paths)
    assert isinstance(found, RawFiles)
    assert found.photos is None or found.photos.is_dir()
    assert interactions.build_interactions(IngestSettings(), paths)["rows"] >= 2
    assert items.build_items(IngestSettings(), paths)["rows"] >= 2


def test_the_same_options_give_the_same_bytes(source, tmp_path):
    first, second = (DatasetPaths(tmp_path / name / "shop") for name in ("one", "two"))
    for paths in (first, second):
        raw_files.fetch(source, tmp_path, paths)
    before = contents(raw_files.locate(first))
    assert contents(raw_files.locate(second)) == before
    raw_files.fetch(source, tmp_path, first)
    assert contents(raw_files.locate(first)) == before
    assert raw_files.digest(first) == raw_files.digest(second)


def test_a_source_writes_only_into_its_folder(source, tmp_path):
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    raw_files.fetch(source, tmp_path, DatasetPaths(tmp_path / "data" / "shop"))
    new = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert {path.relative_to(tmp_path).parts[:3] for path in new} <= {
        ("data", "shop", "raw"),
        ("data", "shop", "raw.json"),
    }
    assert not [path for path in new if path.suffix == ".partial"]


def test_the_manifest_has_sizes_and_checksums(source, tmp_path):
    paths = DatasetPaths(tmp_path / "data" / "shop")
    stats = raw_files.fetch(source, tmp_path, paths)
    manifest = files.read_json(paths.raw_manifest)
    found = raw_files.locate(paths)
    for name, path in (("reviews", found.reviews), ("metadata", found.metadata)):
        body = path.read_bytes()
        assert manifest[name]["bytes"] == stats[f"{name}_bytes"] == len(body)
        assert manifest[name]["sha256"] == stats[f"{name}_sha256"] == hashlib.sha256(body).hexdigest()
    assert json.loads(json.dumps(stats)) == stats


def test_files_read_in_place_are_watched(source, tmp_path):
    raw_files.fetch(source, tmp_path, DatasetPaths(tmp_path / "data" / "shop"))
    signs = raw_files.describe(source, tmp_path)
    local = watched(source, tmp_path)
    assert set(signs) - {"photos"} == set(map(str, local))
    assert all(path.is_file() and not path.is_relative_to(tmp_path / "data") for path in local)
    for path in local:
        path.write_bytes(path.read_bytes() + b"\n")
        assert raw_files.describe(source, tmp_path) != signs
        signs = raw_files.describe(source, tmp_path)


def test_the_stage_is_current_until_a_watched_file_changes(work, source, tmp_path):
    assert not RAW.is_current(work)
    version = RAW.materialise(work)["data_version"]
    assert RAW.is_current(work)
    for path in watched(source, tmp_path):
        path.write_bytes(path.read_bytes().replace(b"u2", b"u3").replace(b"Sofa", b"Chair").replace(b'"q"', b'"r"'))
        assert not RAW.is_current(work)
        changed = RAW.materialise(work)["data_version"]
        assert changed != version
        version = changed


def test_a_moved_dataset_still_has_its_files(source, tmp_path):
    paths = DatasetPaths(tmp_path / "data" / "shop")
    raw_files.fetch(source, tmp_path, paths)
    before = contents(raw_files.locate(paths))
    moved = DatasetPaths(tmp_path / "elsewhere" / "shop")
    shutil.move(tmp_path / "data", tmp_path / "elsewhere")
    assert contents(raw_files.locate(moved)) == before


def test_wrong_options_are_a_settings_error(source, tmp_path):
    wrong = SourceSettings(kind=source.kind, **source.options, colour="red")
    for use in (
        lambda: raw_files.describe(wrong, tmp_path),
        lambda: raw_files.fetch(wrong, tmp_path, DatasetPaths(tmp_path / "data" / "shop")),
    ):
        with pytest.raises(SettingsError, match=rf"source '{source.kind}': colour: unknown setting `colour`"):
            use()


def test_missing_files_are_a_source_error_that_says_what_to_correct(source, tmp_path, server):
    """Local files that are missing, or a server that does not have them."""
    local = watched(source, tmp_path)
    for path in local:
        path.unlink()
    server.answers.clear()
    if source.kind == "sample":
        pytest.skip("it makes everything itself")
    paths = DatasetPaths(tmp_path / "data" / "shop")
    with pytest.raises(SourceError, match=r"\[datasets\.shop\.source\]"):
        raw_files.fetch(source, tmp_path, paths)
    assert not paths.raw_manifest.exists()


def test_an_interrupted_fetch_leaves_no_manifest(source, tmp_path, monkeypatch):
    def killed(_: Path) -> str:
        raise KeyboardInterrupt

    paths = DatasetPaths(tmp_path / "data" / "shop")
    with monkeypatch.context() as patched:
        patched.setattr(files, "sha256_file", killed)
        with pytest.raises(KeyboardInterrupt):
            raw_files.fetch(source, tmp_path, paths)
    assert not paths.raw_manifest.exists()
    raw_files.fetch(source, tmp_path, paths)
    assert contents(raw_files.locate(paths))
