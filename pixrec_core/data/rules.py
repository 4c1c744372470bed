"""The data contract: what each artefact must be before anything is trained or judged on it.

One line a rule: a number of the artefact's profile and the range that it must lie in. Counts of
broken rows must be 0, whatever broke them: a source, a hand, or our own code. Shares beyond their
range make results doubtful rather than wrong, so they warn.
"""

from dataclasses import dataclass
from typing import Final, Literal

Artefact = Literal["items", "interactions", "images", "sequences"]
Severity = Literal["error", "warn"]


@dataclass(frozen=True)
class Rule:
    """One number of the profile and the range (inclusive) that it must lie in."""

    name: str
    low: float = 0
    high: float | None = 0
    severity: Severity = "error"

    @property
    def expected(self) -> str:
        if self.high is None:
            return f"at least {self.low:g}"
        return f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"


RULES: Final[dict[Artefact, tuple[Rule, ...]]] = {
    "items": (
        Rule("rows", low=2, high=None),
        Rule("rows_without_id"),
        Rule("rows_with_repeated_id"),
        Rule("rows_with_impossible_price"),
        Rule("share_with_title", low=0.9, high=1, severity="warn"),
        Rule("share_with_image_url", low=0.5, high=1, severity="warn"),
    ),
    "interactions": (
        Rule("users", low=2, high=None),
        Rule("items", low=2, high=None),
        Rule("rows_with_nulls"),
        Rule("rows_without_id"),
        Rule("rows_repeated"),
        Rule("rows_with_impossible_time"),
        Rule("rows_with_impossible_rating"),
        Rule("rows_out_of_order"),
        Rule("share_of_known_items", low=0.9, high=1, severity="warn"),
    ),
    "images": (
        Rule("rows_with_repeated_item"),
        Rule("rows_of_unknown_items"),
        Rule("rows_with_unknown_status"),
        Rule("failures_without_reason"),
        Rule("photos_without_size"),
        Rule("photos_without_sha256"),
        Rule("photos_without_file"),
        Rule("share_failed", high=0.1, severity="warn"),
        Rule("image_coverage", low=0.5, high=1, severity="warn"),
    ),
    # In-batch negatives need two users and two items.
    "sequences": (
        Rule("train_users", low=2, high=None),
        Rule("validation_users", low=1, high=None),
        Rule("test_users", low=1, high=None),
        Rule("items", low=2, high=None),
        Rule("items_without_id"),
        Rule("items_with_repeated_id"),
        Rule("items_with_wrong_train_count"),
        Rule("interactions_with_nulls"),
        Rule("interactions_of_unknown_items"),
        Rule("interactions_without_time"),
        Rule("interactions_with_impossible_rating"),
        Rule("interactions_out_of_order"),
        Rule("interactions_of_wrong_split"),
        Rule("sequences_with_nulls"),
        Rule("sequences_repeated"),
        Rule("sequences_of_unknown_split"),
        Rule("sequence_places_of_unknown_items"),
        Rule("users_unlike_their_interactions"),
        Rule("users_with_overlapping_splits"),
        Rule("image_coverage", low=0.5, high=1, severity="warn"),
        Rule("share_tied_test", high=0.5, severity="warn"),
        Rule("share_cold_test_targets", high=0.5, severity="warn"),
    ),
}
