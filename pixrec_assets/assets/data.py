"""Raw files, catalogue, interactions, photos and validated sequences; one partition a dataset."""

from collections.abc import Iterator
from typing import Any

import dagster as dg

from pixrec_assets.checks import checked, contract_check
from pixrec_assets.metadata import of_photos, of_quarantine, of_sequences, of_table
from pixrec_assets.partitions import DATASETS
from pixrec_assets.stage_asset import OWNERS, RAW_ASSETS, materialise, stage_asset, tags_of, work_of
from pixrec_core import files, pipeline
from pixrec_core.settings import Settings

GROUP = "data"

#: What an asset with a contract yields: its check, and unless that failed its materialisation.
Checked = Iterator[dg.AssetCheckResult | dg.MaterializeResult[Any]]


@dg.multi_asset(
    name="raw",
    specs=[
        dg.AssetSpec(
            name,
            group_name=GROUP,
            kinds={"json"},
            owners=OWNERS,
            tags=tags_of(pipeline.RAW),
            code_version=str(pipeline.RAW.version),
            description=f"{name.removeprefix('raw_').title()} as the source has them: one JSON object a line.",
        )
        for name in RAW_ASSETS
    ],
    partitions_def=DATASETS,
)
def raw(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> Iterator[dg.MaterializeResult[Any]]:
    """One download makes both files; each has its own checksum as data version."""
    work = work_of(context, settings)
    stamp = materialise(pipeline.RAW, work)
    manifest = files.read_json(work.paths.raw_manifest)
    for name in RAW_ASSETS:
        entry = manifest[name.removeprefix("raw_")]
        yield dg.MaterializeResult(
            asset_key=name,
            data_version=dg.DataVersion(entry["sha256"]),
            metadata=entry
            | {"path": dg.MetadataValue.path(work.paths.root / entry["path"]), "seconds": stamp["seconds"]},
        )


@stage_asset(
    pipeline.ITEMS,
    group=GROUP,
    kinds={"polars", "parquet", "greatexpectations"},
    reads=["raw_metadata"],
    check_specs=[contract_check("items")],
)
def items(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> Checked:
    """The catalogue, one row an item, cleaned of markup; a line that cannot be read is counted and kept aside."""
    work = work_of(context, settings)
    yield from checked(
        pipeline.ITEMS, work, lambda: (of_table(work.paths.items), of_quarantine(work.paths.items_quarantine))
    )


@stage_asset(
    pipeline.INTERACTIONS,
    group=GROUP,
    kinds={"polars", "parquet", "greatexpectations"},
    reads=["raw_reviews", "items"],
    check_specs=[contract_check("interactions")],
)
def interactions(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> Checked:
    """One row a purchase or review; ties of time keep the order of the file. The catalogue says which are known."""
    work = work_of(context, settings)
    yield from checked(
        pipeline.INTERACTIONS,
        work,
        lambda: (of_table(work.paths.interactions), of_quarantine(work.paths.interactions_quarantine)),
    )


@stage_asset(
    pipeline.IMAGES,
    group=GROUP,
    kinds={"pillow", "jpeg", "greatexpectations"},
    pool="downloads",  # `per_host` bounds one download; two at a time would ask a host twice as much
    retry_policy=dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL),
    check_specs=[contract_check("images")],
)
def images(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> Checked:
    """Only missing photos are fetched, so that a retry goes on where the run before was cut off."""
    work = work_of(context, settings)
    yield from checked(pipeline.IMAGES, work, lambda: (of_photos(work.paths), of_table(work.paths.images_manifest)))


@stage_asset(
    pipeline.SEQUENCES,
    group=GROUP,
    kinds={"duckdb", "greatexpectations"},
    check_specs=[contract_check("sequences")],
)
def sequences(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> Checked:
    """Histories in order, split, and held to the data contract before anything may read them."""
    work = work_of(context, settings)
    yield from checked(pipeline.SEQUENCES, work, lambda: (of_sequences(work.paths.sequences),))
