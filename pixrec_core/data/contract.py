"""The data contract: what a sequences file must be before anything is trained or judged on it.

Great Expectations reads neither Polars nor DuckDB, so DuckDB measures the file (`profile`) and
Great Expectations holds the one row of numbers against a suite. That also keeps memory flat: a
million interactions reach it as one row.
"""

import os
import warnings
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final, Literal

from pixrec_core import files
from pixrec_core.data import database
from pixrec_core.data.profile import profile
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths

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


@dataclass(frozen=True)
class CheckResult:
    """What came of one rule; `observed` is None where there was nothing to measure, which is never a pass."""

    name: str
    passed: bool
    observed: float | None
    expected: str
    severity: Severity

    def __str__(self) -> str:
        observed = "nothing" if self.observed is None else f"{self.observed:g}"
        return f"{self.name}: observed {observed}, expected {self.expected}"


#: In-batch negatives need two users and two items; counts of broken rows must be 0; shares beyond
#: their range make results doubtful rather than wrong, so they warn.
RULES: Final = (
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
)


@cache
def _great_expectations() -> tuple[Any, Any]:
    """Where the row goes and what is expected of it; imported on first use (seconds), telemetry off.

    The expectations look at a column's minimum rather than its values: of those a null would pass.
    """
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it imports sre_constants
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("pixrec").add_dataframe_asset("profile")
    suite = gx.ExpectationSuite(name="sequences")
    for rule in RULES:
        suite.add_expectation(
            gx.expectations.ExpectColumnMinToBeBetween(
                column=rule.name,
                min_value=rule.low,
                max_value=rule.high,
                severity="critical" if rule.severity == "error" else "warning",
            )
        )
    return asset.add_batch_definition_whole_dataframe("row"), suite


def validate(measured: dict[str, Any]) -> list[CheckResult]:
    """Hold a profile against the contract.

    Args:
        measured: one number a name, as `profile` returns it.

    Returns:
        One result a rule, in the order of `RULES`.
    """
    import pandas as pd

    batch_definition, suite = _great_expectations()
    batch = batch_definition.get_batch({"dataframe": pd.DataFrame([measured]).astype(float)})
    outcomes = {each.expectation_config.kwargs["column"]: each for each in batch.validate(suite).results}
    return [_result(rule, outcomes[rule.name]) for rule in RULES]


def _result(rule: Rule, outcome: Any) -> CheckResult:
    observed = outcome.result.get("observed_value")
    number = None if observed is None else float(observed)
    return CheckResult(rule.name, bool(outcome.success), number, rule.expected, rule.severity)


def broken(results: list[CheckResult]) -> list[CheckResult]:
    """The failed checks that make a file unfit; warnings do not."""
    return [r for r in results if not r.passed and r.severity == "error"]


def write(results: list[CheckResult], paths: DatasetPaths) -> None:
    """Write `contract.json`, a list of all results: of the last file built, whether it was accepted or refused."""
    files.write_json(paths.contract, [asdict(result) for result in results])


def check(paths: DatasetPaths) -> list[CheckResult]:
    """Measure the stored sequences file anew and hold it against the contract.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.reading(paths.sequences) as connection:
        measured = profile(connection)
    return validate(measured)


def require_valid(paths: DatasetPaths) -> None:
    """Refuse a sequences file that breaks its contract, as one changed by hand may.

    Raises:
        ContractError: names every broken rule.
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    failed = broken(check(paths))
    if failed:
        lines = [f"{paths.sequences} breaks its data contract; remake it with `pixrec run`:", *map(str, failed)]
        raise ContractError("\n  ".join(lines))
