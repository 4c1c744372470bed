"""Asset checks: the data contract, and the gate before serving.

Each is evaluated where its artefact is made, so both share one reading. Each has the partitions of its asset: of two
datasets the UI shows both outcomes, not just the later one.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import dagster as dg

from pixrec_assets.metadata import Metadata, markdown_table, of_stats
from pixrec_assets.partitions import DATASET_VARIANTS, DATASETS
from pixrec_assets.stage_asset import materialise, result
from pixrec_core import files
from pixrec_core.errors import ContractError
from pixrec_core.paths import DatasetPaths
from pixrec_core.stages import Stage, Stats, Work

NAME: Final = "contract"


def _partitioned(partitions: dg.PartitionsDefinition[Any], **spec: Any) -> dg.AssetCheckSpec:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.PreviewWarning)  # without it a check has one outcome for all partitions
        return dg.AssetCheckSpec(partitions_def=partitions, **spec)


#: It blocks nothing: what served before goes on serving, and the evaluation tells of the new checkpoint anyway.
NOT_WORSE: Final = _partitioned(
    DATASET_VARIANTS,
    name="not_worse_than_promoted",
    asset="promoted",
    description="The new checkpoint is not surely worse than what served before; if it is, it was not promoted.",
)


def contract_check(artefact: str) -> dg.AssetCheckSpec:
    """The check that the contract of an artefact holds."""
    return _partitioned(
        DATASETS,
        name=NAME,
        asset=artefact,
        blocking=True,
        description="Every expectation of the data contract; a broken one stops all that would learn from the data.",
    )


def checked(
    stage: Stage, work: Work, shown: Callable[[], Sequence[Metadata]]
) -> Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]:
    """Run a stage whose artefact has a contract, and tell how it was kept, or what broke it.

    Args:
        stage: what to run.
        work: where.
        shown: metadata of the artefact, asked for when it is there.

    Raises:
        dagster.Failure: as `materialise` does.
    """
    try:
        stamp = materialise(stage, work)
    except dg.Failure as failure:
        if isinstance(failure.__cause__, ContractError):
            yield contract_result(stage.name, work.paths, kept=False)
        raise
    yield result(stage, work, stamp, *shown(), check_results=[contract_result(stage.name, work.paths, kept=True)])


def contract_result(artefact: str, paths: DatasetPaths, *, kept: bool) -> dg.AssetCheckResult:
    """The contract's outcome, failing expectations first.

    Args:
        artefact: what was checked.
        paths: of its dataset.
        kept: whether the stage accepts the artefact; what fails in an accepted one is a warning.
    """
    results: list[dict[str, Any]] = sorted(
        files.read_json(paths.contract(artefact)), key=lambda each: bool(each["passed"])
    )
    broken = {each["name"]: each["observed"] for each in results if not each["passed"]}
    columns = ("name", "passed", "observed", "expected", "severity")
    table = markdown_table(columns, ([each[column] for column in columns] for each in results))
    return dg.AssetCheckResult(
        check_name=NAME,
        passed=not broken,
        severity=dg.AssetCheckSeverity.WARN if kept else dg.AssetCheckSeverity.ERROR,
        description=f"{len(results) - len(broken)} of {len(results)} expectations hold",
        metadata={
            "expectations": table,
            "broken": len(broken),
            "checked": len(results),
            **of_stats(broken, prefix="failed/"),
        },
    )


def gate_result(stats: Stats) -> dg.AssetCheckResult:
    """What the gate decided, from the stats of stage `promoted`."""
    return dg.AssetCheckResult(
        check_name=NOT_WORSE.name,
        passed=stats["promoted"],
        severity=dg.AssetCheckSeverity.WARN,
        description=stats["verdict"],
        metadata=of_stats(stats),
    )
