"""An answer as JSON and as a page, with titles that need escaping."""

import base64
import io
import json

import pytest
from PIL import Image

from pixrec_core import files
from pixrec_core.report.answer import _split_ids, as_json
from pixrec_core.report.answer_page import as_html
from tests.core.report import example
from tests.core.report.html_page import Page

TITLES = {
    **example.HOSTILE,
    "i03": "x" * 200 + "…",
    "i06": "two lines and a bell",
    "i19": "title of i19",
}
RECOMMENDED = [*list(example.HOSTILE)[1:], "i19"]


def test_ids_are_looked_up_about_once_each():
    class Known(dict):
        lookups = 0

        def __contains__(self, item):
            self.lookups += 1
            return super().__contains__(item)

    known = Known.fromkeys(["a,b", "c"])  # ids have one comma at most
    assert list(_split_ids(",".join(["x"] * 1000), known)) == ["x"] * 1000
    assert known.lookups == 999  # the last one has none behind it


@pytest.mark.parametrize("value", example.HOSTILE.values())
def test_hostile_titles_and_texts_stay_text(paths, value):
    for kind in ("items", "text"):
        read = Page(as_html(example.answer(paths, kind, value), paths))
        assert not {"script", "b"} & set(read.elements)
        assert read.elements.count("style") == 1
        assert not [name for name, _ in read.attributes if name.startswith("on")]
        assert {TITLES[item] or item for item in RECOMMENDED} <= read.titles
        assert all(TITLES[item] in read.text for item in RECOMMENDED)
    assert " ".join(value.split()) in read.text


def test_the_page_is_self_contained(paths):
    read = Page(as_html(example.answer(paths), paths))
    assert not {"script", "iframe", "object"} & set(read.elements)
    assert [value for name, value in read.attributes if name == "href"] == ["data:,"]
    for image in read.images:
        head, _, body = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(body))).size) == 96


def test_ranks_scores_and_items_of_the_history(paths):
    read = Page(as_html(example.answer(paths), paths))
    assert "Newest item last; 1 earlier item not shown." in read.text
    assert read.text.count("has it") == 1  # i19 is in the history
    assert "i19 title of i19 9 0.2000" in read.text


def test_without_photos_the_page_shows_titles(paths):
    files.remove(paths.images)
    read = Page(as_html(example.answer(paths), paths))
    assert read.images == []
    assert "title of i19, no photo" in [value for name, value in read.attributes if name == "aria-label"]


@pytest.mark.parametrize(
    ("joined", "ids"),
    [
        ("a,b", ["a", "b"]),
        (" a , b ", ["a", "b"]),
        ("SKU-001, red", ["SKU-001, red"]),
        ("a,SKU-001, red,b", ["a", "SKU-001, red", "b"]),
        ("x,y,x,y,z", ["x,y", "x,y,z"]),
        ("SKU-001, blue", ["SKU-001", "blue"]),
        (",,a,", ["a"]),
        ("e\u0301, 2,\u200b b", ["\xe9, 2", "b"]),  # the form of a keyboard, and a blank without width
        ("", []),
    ],
)
def test_ids_with_commas_can_be_asked_for(joined, ids):
    assert list(_split_ids(joined, {"a", "b", "SKU-001, red", "x,y", "x,y,z", "\xe9, 2"})) == ids


def test_as_json(paths):
    record = json.loads(as_json(example.answer(paths)))
    assert (record["dataset"], record["method"], record["promoted_at"]) == (
        "shop",
        "multimodal",
        "2026-01-02T03:04:05Z",
    )
    assert record["query"] == {"items": "", "history": ["i00", *example.ITEMS[12:20]]}
    first = {"rank": 1, "item": "i01", "title": example.HOSTILE["i01"], "score": 1.0}
    assert [record["recommendations"][0], len(record["recommendations"])] == [first, 9]
