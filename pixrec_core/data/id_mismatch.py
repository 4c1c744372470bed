"""Why ids of interactions are not ids of items: how both are written."""

import html
import re
import unicodedata
from collections.abc import Callable, Collection, Mapping
from typing import Final
from urllib.parse import unquote


def _rounded(text: str) -> str:
    """Return a number with six digits, as spreadsheets write long ones; other texts unchanged."""
    try:
        return f"{float(text.replace(',', '.')):.5E}"
    except ValueError:
        return text


#: How to write ids so that both sides become equal, by the likely cause.
CAUSES: Final[Mapping[str, Callable[[str], str]]] = {
    "one side is stored as floats (`.0`)": lambda text: re.sub(r"\.0+$", "", text),
    "one side has lost leading zeros, as spreadsheets do": lambda text: text.lstrip("0"),
    "case": str.casefold,
    "blanks": lambda text: "".join(text.split()),
    "the Unicode form": lambda text: unicodedata.normalize("NFKC", text),
    "one side was rounded by a spreadsheet": _rounded,
    "escapes of HTML or URLs": lambda text: html.unescape(unquote(text)),
    "one side has a prefix": lambda text: re.split(r"[/:#|]", text)[-1],
    "punctuation": lambda text: re.sub(r"[\W_]+", "", text),
    "several of case, blanks, punctuation and leading zeros": lambda text: (
        re.sub(r"[\W_]+", "", unicodedata.normalize("NFKC", text)).casefold().lstrip("0")
    ),
}


#: Parts of an id of interactions of which one is an id of the items, by the likely cause.
PARTS: Final[Mapping[str, Callable[[str], Collection[str]]]] = {
    "several ids in one cell; write one row per item": lambda text: re.split(r"\s*[,;|]\s*", text),
    "ids of interactions have a prefix or suffix, as those of variants": lambda text: (
        *re.split(r"[-_./:# ]", text),
        text.rpartition("-")[0],
        text.rpartition("_")[0],
    ),
}


def explain_mismatch(unknown: Collection[str], known: Collection[str]) -> str:
    """Return a sentence with one id of each side and the likely cause; "" if there are no ids to compare.

    `unknown` are item ids of interactions that the items lack, `known` those of the items.
    """
    if not unknown or not known:
        return ""
    known, every = list(known), {*known}
    best, pair, cause = 0, (min(unknown), min(known)), "these seem to be ids of different kinds"
    for name, rewrite in CAUSES.items():
        rewritten = {rewrite(each): each for each in known if rewrite(each)}
        equal = [(each, rewritten[rewrite(each)]) for each in sorted(unknown) if rewrite(each) in rewritten]
        if len(equal) > best:
            best, pair = len(equal), equal[0]
            cause = f"likely cause: {name} ({best:,} of {len(unknown):,} would match)"
    for name, split in PARTS.items():
        parts = {each: {*split(each)} & every for each in sorted(unknown)}
        parts = {each: found for each, found in parts.items() if found}
        if len(parts) > best:
            best, pair = len(parts), next((each, min(found)) for each, found in parts.items())
            cause = f"likely cause: {name} ({best:,} of {len(unknown):,})"
    return f"interactions say {pair[0]!r}, items say {pair[1]!r}; {cause}"
