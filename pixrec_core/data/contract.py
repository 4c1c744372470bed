"""The data contract: what an artefact must fulfil before a model is trained or evaluated on it.

A rule is one number of the artefact's profile and its allowed range. Counts of invalid rows must be 0. A share outside
its range makes results doubtful rather than wrong, so it is a warning.

Great Expectations reads neither Polars nor DuckDB. DuckDB therefore measures an artefact (`profile`),
and Great Expectations validates the measurements, which are a single row for any number of interactions.
"""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Literal

from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.data.profile import (
    Profile,
    profile_images,
    profile_interactions,
    profile_items,
    profile_sequences,
)
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths

Artefact = Literal["items", "interactions", "images", "sequences"]
Severity = Literal["error", "warn"]

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """One number of a profile and its allowed range, inclusive.

    Attributes:
        name: of the number.
        low: smallest allowed value.
        high: largest allowed value; None allows any.
        warning: sentence to log if the rule is broken, with `{}` for the observed share; empty makes it an error.
    """

    name: str
    low: float = 0
    high: float | None = 0
    warning: str = ""

    @property
    def severity(self) -> Severity:
        return "warn" if self.warning else "error"

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
        Rule("share_with_title", 0.9, 1, "{} of items have a title (90 % or more is usual)"),
        Rule("share_with_image_url", 0.5, 1, "{} of items have a photo URL (50 % or more is usual)"),
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
        Rule("share_of_known_items", 0.9, 1, "{} of interactions are with a known item (90 % or more is usual)"),
    ),
    "images": (
        Rule("rows_with_repeated_item"),
        Rule("rows_of_unknown_items"),
        Rule("rows_with_unknown_status"),
        Rule("failures_without_reason"),
        Rule("photos_without_size"),
        Rule("photos_without_sha256"),
        Rule("photos_without_file"),
        Rule("share_failed", 0, 0.1, "{} of photos failed (10 % or less is usual)"),
        Rule("image_coverage", 0.5, 1, "{} of items have a photo (50 % or more is usual)"),
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
        Rule("interactions_with_impossible_time"),
        Rule("interactions_with_impossible_rating"),
        Rule("interactions_out_of_order"),
        Rule("interactions_of_wrong_split"),
        Rule("sequences_with_nulls"),
        Rule("sequences_repeated"),
        Rule("sequences_of_unknown_split"),
        Rule("sequence_items_unknown"),
        Rule("users_with_inconsistent_sequences"),
        Rule("users_with_overlapping_splits"),
        Rule("image_coverage", 0.5, 1, "{} of items have a photo (50 % or more is usual)"),
        Rule(
            "share_tied_test", 0, 0.5,
            "{} of test targets were bought at the same instant as another item: the order of the file decided them",
        ),
        Rule("share_cold_test_targets", 0, 0.5, "{} of test targets are cold items (50 % or less is usual)"),
    ),
}  # fmt: skip

#: Sequences are measured before they are at their path, so they have no entry.
_PROFILES: Final[dict[Artefact, Callable[[DatasetPaths], Profile]]] = {
    "items": profile_items,
    "interactions": profile_interactions,
    "images": profile_images,
}


@dataclass(frozen=True)
class CheckResult:
    """Result of one rule; `observed` is None if there was nothing to measure, which never passes."""

    name: str
    passed: bool
    observed: float | None
    expected: str
    severity: Severity

    def __str__(self) -> str:
        observed = "nothing" if self.observed is None else f"{self.observed:g}"
        return f"{self.name}: observed {observed}, expected {self.expected}"


@cache
def _great_expectations() -> tuple[Any, Any]:
    """Return the module and a batch definition for data frames; imported on first use, which takes seconds."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read at import
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports sre_constants
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("pixrec").add_dataframe_asset("profile")
    return gx, asset.add_batch_definition_whole_dataframe("row")


@cache
def _suite(artefact: Artefact) -> Any:
    """Return the expectations; they are about a column's minimum, since a null value would pass."""
    gx, _ = _great_expectations()
    suite = gx.ExpectationSuite(name=artefact)
    for rule in RULES[artefact]:
        suite.add_expectation(
            gx.expectations.ExpectColumnMinToBeBetween(
                column=rule.name,
                min_value=rule.low,
                max_value=rule.high,
                severity="critical" if rule.severity == "error" else "warning",
            )
        )
    return suite


