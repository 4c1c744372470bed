"""An answer's JSON and page, over items whose titles would break a page that does not escape them."""

import base64
import io
import json

import pytest
from PIL import Image

from pixrec_core import files
from pixrec_core.report.answer import as_html, as_json
from tests.core.report import example
from tests.core.report.html_page import Page

TITLES = {
    **example.HOSTILE,
    "i03": "x" * 200 + "…",
    "i06": "two lines and a bell",
    "i19": "title of i19",
}
FOUND = [*list(example.HOSTILE)[1:], "i19"]


@pytest.mark.parametrize("told", example.HOSTILE.values())
def test_hostile_titles_and_texts_stay_text(paths, told):
    for kind in ("items", "text"):
        read = Page(as_html(example.answer(paths, kind, told), paths))
        assert not {"script", "b"} & set(read.elements)
        assert read.elements.count("style") == 1
        assert not [name for name, _ in read.attributes if name.startswith("on")]
        assert {TITLES[item] or item for item in FOUND} <= read.titles
        assert all(TITLES[item] in read.text for item in FOUND)
    assert " ".join(told.split()) in read.text


def test_the_page_needs_nothing_beside_itself(paths):
    read = Page(as_html(example.answer(paths), paths))
    assert not {"script", "iframe", "object"} & set(read.elements)
    assert [value for name, value in read.attributes if name == "href"] == ["data:,"]
    for image in read.images:
        head, _, body = str(image["src"]).partition(",")
        assert head == "data:image/jpeg;base64"
        assert max(Image.open(io.BytesIO(base64.b64decode(body))).size) == 96


def test_ranks_scores_and_what_the_user_has(paths):
    read = Page(as_html(example.answer(paths), paths))
    assert "Newest last; 1 earlier item not shown." in read.text
    assert read.text.count("has it") == 1  # i19 stands in the history
    assert "i19 title of i19 9 0.2000" in read.text


def test_without_photos_titles_serve(paths):
    files.remove(paths.images)
    read = Page(as_html(example.answer(paths), paths))
    assert read.images == []
    assert "title of i19, no photo" in [value for name, value in read.attributes if name == "aria-label"]


def test_as_json(paths):
    told = json.loads(as_json(example.answer(paths)))
    assert (told["dataset"], told["variant"], told["promoted_at"]) == ("shop", "multimodal", "2026-01-02T03:04:05Z")
    assert told["query"] == {"items": "", "history": ["i00", *example.ITEMS[12:20]]}
    first = {"rank": 1, "item": "i01", "title": example.HOSTILE["i01"], "score": 1.0}
    assert [told["recommendations"][0], len(told["recommendations"])] == [first, 9]
