"""Words: without case, in any script, the same from a tokenizer's normaliser and from Python."""

import unicodedata

import pytest

from pixrec_core.data.words import normalise, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wool SCARF, wool", "wool scarf wool"),
        ("Straße ﬁt ＡＢＣ CO₂ Nº5", "strasse fit abc co2 no5"),  # noqa: RUF001
        ("ΕΛΛΆΣ Ελλάς", "ελλάσ ελλάσ"),
        ("12.50 1,299 3-pack 5.", "12.50 1,299 3 pack 5"),
        ("l'été snake_case", "l été snake case"),
        ("हिन्दी कपड़े", "हिन्दी कपड़े"),  # marks are parts of a word
        ("羊毛围巾 red", "羊 羊毛 毛 毛围 围 围巾 巾 red"),
        ("ウールの靴", "ウー ウール ル ルの の の靴 靴"),
        ("รองเท้า แดง", "ร รอ อ อง ง งเท้า เท้า แด แดง ง"),
        ("서울 모자", "서울 모자"),
        ("", ""),
        ("☃ -- !", ""),
    ],
)
def test_words(text: str, expected: str) -> None:
    assert words(text) == unicodedata.normalize("NFKC", expected).split()


@pytest.mark.parametrize("text", ["WOOL Scarf", "ÉTÉ", "ÅNGSTRÖM", "ПАЛЬТО", "İSTANBUL", "GROẞ", "ΟΔΌΣ", "ǅ"])
def test_case_is_folded_as_python_folds_it(text: str) -> None:
    assert normalise(text) == unicodedata.normalize("NFKC", text.casefold()) == normalise(text.lower())
