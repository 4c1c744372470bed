"""What a check found."""

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is: a fault stops a run, a warning may."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of `pixrec doctor`.

    Attributes:
        subject: what was looked at.
        level: how it is.
        told: what was seen.
        mend: what to do about it; empty where all is well.
    """

    subject: str
    level: Level
    told: str
    mend: str = ""
