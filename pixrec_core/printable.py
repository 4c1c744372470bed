"""Text from data as it may be printed: a catalogue or a server must not control a terminal or forge its text."""

import json
import re
from typing import Any, Final

#: Controls of C0 (but tab and line feed) and C1, such as ESC, CSI and OSC; marks that reorder text (bidi); line
#: separators; half surrogate pairs, which no encoding can write.
_UNPRINTABLE: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return `text` with each character that could control a terminal replaced by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", text)


def printable_json(value: Any) -> str:
    """Return `value` as indented JSON, with characters that could control a terminal escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