def validate_profile(artefact: Artefact, profile: dict[str, Any]) -> list[CheckResult]:
    """Return one result per rule of the artefact, in the order of `RULES`."""
    import pandas as pd

    _, batch_definition = _great_expectations()
    batch = batch_definition.get_batch({"dataframe": pd.DataFrame([profile]).astype(float)})
    outcomes = {each.expectation_config.kwargs["column"]: each for each in batch.validate(_suite(artefact)).results}
    results = []
    for rule in RULES[artefact]:
        observed = outcomes[rule.name].result.get("observed_value")
        number = None if observed is None else float(observed)
        results.append(CheckResult(rule.name, bool(outcomes[rule.name].success), number, rule.expected, rule.severity))
    return results


def failed_errors(results: list[CheckResult]) -> list[CheckResult]:
    """Return the failed checks of severity "error", which make an artefact unusable."""
    return [result for result in results if not result.passed and result.severity == "error"]


def check_profile(artefact: Artefact, profile: dict[str, Any], paths: DatasetPaths) -> list[CheckResult]:
    """Validate a profile, write all results, log failed warnings, and return the failed errors."""
    results = validate_profile(artefact, profile)
    write_results(artefact, results, paths)
    for rule, result in zip(RULES[artefact], results, strict=True):
        if rule.warning and not result.passed:
            share = "an unknown share" if result.observed is None else f"{100 * result.observed:.3g} %"
            _log.warning("warning: %s", rule.warning.format(share))
    return failed_errors(results)


def write_results(artefact: Artefact, results: list[CheckResult], paths: DatasetPaths) -> None:
    """Write the results of the artefact that was built last, whether it was accepted or rejected."""
    files.write_json(paths.contract(artefact), [asdict(result) for result in results])


def require_valid(artefact: Artefact, paths: DatasetPaths) -> dict[str, Any]:
    """Measure and validate an artefact that was just built; return its profile without the rules that demand 0.

    Raises:
        ContractError: the artefact breaks its contract. Its stage then writes no stamp, so no other stage reads it.
        ArtefactError: the artefact is damaged.
    """
    profile = _PROFILES[artefact](paths)
    if failed := check_profile(artefact, profile, paths):
        raise ContractError(
            "\n  ".join([f"{artefact} in {paths.root} break the data contract; correct the source:", *map(str, failed)])
        )
    return informative_metrics(artefact, profile)


def informative_metrics(artefact: Artefact, profile: dict[str, Any]) -> dict[str, Any]:
    """Return a profile without the numbers that are 0 in every accepted artefact."""
    always_zero = {rule.name for rule in RULES[artefact] if rule.high == 0}
    return {name: number for name, number in profile.items() if name not in always_zero}


def validate_sequences(paths: DatasetPaths) -> list[CheckResult]:
    """Measure and validate the stored sequences file.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.open_read_only(paths.sequences) as connection:
        return validate_profile("sequences", profile_sequences(connection))


def require_valid_sequences(paths: DatasetPaths) -> None:
    """Reject a sequences file that breaks its contract, such as one that was edited by hand.

    The results that the sequences stage wrote are trusted unless the file has changed since.

    Raises:
        ContractError: lists every broken rule.
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    if _is_accepted(paths):
        return
    if failed := failed_errors(validate_sequences(paths)):
        lines = [f"{paths.sequences} breaks the data contract; build it again with `pixrec run`:", *map(str, failed)]
        raise ContractError("\n  ".join(lines))


def date_results_of_sequences(paths: DatasetPaths) -> None:
    """Give the stored results the time of the sequences file, by which they belong to it whatever the clock does."""
    time_ns = paths.sequences.stat().st_mtime_ns
    os.utime(paths.contract("sequences"), ns=(time_ns, time_ns))


def _is_accepted(paths: DatasetPaths) -> bool:
    """Return whether the stored results accept the sequences file and have its time."""
    stored = paths.contract("sequences")
    modified = files.require(paths.sequences).stat().st_mtime_ns
    if not stored.exists() or stored.stat().st_mtime_ns != modified:
        return False
    return not failed_errors([CheckResult(**result) for result in files.read_json(stored)])
