"""Text as it may be printed: data must not control a terminal, and URLs must not show their secrets."""

import json
import re
from typing import Any, Final
from urllib.parse import unquote

#: Controls of C0 (but tab and line feed) and C1, such as ESC, CSI and OSC; marks that reorder text (bidi); line
#: separators; half surrogate pairs, which no encoding can write.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return `text` with each character that could control a terminal replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


#: Characters that make links, pictures, emphasis, code and cells of tables.
_MARKDOWN: Final = re.compile(r"[\\`*~\[\]|]|(?<![^\W_])_|_(?![^\W_])")  # within a word, `_` has no effect


def markdown_cell(text: str) -> str:
    """Return the Markdown of a table's cell that shows `text` as it is, with the Markdown and HTML in it."""
    return _MARKDOWN.sub(r"\\\g<0>", text.replace("&", "&amp;").replace("<", "&lt;"))


def printable_json(value: Any) -> str:
    """Return `value` as indented JSON, with characters that could control a terminal escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


#: A URL in a text, with all that follows it up to the next URL or the end of the line.
_URL: Final = re.compile(r"(\w+://)(.*?)(?=\w+://|\n|$)")
_HOST: Final = re.compile(r"(\[[\da-fA-F:.]+\]|[^:]*)(:\d*[.,;:)]*)?")
_QUERY: Final = re.compile(r"""^([^\s'"?#]*)[?#](?:\\.|[^\s'"\\])*""")
_LONG_QUERY: Final = re.compile(r"""^([^\s'"?#]*)[?#].*""")


def shown_url(url: str) -> str:
    """Return a URL without user, password, query and fragment; signed URLs have keys there."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    return scheme + separator + re.split(r"[?#]", _without_credentials(rest, r"[^/?#]*"), maxsplit=1)[0]


def without_secrets(text: str, *urls: str, to_end: bool = False) -> str:
    """Return `text` with user, password, query and fragment removed from its URLs.

    Passwords may contain any character, so everything between `://` and the last `@` of the line is removed, or the
    whole URL if its parts cannot be separated.

    Args:
        text: any, such as the message of a library.
        urls: known URLs; their secrets are removed wherever they are in the text.
        to_end: a query ends with the line, not with a space or quote, as in the quoted raw line of a catalogue.
    """
    for url in urls:
        text = text.replace(url, shown_url(url))
    secrets = {secret for url in urls for secret in _secrets(url)}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    query = _LONG_QUERY if to_end else _QUERY
    return _URL.sub(lambda found: found[1] + query.sub(r"\1", _without_credentials(found[2])), text)


def _without_credentials(rest: str, up_to_path: str = r"""[^/?#\s'"]*""") -> str:
    """What follows `://`, without user and password. A user or password may contain each of `@/?#'" `."""
    authority = re.match(up_to_path, rest)
    if authority is None or not ({":", "@"} & set(authority[0])):
        return rest
    if "@" not in rest and _HOST.fullmatch(authority[0]):
        return rest
    before = re.split(r"[?#]", rest, maxsplit=1)[0]
    if rest.count("@") > before.count("@") or "@" not in before:
        return ""  # a password with `?`, a query with `@`, or a text that is cut within a password
    return before.rpartition("@")[2] + rest[len(before) :]


def _secrets(url: str) -> set[str]:
    """Password and query of a URL, in each form in which a library may quote them."""
    rest = url.partition("://")[2]
    credentials, at, _ = rest.rpartition("@")
    found = {credentials, credentials.partition(":")[2]} if at else set()
    found |= set(re.split(r"[?#]", rest)[1:])
    found |= {value.partition("=")[2] for part in set(found) for value in part.split("&")}
    found |= {unquote(secret) for secret in found} | {repr(secret)[1:-1] for secret in found}
    return {secret for secret in found if len(secret) > 2}  # replacing shorter ones would only garble the text
