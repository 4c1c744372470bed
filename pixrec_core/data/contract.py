"""Artefacts held to the data contract (`rules`).

Great Expectations reads neither Polars nor DuckDB, so DuckDB measures an artefact (`profile`,
`source_profiles`) and Great Expectations holds the one row of numbers against the artefact's
suite. That also keeps memory flat: a million interactions reach it as one row.
"""

import logging
import os
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, Final

from pixrec_core import files
from pixrec_core.data import database, source_profiles
from pixrec_core.data.profile import profile
from pixrec_core.data.rules import RULES, Artefact, Rule, Severity
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths

_log: Final = logging.getLogger(__name__)

#: Measures of the artefacts that are held to the contract where they lie; sequences are before they get there.
_MEASURES: Final[dict[Artefact, Callable[[DatasetPaths], source_profiles.Profile]]] = {
    "items": source_profiles.items,
    "interactions": source_profiles.interactions,
    "images": source_profiles.images,
}


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


@cache
def _great_expectations() -> tuple[Any, Any]:
    """The module, and where rows go; imported on first use (seconds), telemetry off."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"  # read on import
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
    """The expectations look at a column's minimum rather than its values: of those a null would pass."""
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


def validate(artefact: Artefact, measured: dict[str, Any]) -> list[CheckResult]:
    """Hold a profile against the contract.

    Args:
        artefact: whose rules hold.
        measured: one number a name, as its profile has them.

    Returns:
        One result a rule, in their order.
    """
    import pandas as pd

    _, batch_definition = _great_expectations()
    batch = batch_definition.get_batch({"dataframe": pd.DataFrame([measured]).astype(float)})
    outcomes = {each.expectation_config.kwargs["column"]: each for each in batch.validate(_suite(artefact)).results}
    return [_result(rule, outcomes[rule.name]) for rule in RULES[artefact]]


def _result(rule: Rule, outcome: Any) -> CheckResult:
    observed = outcome.result.get("observed_value")
    number = None if observed is None else float(observed)
    return CheckResult(rule.name, bool(outcome.success), number, rule.expected, rule.severity)


def broken(results: list[CheckResult]) -> list[CheckResult]:
    """The failed checks that make an artefact unfit; warnings do not."""
    return [r for r in results if not r.passed and r.severity == "error"]


def hold(artefact: Artefact, measured: dict[str, Any], paths: DatasetPaths) -> list[CheckResult]:
    """Validate a profile, write all results and log what only warns; it is for the caller to refuse."""
    results = validate(artefact, measured)
    write(artefact, results, paths)
    for result in results:
        if not result.passed and result.severity == "warn":
            _log.warning("data contract of %s: %s", artefact, result)
    return results


def write(artefact: Artefact, results: list[CheckResult], paths: DatasetPaths) -> None:
    """Write a list of all results: of the last artefact made, whether it was accepted or refused."""
    files.write_json(paths.contract(artefact), [asdict(result) for result in results])


def enforce(artefact: Artefact, paths: DatasetPaths) -> dict[str, Any]:
    """Measure an artefact that was just made and hold it to its contract.

    Returns:
        The profile, without what the contract holds to 0.

    Raises:
        ContractError: the artefact breaks its contract; its stage then leaves no stamp, so nothing reads it.
        ArtefactError: it is damaged.
    """
    measured = _MEASURES[artefact](paths)
    failed = broken(hold(artefact, measured, paths))
    if failed:
        raise ContractError(
            "\n  ".join([f"{artefact} in {paths.root} break their data contract; mend the source:", *map(str, failed)])
        )
    return informative_metrics(artefact, measured)


def informative_metrics(artefact: Artefact, measured: dict[str, Any]) -> dict[str, Any]:
    """A profile without the numbers that are 0 in every accepted artefact."""
    always = {rule.name for rule in RULES[artefact] if rule.high == 0}
    return {name: number for name, number in measured.items() if name not in always}


def check(paths: DatasetPaths) -> list[CheckResult]:
    """Measure the stored sequences file anew and hold it against the contract.

    Raises:
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    with database.reading(paths.sequences) as connection:
        measured = profile(connection)
    return validate("sequences", measured)


def require_valid(paths: DatasetPaths) -> None:
    """Refuse a sequences file that breaks its contract, as one that was edited by hand may.

    The results that the sequences stage wrote are trusted unless the file has changed since.

    Raises:
        ContractError: names every broken rule.
        MissingArtefactError: the sequences stage has not run.
        ArtefactError: the file is damaged.
    """
    if _is_accepted(paths):
        return
    failed = broken(check(paths))
    if failed:
        lines = [f"{paths.sequences} breaks its data contract; build it again with `pixrec run`:", *map(str, failed)]
        raise ContractError("\n  ".join(lines))


def _is_accepted(paths: DatasetPaths) -> bool:
    """Return whether the stored results accept the sequences file and are newer than the file."""
    stored = paths.contract("sequences")
    modified = files.require(paths.sequences).stat().st_mtime_ns
    if not stored.exists() or stored.stat().st_mtime_ns <= modified:
        return False
    return not broken([CheckResult(**result) for result in files.read_json(stored)])
