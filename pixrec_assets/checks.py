"""The data contract as an asset check: it is evaluated where the data are made, so both share one reading."""

from typing import Any, Final

import dagster as dg

from pixrec_assets.metadata import markdown_table
from pixrec_core import files
from pixrec_core.paths import DatasetPaths

CONTRACT: Final = dg.AssetCheckSpec(
    name="contract",
    asset="sequences",
    blocking=True,
    description="Every expectation of the data contract; a broken one stops all that would learn from the data.",
)


def contract_result(paths: DatasetPaths, *, kept: bool) -> dg.AssetCheckResult:
    """The contract's outcome, failing expectations first.

    Args:
        paths: of the dataset whose contract was checked.
        kept: whether the stage accepts the data; what fails in accepted data is a warning.
    """
    expectations: list[dict[str, Any]] = sorted(files.read_json(paths.contract), key=lambda each: bool(each["passed"]))
    broken = [each for each in expectations if not each["passed"]]
    columns = ("name", "passed", "observed", "expected", "severity")
    table = markdown_table(columns, ([each[column] for column in columns] for each in expectations))
    return dg.AssetCheckResult(
        check_name=CONTRACT.name,
        passed=not broken,
        severity=dg.AssetCheckSeverity.WARN if kept else dg.AssetCheckSeverity.ERROR,
        description=f"{len(expectations) - len(broken)} of {len(expectations)} expectations hold",
        metadata={"expectations": table, "broken": len(broken), "checked": len(expectations)},
    )
