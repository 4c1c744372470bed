"""Removal of markup from texts."""

import time

import duckdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.data.items import MAYBE_MARKUP, plain_text


@pytest.mark.parametrize(
    ("dirty", "plain"),
    [
        ("Arts, Music &amp; Photography", "Arts, Music & Photography"),
        ("<b>Bold</b>&nbsp;lamp<br/>", "Bold lamp"),
        ("&lt;p&gt;escaped&lt;/p&gt;", "escaped"),
        ('<span class="a-size-medium a-color-secondary"', ""),
        ('" Magazines" />', ""),
        ("<style>.a{color:red}</style>Lamp<script>var x = '<b>';</script>", "Lamp"),
        (".a-box-inner{background-color:#fff}#alohaBuyBoxWidget .selected{color:#f00}", ""),
        ("Lamp <!-- hidden --> red", "Lamp red"),
        ("I <3 you, size < 5 > 4", "I <3 you, size < 5 > 4"),
        ("AT&T R&D &notable", "AT&T R&D &notable"),
        ("June 2014{the Country Issue}", "June 2014{the Country Issue}"),
        ("a\x00b\x07c\td\r\n e\u00a0f\u3000g", "abc d e f g"),
        ("  spaced   out ", "spaced out"),
        ("&#65;&#x42;&#0;", "AB\ufffd"),
        ("<\x01img src=x onerror=alert(1)>a<\x02/b> b", "a b"),  # tags when the control is gone
        ("", ""),
    ],
)
def test_markup_is_removed_and_text_is_kept(dirty, plain):
    assert plain_text(dirty) == plain


PIECES = [
    "<b>",
    "</b>",
    "&amp;",
    "{",
    "}",
    ".a",
    " ",
    "  ",
    "\n",
    "\u00a0",
    "\x85",
    "\x1c",
    "\x00",
    '"/>',
    "é",
    "1",
    "<3",
]


@settings(max_examples=100, deadline=None)
@given(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))
def test_texts_that_do_not_match_in_sql_are_unchanged(text):
    text = text.encode("utf-8", "ignore").decode()
    ((dirty,),) = duckdb.execute("SELECT regexp_matches(?, ?)", [text, MAYBE_MARKUP]).fetchall()
    assert dirty or plain_text(text) == text


@pytest.mark.parametrize(
    "piece", ["<", "<a", "<a=", "=", '"', '" ', ".a", ".a{", "{:", "<!--", "<script", "&", "&#1", " "]
)
@pytest.mark.parametrize("end", ["", "<", "}"])
def test_hostile_texts_do_not_take_quadratic_time(piece, end):
    start = time.perf_counter()
    plain_text("<a " + piece * 50_000 + end)
    plain_text(piece * 50_000 + end)
    assert time.perf_counter() - start < 5
