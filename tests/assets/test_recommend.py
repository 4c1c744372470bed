"""`pixrec recommend` as a user runs it, over promoted checkpoints of random weights."""

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from pixrec_assets import cli, terminal
from pixrec_assets.commands import export, recommend
from pixrec_core import files
from pixrec_core.data.sequences import read_sequences
from pixrec_core.schemas import TEST, USER
from pixrec_core.serving import Recommender
from pixrec_core.stages import Work
from tests.core.report.html_page import Page
from tests.core.shop import served_shop

TOML = """
variants = ["multimodal", "text_only"]
[datasets.shop]
source = { kind = "sample", users = 58, items = 40 }
images = { max_bytes = 100_000 }
[datasets.empty]
source = { kind = "sample" }
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Work:
    folder = tmp_path_factory.mktemp("project")
    (folder / "pixrec.toml").write_text(TOML)
    return served_shop(folder, "multimodal", "text_only", baselines=["ease"])


@pytest.fixture(scope="module")
def recommender(served: Work) -> Recommender:
    return Recommender.load(served.paths.promoted.root)


Pixrec = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pixrec(served: Work, monkeypatch: pytest.MonkeyPatch, capsys) -> Pixrec:
    """Run `pixrec recommend`, or another command, with arguments: exit code, standard output, standard error."""
    monkeypatch.chdir(served.settings.root)
    for name in [name for name in os.environ if name.startswith("PIXREC_")]:
        monkeypatch.delenv(name)
    for module, name in (
        (terminal, "err"),
        (recommend, "out"),
        (export, "out"),
        (cli, "err"),
    ):  # wider than any table, so that no cell is broken
        monkeypatch.setattr(module, name, Console(soft_wrap=True, stderr=name == "err", width=200))

    def call(*arguments: str, command: str = "recommend") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pixrec", command, *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        reported = capsys.readouterr()
        return int(end.value.code or 0), reported.out, reported.err

    return call


@pytest.fixture
def asked(served: Work, recommender: Recommender) -> dict[str, tuple[str, list[str]]]:
    """Option -> its value, and the items that answer it."""
    items = recommender.tower().retriever.item_index.items[:3]
    user = read_sequences(served.paths, TEST)[USER][0]
    photo = served.paths.image(recommender.catalogue.filter("has_image")["item"][0])
    answers = {
        "--user": (user, recommender.for_user(user)),
        "--items": (",".join(items), recommender.for_items(items)),
        "--text": ("red <b>shirt</b>", recommender.for_text("red <b>shirt</b>")),
        "--photo": (str(photo), recommender.for_photo(photo.read_bytes())),
    }
    return {option: (value, [each.item for each in found]) for option, (value, found) in answers.items()}


KINDS = ["--user", "--items", "--text", "--photo"]


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_in_each_format(pixrec, asked, kind):
    value, expected = asked[kind]
    arguments = ["shop", "--method", "multimodal", kind, value]
    code, table, err = pixrec(*arguments)
    assert (code, err) == (0, "")
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in table.splitlines() if line.startswith("│")]
    assert rows == [[str(rank), item] for rank, item in enumerate(expected, 1)]
    reported = json.loads(pixrec(*arguments, "--format", "json")[1])
    assert [each["item"] for each in reported["recommendations"]] == expected
    assert reported["query"][kind[2:]] == (Path(value).name if kind == "--photo" else value)
    page = Page(pixrec(*arguments, "--format", "html")[1])
    assert [page.text.count(item) >= 1 for item in expected] == [True] * 10
    assert page.images
    assert ("red <b>shirt</b>" in page.text) is (kind == "--text")
    assert "b" not in page.elements


def test_a_pinned_item_has_no_score(pixrec, recommender, monkeypatch):
    pin = recommender.catalogue["item"][0]
    monkeypatch.setenv("PIXREC_DATASETS__SHOP__RULES__PIN", json.dumps([pin]))
    arguments = ["shop", "--items", recommender.catalogue["item"][1], "--top", "2", "--format"]
    code, out, _ = pixrec(*arguments, "json")
    first, second = json.loads(out, parse_constant=pytest.fail)["recommendations"]
    assert (code, first["item"], first["score"]) == (0, pin, None)
    assert isinstance(second["score"], float)
    assert re.search(rf"│ {pin} +│.*│ pinned │", pixrec(*arguments, "table")[1])
    assert re.search(rf"{pin} .* 1 pinned", Page(pixrec(*arguments, "html")[1]).text)


@pytest.mark.parametrize("shape", ["table", "json", "html"])
def test_a_file_has_the_same_output_as_the_terminal(pixrec, tmp_path, shape):
    arguments = ["shop", "--text", "cup", "--top", "2", "--format", shape]
    path = tmp_path / "new folder" / "answer"
    code, out, _ = pixrec(*arguments, "--output", str(path))
    assert (code, out) == (0, f"{shape}: {path}\n")
    shown = [line.rstrip() for line in pixrec(*arguments)[1].splitlines()]
    assert path.read_text(encoding="utf-8").splitlines() == shown


def test_seen_items_are_left_out_if_asked(pixrec, recommender):
    items = recommender.tower().retriever.item_index.items[:5]
    arguments = ["shop", "--method", "multimodal", "--items", " , ".join(items), "--top", "100"]
    listed = {}
    for option in ("--allow-seen", "--filter-seen"):
        reported = json.loads(pixrec(*arguments, "--format", "json", option)[1])
        listed[option] = [each["item"] for each in reported["recommendations"]]
    assert set(items) < set(listed["--allow-seen"])
    assert listed["--filter-seen"] == [item for item in listed["--allow-seen"] if item not in items]


def test_the_served_method_answers_unless_another_is_asked(pixrec, recommender):
    items = recommender.catalogue["item"].head(3).to_list()
    for given, method in (
        ([], "multimodal"),
        (["--method", "ease"], "ease"),
    ):
        code, out, _ = pixrec("shop", "--items", ",".join(items), "--format", "json", *given)
        assert code == 0
        reported = json.loads(out)
        assert reported["method"] == method
        expected = recommender.for_items(items, method=method)
        assert [each["item"] for each in reported["recommendations"]] == [each.item for each in expected]


def test_a_text_is_answered_by_a_variant_whatever_serves(pixrec, served):
    manifest = served.paths.promoted.manifest
    before = manifest.read_bytes()
    try:
        files.write_json(manifest, files.read_json(manifest) | {"method": "ease"})
        code, out, _ = pixrec("shop", "--text", "cup", "--format", "json")
        assert (code, json.loads(out)["method"]) == (0, "multimodal")
    finally:
        manifest.write_bytes(before)


@pytest.mark.parametrize(
    ("arguments", "code", "reported"),
    [
        (["shop"], 2, "give exactly one of --user, --items, --text and --photo"),
        (["shop", "--text", "cup", "--user", "u"], 2, "give exactly one of --user, --items, --text and --photo"),
        (["shop", "--text", "cup", "--top", "0"], 2, "0 is not in the range x>=1"),
        (["shop", "--photo", "no.jpg"], 2, "File 'no.jpg' does not exist"),
        (["nope", "--text", "cup"], 1, "unknown dataset 'nope'"),
        (["empty", "--text", "cup"], 1, "nothing of empty has been promoted; run `pixrec run empty --up-to promoted`"),
        (
            ["shop", "--text", "cup", "--method", "nope"],
            1,
            "unknown method 'nope'; promoted of shop: ease, multimodal, text_only",
        ),
        (["shop", "--user", "nobody"], 1, "unknown user 'nobody'"),
        (["shop", "--items", "x,y"], 1, "unknown item 'x', 'y'"),
        (["shop", "--items", " , "], 1, "the history is empty"),
        (["shop", "--text", ""], 1, "the text is empty"),
        (["shop", "--photo", "pixrec.toml", "--method", "multimodal"], 1, "the photo cannot be used: not an image"),
        (["shop", "--photo", "large", "--method", "multimodal"], 1, "100,001 bytes; photos may have 100,000"),
        (["shop", "--photo", "pixrec.toml", "--method", "text_only"], 1, "method text_only of shop reads no photos"),
    ],
)
def test_wrong_arguments_are_reported_without_a_traceback(pixrec, served, arguments, code, reported):
    (served.settings.root / "large").write_bytes(b"\0" * 100_001)
    got, out, err = pixrec(*arguments)
    assert (got, out) == (code, "")
    assert reported in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("command", "arguments"), [("recommend", ["--text", "cup"]), ("export", [])])
def test_an_output_that_cannot_be_written_is_reported_without_a_traceback(pixrec, tmp_path, command, arguments):
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "below"
    code, out, err = pixrec("shop", *arguments, "--output", str(output), command=command)
    assert (code, out) == (1, "")
    assert err.startswith(f"--output: {tmp_path / 'file'}")
    assert "cannot be written" in err
    assert "Traceback" not in err


def test_the_method_that_answers_can_be_exported(pixrec, recommender, tmp_path):
    arguments = ["shop", "--method", "multimodal", "--output", str(tmp_path / "vectors")]
    code, out, err = pixrec(*arguments, command="export")
    path, count = tmp_path / "vectors" / "items.parquet", len(recommender.tower().retriever.item_index.items)
    assert (code, out, err) == (0, f"{count} vectors of 16 numbers, multimodal of shop: {path}\n", "")
    assert pl.read_parquet(path, columns=["item"])["item"].to_list() == recommender.tower().retriever.item_index.items
    code, _, err = pixrec("shop", "--output", str(tmp_path), command="export")
    assert (code, "is no earlier export" in err) == (1, True)


def test_a_damaged_index_is_named(pixrec, served, tmp_path, monkeypatch):
    shutil.copytree(served.settings.root, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data/shop/promoted/1/variants/multimodal/item_index/index.faiss").write_bytes(b"no index")
    code, _, err = pixrec("shop", "--text", "cup", "--method", "multimodal")
    assert code == 1
    assert "promoted/1/variants/multimodal/item_index/index.faiss is damaged" in err
    assert "promote again (`pixrec run shop --stage promoted`)" in err
