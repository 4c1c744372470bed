"""Baselines, metrics and the report; one partition a dataset, all its variants compared."""

from typing import Any

import dagster as dg

from pixrec_assets.headline import COLUMNS, headline, rows_of
from pixrec_assets.metadata import markdown_table, of_stats
from pixrec_assets.stage_asset import materialise, result, stage_asset, work_of
from pixrec_core import pipeline
from pixrec_core.settings import Settings

GROUP = "evaluation"


@stage_asset(pipeline.BASELINES, group=GROUP, kinds={"polars", "scipy"})
def baselines(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Any]:
    """What a model must beat before it is worth its price: among others repeating the last item, and popularity."""
    work = work_of(context, settings)
    return result(pipeline.BASELINES, work, materialise(pipeline.BASELINES, work))


@stage_asset(pipeline.EVALUATION, group=GROUP, kinds={"polars", "json"})
def evaluation(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Any]:
    """Recall, NDCG and MRR with their confidence intervals; cold items apart."""
    work = work_of(context, settings)
    stamp = materialise(pipeline.EVALUATION, work)
    measured = headline(work.paths)
    headlines = {"headline": markdown_table(COLUMNS, rows_of(measured))}
    return result(pipeline.EVALUATION, work, stamp, headlines, of_stats(measured))


@stage_asset(pipeline.REPORT, group=GROUP, kinds={"html", "markdown"})
def report(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Any]:
    """One page to read: how well, for whom, why; and pictures of what was recommended."""
    work = work_of(context, settings)
    stamp = materialise(pipeline.REPORT, work)
    page, text = work.paths.report / "index.html", work.paths.report / "report.md"
    shown = {
        "report": dg.MetadataValue.md(text.read_text(encoding="utf-8")),
        "html": dg.MetadataValue.path(page),  # no link: browsers follow none from a web page to a file
    }
    return result(pipeline.REPORT, work, stamp, shown)
