"""The result of a check."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """Severity: a fault stops a run, a warning may."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of `pixrec doctor`.

    Attributes:
        subject: what was checked.
        level: severity.
        text: what was found.
        fix: what to do about it; empty if nothing is wrong.
        details: lines that show what was read.
    """

    subject: str
    level: Level
    text: str
    fix: str = ""
    details: tuple[str, ...] = ()
