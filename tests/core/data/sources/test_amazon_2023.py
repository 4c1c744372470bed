import gzip
import hashlib
import json
import re
from pathlib import Path

import polars as pl
import pytest
from pydantic import ValidationError

from pixrec_core import pipeline
from pixrec_core.data import raw_files
from pixrec_core.data.sources import RawFiles, amazon_2023
from pixrec_core.data.sources.amazon_2023 import CATEGORIES, Options
from pixrec_core.errors import SettingsError, SourceError
from pixrec_core.settings import Settings, SourceSettings
from pixrec_core.stages import Work
from tests.core.data.hostile_server import hostile_server, sends


def folder_with(root, *names):
    folder = root / "shop"
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"{}\n")
    return folder


@pytest.mark.parametrize(
    ("names", "pair"),
    [
        (["reviews.jsonl", "meta.jsonl"], ["reviews.jsonl", "meta.jsonl"]),
        (["reviews.jsonl.gz", "meta.jsonl"], ["reviews.jsonl.gz", "meta.jsonl"]),
        (["Toys.jsonl.gz", "meta_Toys.jsonl.gz", "README.md"], ["Toys.jsonl.gz", "meta_Toys.jsonl.gz"]),
        (["Toys.jsonl", "meta_Toys.jsonl", "Books.jsonl"], ["Toys.jsonl", "meta_Toys.jsonl"]),
    ],
)  # fmt: skip
def test_a_single_pair_of_files_is_found(tmp_path, names, pair):
    folder = folder_with(tmp_path, *names)
    options = Options(folder=Path("shop"))
    assert amazon_2023.watched(options, tmp_path) == [folder / name for name in pair]
    found = amazon_2023.fetch(options, tmp_path, tmp_path / "raw")
    assert [found.reviews, found.metadata, found.photos] == [*(folder / name for name in pair), None]


def test_a_folder_that_cannot_be_a_path_is_an_error(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for folder in ("~nobody-has-this-name/shop", "a\0b", "loop"):
        with pytest.raises(SourceError, match=r"is not a path that can be used .*; correct \[datasets"):
            amazon_2023.watched(Options(folder=folder), tmp_path)


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["reviews.jsonl"],
        ["Toys.jsonl", "meta_Books.jsonl"],
        ["reviews.jsonl", "reviews.jsonl.gz", "meta.jsonl"],
        ["Toys.jsonl", "meta_Toys.jsonl", "Books.jsonl", "meta_Books.jsonl"],
    ],
)
def test_ambiguous_files_are_an_error(tmp_path, names):
    folder = folder_with(tmp_path, *names)
    with pytest.raises(SourceError, match="Name both files by `reviews` and `metadata`") as caught:
        amazon_2023.watched(Options(folder=folder), tmp_path)
    assert all(name in str(caught.value) for name in [str(folder), *names])


def test_takes_the_named_files(tmp_path):
    folder = folder_with(tmp_path, "mine.txt", "reviews.jsonl", "meta.jsonl")
    named = Options(folder=folder, reviews="mine.txt", metadata="meta.jsonl")
    assert amazon_2023.watched(named, tmp_path) == [folder / "mine.txt", folder / "meta.jsonl"]
    assert amazon_2023.watched(Options(folder=folder, reviews="mine.txt"), tmp_path)[0] == folder / "mine.txt"


def test_names_a_missing_folder_as_resolved(tmp_path):
    with pytest.raises(SourceError, match=rf"{tmp_path}/nowhere is not a folder; correct `folder`"):
        amazon_2023.fetch(Options(folder=Path("x/../nowhere")), tmp_path, tmp_path)


def test_photos_in_the_same_folder_are_found(tmp_path):
    folder = folder_with(tmp_path, "reviews.jsonl", "meta.jsonl")
    (folder / "images").mkdir()
    assert amazon_2023.fetch(Options(folder=folder), tmp_path, tmp_path).photos == folder
    assert amazon_2023.fetch(Options(folder=folder, serve_photos=False), tmp_path, tmp_path).photos is None


