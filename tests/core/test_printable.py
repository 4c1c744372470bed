"""What may reach a terminal."""

import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixrec_core.errors import QueryError
from pixrec_core.printable import printable, printable_json

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
