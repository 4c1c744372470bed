import gzip
from pathlib import Path

import pytest
from pydantic import ValidationError

from pixrec_core.data.sources import amazon_2023
from pixrec_core.data.sources.amazon_2023 import Options
from pixrec_core.errors import SourceError


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
def test_finds_the_one_pair(tmp_path, names, pair):
    folder = folder_with(tmp_path, *names)
    options = Options(folder=Path("shop"))
    assert amazon_2023.watched(options, tmp_path) == [folder / name for name in pair]
    found = amazon_2023.fetch(options, tmp_path, tmp_path / "raw")
    assert [found.reviews, found.metadata, found.photos] == [*(folder / name for name in pair), None]


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
def test_asks_where_there_is_no_telling(tmp_path, names):
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
    with pytest.raises(SourceError, match=rf"{tmp_path}/nowhere is no folder; mend `folder`"):
        amazon_2023.fetch(Options(folder=Path("x/../nowhere")), tmp_path, tmp_path)


def test_serves_photos_where_they_lie_beside_the_files(tmp_path):
    folder = folder_with(tmp_path, "reviews.jsonl", "meta.jsonl")
    (folder / "images").mkdir()
    assert amazon_2023.fetch(Options(folder=folder), tmp_path, tmp_path).photos == folder
    assert amazon_2023.fetch(Options(folder=folder, serve_photos=False), tmp_path, tmp_path).photos is None


def test_refuses_unknown_options():
    with pytest.raises(ValidationError):
        Options(folder=Path(), revews="a")


def test_finds_the_real_sets(shared_data):
    found = amazon_2023.fetch(Options(folder=shared_data / "hm"), Path(), Path())
    assert found.photos == shared_data / "hm"
    with gzip.open(found.reviews) as file:
        assert file.readline().startswith(b"{")
