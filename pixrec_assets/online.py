"""The asset of online metrics, from the server's log and later purchases. No stage: it follows no training."""

from typing import Any

import dagster as dg

from pixrec_assets.metadata import flatten_stats, markdown_table
from pixrec_assets.partitions import DATASETS
from pixrec_assets.stage_asset import OWNERS, RESOURCES, work_of
from pixrec_core import files


@dg.asset(
    partitions_def=DATASETS,
    deps=["interactions"],
    group_name="serving",
    kinds={"polars"},
    owners=OWNERS,
    required_resource_keys=RESOURCES,
)
def online_metrics(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    """Hit rates of the lists that the server showed (`server.log_answers`), by method and position."""
    from pixrec_core.evaluation.online import measure_online

    work = work_of(context)
    days = work.settings.server.attribution_days
    measured = measure_online(work.paths.online, files.require(work.paths.interactions), days)
    files.write_json(work.paths.online_metrics, measured)
    rows = [
        [name, f"{each['lists']:,}", f"{each['hits']:,}", f"{each['hit_rate']:.2%}"]
        for name, each in measured["methods"].items()
    ]
    table = markdown_table(("method", "lists", "with a purchase", "share"), rows)
    path = dg.MetadataValue.path(work.paths.online_metrics)
    return dg.MaterializeResult(metadata={"hit_rates": table, "path": path, **flatten_stats(measured)})
