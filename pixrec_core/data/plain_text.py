"""Catalogue text without the markup that shops leave in it."""

import html
import re
from typing import Final

#: Texts that do not match are plain already: `plain_text` would return them as they are. RE2 and SQL read it too.
MAYBE_MARKUP: Final = r"[<>&{\p{Cc}]|\p{Z}{2}|^\p{Z}|\p{Z}$|[^ \P{Z}]"

_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|\w{1,32});")  # only with its semicolon: "AT&T" stays
_MARKUP = re.compile(
    r"<!--.*?(?:-->|$)"
    r"|<(script|style)\b.*?(?:</\1\s*>|$)"
    r"|</?[a-z][^<>]*>|<![a-z][^<>]*>"  # a letter must follow: "I <3 you" and "size < 5" stay
    r"|<[a-z][^<>=]*+=[^<>]*+$"  # a tag that the crawler cut off; possessive, or a hostile text takes quadratic time
    r"|^[^<>]*[\"']\s*/>"  # and the other half of one
    r"|(?:^|(?<=[\s>}]))[.#@][a-z][^{}]{0,500}\{[^{}]*+\}"  # a CSS rule
    r"(?:\s*[^{}<>\s][^{}<>]{0,500}\{[^{}:]*+:[^{}]*+\})*",  # and those after it
    re.IGNORECASE | re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f]")


def plain_text(text: str) -> str:
    """`text` without tags, entities, CSS rules and control characters, its white space single blanks.

    Entities come first, because shops also escape their tags.
    """
    text = _ENTITY.sub(lambda entity: html.unescape(entity[0]), text)
    text = _MARKUP.sub(" ", text)
    return " ".join(_CONTROL.sub("", text).split())
