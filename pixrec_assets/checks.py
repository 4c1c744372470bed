"""Asset checks: the data contract, and the gate before serving.

Each check has the partitions of its asset: with two datasets the UI shows both outcomes, not only the later one.
"""

import warnings
from typing import Any, Final

import dagster as dg

from pixrec_assets.metadata import flatten_stats, markdown_table
from pixrec_assets.partitions import DATASETS
from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.stages import Stats

CONTRACT: Final = "contract"


def _partitioned_check(partitions: dg.PartitionsDefinition[Any], **spec: Any) -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # without it a check has one outcome for all partitions
        return dg.AssetCheckSpec(partitions_def=partitions, **spec)


#: It does not block: the earlier promotion serves on, and the evaluation reports the new methods.
NOT_WORSE: Final = _partitioned_check(
    DATASETS,
    name="not_worse_than_promoted",
    asset="promoted",
    description="The best method is not significantly worse than the promoted one. If it is, nothing is promoted.",
)


def contract_check(artefact: str) -> dg.AssetCheckSpec:
    """Return the check that an artefact keeps its data contract."""
    return _partitioned_check(
        DATASETS,
        name=CONTRACT,
        asset=artefact,
        blocking=True,
        description="Every expectation of the data contract. A broken one stops all stages that read the artefact.",
    )


def contract_result(artefact: str, paths: DatasetPaths, *, accepted: bool) -> dg.AssetCheckResult:
    """Return the outcome of the contract, failed expectations first.

    `accepted` is whether the stage accepts the artefact; then a failed expectation is a warning.
    """
    results: list[dict[str, Any]] = sorted(
        files.read_json(paths.contract(artefact)), key=lambda each: bool(each["passed"])
    )
    broken = {each["name"]: each["observed"] for each in results if not each["passed"]}
    columns = ("name", "passed", "observed", "expected", "severity")
    table = markdown_table(columns, ([each[column] for column in columns] for each in results))
    return dg.AssetCheckResult(
        check_name=CONTRACT,
        passed=not broken,
        severity=dg.AssetCheckSeverity.WARN if accepted else dg.AssetCheckSeverity.ERROR,
        description=f"{len(results) - len(broken)} of {len(results)} expectations hold",
        metadata={
            "expectations": table,
            "broken": len(broken),
            "checked": len(results),
            **flatten_stats(broken, prefix="failed/"),
        },
    )


def gate_result(stats: Stats) -> dg.AssetCheckResult:
    """Return the decision of the gate, from the statistics of stage `promoted`."""
    return dg.AssetCheckResult(
        check_name=NOT_WORSE.name,
        passed=stats["promoted"],
        severity=dg.AssetCheckSeverity.WARN,
        description="\n".join([stats["verdict"], *stats["warnings"]]),
        metadata=flatten_stats(stats),
    )