def test_photos_that_are_added_later_reach_the_catalogue(tmp_path):
    review = {"rating": 5.0, "parent_asin": "a", "asin": "a", "user_id": "u", "timestamp": 1000}
    items = [{"parent_asin": item, "title": "Cup", "images": [{"large": f"images/{item}.jpg"}]} for item in "ab"]
    for name, rows in (("reviews", [review]), ("meta", items)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    source = {"kind": "amazon_2023", "folder": str(tmp_path)}
    work = Work(Settings(root=tmp_path, data_dir=tmp_path / "data", datasets={"shop": {"source": source}}), "shop")

    def build() -> list[str | None]:
        for stage in (pipeline.RAW, pipeline.ITEMS):
            if not stage.is_current(work):
                stage.materialise(work)
        return pl.read_parquet(work.paths.items)["image_url"].to_list()

    assert build() == [None, None]
    (tmp_path / "images").mkdir()
    assert build() == ["images/a.jpg", "images/b.jpg"]


def test_unknown_options_are_rejected():
    with pytest.raises(ValidationError):
        Options(folder=Path(), revews="a")


URLS = {"reviews_url": "https://h/r.jsonl", "metadata_url": "https://h/m.jsonl"}


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        ({}, "exactly one of `folder`, `category`, or `reviews_url` with `metadata_url`; 0 are given"),
        ({"folder": "a", "category": "Books"}, "2 are given"),
        ({"category": "Books"} | URLS, "2 are given"),
        ({"reviews_url": "https://h/r.jsonl"}, "`reviews_url` needs `metadata_url`"),
        ({"metadata_url": "https://h/r.jsonl"}, "0 are given"),
        ({"category": "Books", "serve_photos": True}, "serve_photos cannot go with `category`"),
        ({"folder": "a", "base_url": "https://h"}, "base_url cannot go with `folder`"),
        ({"folder": "a", "reviews_sha256": "0" * 64}, "reviews_sha256 cannot go with `folder`"),
        (URLS | {"base_url": "https://h"}, "base_url cannot go with `reviews_url`"),
        (URLS | {"metadata_url": "ftp://h/m"}, "metadata_url"),
        (URLS | {"reviews_sha256": "abc"}, "reviews_sha256"),
        ({"category": "Books", "base_url": "mcauleylab.ucsd.edu"}, "base_url"),
        ({"category": "Magazine_Subscription"}, "no such category; close: Magazine_Subscriptions"),
        ({"category": "toys and games"}, "no such category; close: Toys_and_Games"),
        ({"category": "../../etc"}, "no such category; known: All_Beauty, "),
    ],
)
def test_exactly_one_origin_with_its_options_is_required(given, fault):
    with pytest.raises(ValidationError, match=re.escape(fault)):
        Options(**given)


def test_the_url_of_a_category():
    assert Options(category="Books").urls == (
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw/review_categories/Books.jsonl.gz",
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw/meta_categories/meta_Books.jsonl.gz",
    )
    assert len(set(CATEGORIES) - {"Unknown"}) == 33


@pytest.mark.parametrize("way", ["category", "urls"])
def test_downloads_both_files(tmp_path, way):
    reviews, metadata = gzip.compress(b"reviews"), gzip.compress(b"metadata")
    with hostile_server() as server:
        server.url("/lab/raw/review_categories/Gift_Cards.jsonl.gz", sends(reviews))
        server.url("/lab/raw/meta_categories/meta_Gift_Cards.jsonl.gz", sends(metadata))
        base = f"http://{server.host}/lab"
        options = {
            "category": Options(category="Gift_Cards", base_url=base + "/"),
            "urls": Options(
                reviews_url=f"{base}/raw/review_categories/Gift_Cards.jsonl.gz",
                metadata_url=f"{base}/raw/meta_categories/meta_Gift_Cards.jsonl.gz",
            ),
        }[way]
        found = amazon_2023.fetch(options, tmp_path, tmp_path / "raw")
    assert found == RawFiles(tmp_path / "raw" / "reviews.jsonl.gz", tmp_path / "raw" / "meta.jsonl.gz")
    assert (found.reviews.read_bytes(), found.metadata.read_bytes()) == (reviews, metadata)
    assert amazon_2023.watched(options, tmp_path) == []


def test_files_of_another_source_are_removed_after_the_download(tmp_path):
    left = tmp_path / "raw" / "images" / "old.jpg"
    left.parent.mkdir(parents=True)
    left.touch()
    with hostile_server() as server:
        urls = {f"{name}_url": server.url(f"/{name}", sends(b"{}")) for name in ("reviews", "metadata")}
        amazon_2023.fetch(Options(**urls), tmp_path, tmp_path / "raw")
    names = sorted(path.name for path in (tmp_path / "raw").iterdir())
    assert names == [".meta.jsonl.json", ".reviews.jsonl.json", "meta.jsonl", "reviews.jsonl"]


@pytest.mark.parametrize("which", ["reviews", "metadata"])
def test_each_checksum_is_verified(tmp_path, which):
    body = b"{}\n"
    right = hashlib.sha256(body).hexdigest()
    checksums = {"reviews_sha256": right, "metadata_sha256": right, f"{which}_sha256": "0" * 64}
    with hostile_server() as server:
        urls = {
            "reviews_url": server.url("/reviews", sends(body)),
            "metadata_url": server.url("/metadata", sends(body)),
        }
        with pytest.raises(SourceError, match=f"/{which} has the checksum {right}"):
            amazon_2023.fetch(Options(**urls, **checksums), tmp_path, tmp_path / "raw")


def test_errors_contain_no_password():
    source = SourceSettings(kind="amazon_2023", category="Books", base_url="https://me:s3cret@h/x?key=k3y", folder="f")
    with pytest.raises(SettingsError, match="give exactly one of") as caught:
        raw_files.describe(source, Path())
    assert "s3cret" not in str(caught.value)
    assert "k3y" not in str(caught.value)


def test_finds_the_real_sets(shared_data):
    found = amazon_2023.fetch(Options(folder=shared_data / "hm"), Path(), Path())
    assert found.photos == (shared_data / "hm").resolve()
    with gzip.open(found.reviews) as file:
        assert file.readline().startswith(b"{")
