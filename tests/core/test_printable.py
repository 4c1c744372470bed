"""What may reach a terminal."""

import html
import json
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from pixrec_core.errors import QueryError
from pixrec_core.printable import markdown_cell, printable, printable_json, shown_url, without_secrets

#: Controls of terminals (ESC, BEL, CR, CSI and OSC of C1), marks that reorder text, a line separator, half a pair.
HOSTILE = "\x1b[31m\x07\r\x08\x9b2J\x9d0;x\x9c\u202egnp.exe\u2066\u200f\u2028\ud83d"


def is_control(letter: str) -> bool:
    """By Unicode's own tables, apart from tab and line feed: controls, surrogates, and marks of direction."""
    marks = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    return (
        (unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") and letter not in "\t\n")
        or unicodedata.bidirectional(letter) in marks
        or letter in "\u200e\u200f\u061c"
    )


@given(text=st.text(st.characters(), max_size=40))
def test_only_controls_are_replaced(text: str) -> None:
    assert printable(text) == "".join("\ufffd" if is_control(letter) else letter for letter in text)


@given(text=st.text(st.characters(), max_size=40))
def test_json_has_the_same_value_and_no_controls(text: str) -> None:
    written = printable_json([text])
    assert not any(map(is_control, written))
    assert json.loads(written) == json.loads(json.dumps([text]))


@pytest.mark.parametrize("text", ["Träger 12 €", "長袖シャツ", "قميص", "👩‍👩‍👧 set", "a\tb\nc"])
def test_text_of_every_language_is_left_as_it_is(text: str) -> None:
    assert printable(text) == text


def test_an_error_contains_no_controls() -> None:
    assert not any(map(is_control, str(QueryError(f"unknown item {HOSTILE}"))))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:pass@shop.example:8443/raw/a.gz, twice", "at https://shop.example:8443/raw/a.gz, twice"),
        ("{'base_url': 'http://me:p@ss/w@h/x?sig=1#2', 'a': 1}", "{'base_url': 'http://h/x', 'a': 1}"),
        ("https://token@h and https://h/?key=k", "https://h and https://h/"),
        ("me@shop.example, why? C:/a", "me@shop.example, why? C:/a"),
        ("http://127.0.0.1:80/@a/b: no answer", "http://a/b: no answer"),
        ("http://[::1]:80: no answer", "http://[::1]:80: no answer"),
        ("https://h: 3 bytes", "https://h: 3 bytes"),
        ('{"large": "https://h/x?k=a\\"b"}', '{"large": "https://h/x"}'),
        ("http://me:a b'c\"d/e@h/x and http://me:p\nword@h", "http://h/x and http://\nword@h"),
        ("http://me:a?b@h/x", "http://"),
    ],
)
def test_secrets_are_removed_from_urls(text, shown):
    assert without_secrets(text) == shown


PASSWORDS = [
    *("s3cret", "s3 cret", "s3/cret", "s3'cr\"et", "s3@cret", "s3?cret", "s3#cret", "s3:cret", "1/s3cret", "é s3%20"),
]


@pytest.mark.parametrize("password", PASSWORDS)
def test_no_part_of_an_odd_secret_is_shown(password: str):
    url = f"https://me:{password}@h:8443/a/b.jpg?X-Signature={password}&w=1"
    assert shown_url(url) in ("https://h:8443/a/b.jpg", "https://")
    assert without_secrets(f"{url} failed", url) in ("https://h:8443/a/b.jpg failed", "https:// failed")
    assert "s3" not in without_secrets(json.dumps([url]), to_end=True)
    assert "s3" not in without_secrets(repr(url)[:25], to_end=True), "cut within the password"


@given(st.text("aä.%"), st.text())
def test_a_password_of_any_characters_is_removed(user: str, password: str):
    assert shown_url(f"http://{user}:{password}@h/x") in ("http://h/x", "http://")


@given(text=st.text("<>&;*_~`|\\[]()!#/:ab1 ", min_size=1))
@example(text="<img src=x> ![x](http://a/b.png) [x][1] &lt; a\\|b `c` ~~d~~ __e__")
def test_a_cell_of_markdown_shows_the_text(text: str) -> None:
    page = (
        MarkdownIt("commonmark")
        .enable(["table", "strikethrough"])
        .render(f"| head |\n|---|\n| {markdown_cell(text)} |")
    )
    cell = page.split("<td>")[1].split("</td>")[0]
    assert html.unescape(cell) == text.strip()
    assert "<" not in cell
