"""Assets of serving that are no stages, as no training follows from them: refreshed promotions and online metrics."""

from typing import Any, Final

import dagster as dg

from pixrec_assets.metadata import flatten_stats, markdown_table
from pixrec_assets.partitions import DATASETS
from pixrec_assets.stage_asset import OWNERS, RESOURCES, work_of
from pixrec_core import files, pipeline


@dg.asset(
    partitions_def=DATASETS,
    deps=["sequences", "item_features"],
    group_name="serving",
    kinds={"pytorch"},
    owners=OWNERS,
    required_resource_keys=RESOURCES,
)
def refreshed(context: dg.AssetExecutionContext) -> dg.MaterializeResult[Any]:
    """What serves, on present orders, products and photos, without a training."""
    stats = pipeline.refresh(work_of(context))
    return dg.MaterializeResult(metadata=flatten_stats(stats))


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


SERVING_ASSETS: Final = (refreshed, online_metrics)
