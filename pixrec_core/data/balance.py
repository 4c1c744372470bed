"""The balance of a stage's rows: every row that was read is kept, rejected for a reason, or dropped by a rule."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Balance:
    """Rows that a stage has read, and what became of them.

    Attributes:
        read: number of rows that were read.
        kept: number of them in the artefact.
        rejected: bad rows, by reason.
        dropped: rows that a documented rule leaves out, by rule.
    """

    read: int
    kept: int
    rejected: Mapping[str, int] = field(default_factory=dict)
    dropped: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lost = self.read - self.kept - sum(self.rejected.values()) - sum(self.dropped.values())
        assert lost == 0, f"{lost} rows are not accounted for: {self}"

    @property
    def stats(self) -> dict[str, Any]:
        """The balance as JSON values, without rules that dropped nothing."""
        counts = asdict(self)
        return counts | {"dropped": {rule: n for rule, n in self.dropped.items() if n}}

    def sentence(self, unit: str) -> str:
        """Return the balance in words: `600 rows read: 590 interactions, 2 rejected (...), 8 duplicates`."""
        rejected = sum(self.rejected.values())
        reasons = "; ".join(
            f"{reason}: {n:,}" if len(self.rejected) > 1 else reason
            for reason, n in sorted(self.rejected.items(), key=lambda each: -each[1])
        )
        parts = [f"{self.kept:,} {unit}"]
        parts += [f"{rejected:,} rejected ({reasons})"] if rejected else []
        parts += [f"{n:,} {rule}" for rule, n in self.dropped.items() if n]
        return f"{self.read:,} rows read: {', '.join(parts)}"
