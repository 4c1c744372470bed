"""Words of texts in any script and any case: the same for BM25, LSA, queries and the tokenizer of `tiny`."""

from typing import Final

import regex
from tokenizers import normalizers

#: NFKC and Unicode case folding. The steps that lower case lacks follow it, so that this object can also be a part of a
#: saved tokenizer.
NORMALISER: Final = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.Lowercase(),
        normalizers.Replace("ß", "ss"),
        normalizers.Replace("ς", "σ"),  # noqa: RUF001
    ]
)

#: A unit of a script without spaces between words: a letter with its marks. In Thai and Lao also with the vowel before
#: and the vowel after it, which are parts of the same syllable (Theeramunkong et al. 2000, "Character Cluster Based
#: Thai Information Retrieval"). Valid for `regex` and for Oniguruma.
UNIT: Final = (
    r"[\u0E40-\u0E44\u0EC0-\u0EC4]?"
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]"
    r"[\p{M}\u0E30\u0E32\u0E45\u0EB0\u0EB2\u30FC]*"
)
_UNIT: Final = regex.compile(UNIT)
#: A unit; a number with its decimals; or letters, marks and digits of any other script.
_WORD: Final = regex.compile(rf"({UNIT})|\d+(?:[.,]\d+)+|(?:(?!{UNIT})[\p{{L}}\p{{M}}\p{{N}}])+")


def normalise(text: str) -> str:
    """Return the text in normal form NFKC and without case."""
    normalised: str = NORMALISER.normalize_str(text)
    return normalised


def words(text: str) -> list[str]:
    """Return the words of a text, normalised, in their order.

    Where a script has no spaces, each unit is a word, and each two adjacent units are another: most words of these
    scripts have one or two units, and a dictionary would be needed to tell where one ends.
    """
    found: list[str] = []
    unit, end = "", -1  # the last unit and where it ends
    for match in _WORD.finditer(normalise(text)):
        if match[1]:
            if match.start() == end:
                found.append(unit + match[1])
            unit, end = match[1], match.end()
        found.append(match[0])
    return found
