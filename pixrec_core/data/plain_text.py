"""Removal of markup from catalogue texts."""

import html
import re
from typing import Final

#: `plain_text` returns texts that do not match unchanged. The expression is valid for Python, RE2 and SQL.
MAYBE_MARKUP: Final = r"[<>&{\p{Cc}]|\p{Z}{2}|^\p{Z}|\p{Z}$|[^ \P{Z}]"

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|\w{1,32});")  # the semicolon is required: "AT&T" is kept
_MARKUP = re.compile(
    r"<!--.*?(?:-->|$)"
    r"|<(script|style)\b.*?(?:</\1\s*>|$)"
    r"|</?[a-z][^<>]*>|<![a-z][^<>]*>"  # a letter must follow: "I <3 you" and "size < 5" are kept
    r"|<[a-z][^<>=]*+=[^<>]*+$"  # a truncated tag; possessive, since a hostile text would take quadratic time
    r"|^[^<>]*[\"']\s*/>"  # the other half of a truncated tag
    r"|(?:^|(?<=[\s>}]))[.#@][a-z][^{}]{0,500}\{[^{}]*+\}"  # a CSS rule
    r"(?:\s*[^{}<>\s][^{}<>]{0,500}\{[^{}:]*+:[^{}]*+\})*",  # and the rules after it
    re.IGNORECASE | re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


def plain_text(text: str) -> str:
    """Return `text` without tags, entities, CSS rules and control characters, with single spaces as white space.

    Entities are replaced first, because some shops escape their tags.
    """
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    text = _MARKUP.sub(" ", text)
    return " ".join(_CONTROL.sub("", text).split())
