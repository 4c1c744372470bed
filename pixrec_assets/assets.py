"""The assets: one per stage of the pipeline, and what the UI shows of its artefact."""

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Final

import dagster as dg

from pixrec_assets.checks import NOT_WORSE, contract_check, gate_result
from pixrec_assets.headline import COLUMNS, headline, rows_of
from pixrec_assets.metadata import (
    Metadata,
    flatten_stats,
    markdown_table,
    photo_metadata,
    quarantine_metadata,
    sequences_metadata,
    table_metadata,
)
from pixrec_assets.partitions import DATASETS, JOINT, SETTINGS
from pixrec_assets.stage_asset import (
    OWNERS,
    RAW_ASSETS,
    RESOURCES,
    materialise,
    raising_failures,
    section_tags,
    stage_asset,
    work_of,
)
from pixrec_core import files, pipeline
from pixrec_core.stages import Work


@dg.multi_asset(
    name="raw",
    specs=[
        dg.AssetSpec(
            name,
            group_name="data",
            kinds={"json"},
            owners=OWNERS,
            tags=section_tags(pipeline.RAW),
            code_version=str(pipeline.RAW.version),
            description=f"{name.removeprefix('raw_').title()} as the source provides them: one JSON object per line.",
        )
        for name in RAW_ASSETS
    ],
    partitions_def=DATASETS,
    required_resource_keys=RESOURCES,
    config_schema={},
)
def raw(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult[Any]]:
    """One download builds both files; the data version of each is its checksum."""
    work = work_of(context)
    stamp = materialise(pipeline.RAW, work, context.resources.inputs)
    manifest = files.read_json(work.paths.raw_manifest)
    for name in RAW_ASSETS:
        entry = manifest[name.removeprefix("raw_")]
        path = dg.MetadataValue.path(work.paths.root / entry["path"])
        yield dg.MaterializeResult(
            asset_key=name,
            data_version=dg.DataVersion(entry.get("version", entry["sha256"])),
            metadata=entry | {"path": path, "seconds": stamp["seconds"]},
        )


def _items(work: Work) -> Metadata:
    return table_metadata(work.paths.items) | quarantine_metadata(work.paths.items_quarantine)


def _interactions(work: Work) -> Metadata:
    return table_metadata(work.paths.interactions) | quarantine_metadata(work.paths.interactions_quarantine)


def _images(work: Work) -> Metadata:
    return photo_metadata(work.paths) | table_metadata(work.paths.images_manifest)


def _evaluation(work: Work) -> Metadata:
    measured = headline(work.paths)
    return {"headline": markdown_table(COLUMNS, rows_of(measured))} | flatten_stats(measured)


def _report(work: Work) -> Metadata:
    text = (work.paths.report / "report.md").read_text(encoding="utf-8")
    page = dg.MetadataValue.path(work.paths.report / "index.html")  # browsers do not follow links from http to a file
    return {"report": dg.MetadataValue.md(text), "html": page}


#: Of what serves, if settings name an age. The policy is of the asset: of several datasets the newest counts.
FRESHNESS: Final = (
    dg.FreshnessPolicy.time_window(timedelta(days=SETTINGS.dagster.max_age_days))
    if SETTINGS.dagster.max_age_days
    else None
)

#: One training at a time. A training that was killed for its memory is tried once more, and resumes.
TRAINING: Final[Mapping[str, Any]] = {
    "kinds": {"pytorch", "huggingface"},
    "pool": "gpu",
    "retry_policy": dg.RetryPolicy(max_retries=1, delay=10),
    "observes_epochs": True,
}

DATA_ASSETS: Final = (
    raw,
    stage_asset(
        pipeline.ITEMS,
        "One row per item, without markup. An unreadable line is counted and moved to the quarantine table.",
        group="data",
        kinds={"polars", "parquet", "greatexpectations"},
        reads=["raw_metadata"],
        check_specs=[contract_check("items")],
        show=_items,
    ),
    stage_asset(
        pipeline.INTERACTIONS,
        "One row per purchase or review. Rows of the same time keep the order of the file.",
        group="data",
        kinds={"polars", "parquet", "greatexpectations"},
        reads=["raw_reviews", "items"],
        check_specs=[contract_check("interactions")],
        show=_interactions,
    ),
    stage_asset(
        pipeline.IMAGES,
        "Only missing photos are downloaded, so a retry continues where the previous run stopped.",
        group="data",
        kinds={"pillow", "jpeg", "greatexpectations"},
        pool="downloads",  # `per_host` limits one download; two at a time would double the load on a host
        retry_policy=dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL),
        check_specs=[contract_check("images")],
        show=_images,
    ),
    stage_asset(
        pipeline.SEQUENCES,
        "Histories in order, split, and validated against the data contract before any stage reads them.",
        group="data",
        kinds={"duckdb", "greatexpectations"},
        check_specs=[contract_check("sequences")],
        show=lambda work: sequences_metadata(work.paths.sequences),
    ),
    stage_asset(
        pipeline.ITEM_FEATURES,
        "A text or photo that has not changed is not encoded again, unless the encoder was fitted on the catalogue.",
        group="data",
        kinds={"numpy", "scikitlearn"},
    ),
)

MODEL_ASSETS: Final = (
    stage_asset(
        pipeline.CHECKPOINT,
        "Loss and validation metrics appear after each epoch. A killed run resumes after its last epoch.",
        group="model",
        **TRAINING,
    ),
    stage_asset(
        pipeline.ITEM_VECTORS,
        "Cold items have vectors too: title and photo are enough.",
        group="model",
        kinds={"pytorch", "numpy"},
    ),
    stage_asset(
        pipeline.ITEM_INDEX,
        "Returns the nearest items of a user vector in milliseconds.",
        group="model",
        kinds={"faiss"},
    ),
    stage_asset(
        pipeline.RANKING,
        "One row per user and rank, in the same table format as the baselines.",
        group="model",
        kinds={"pytorch", "parquet"},
        show=lambda work: table_metadata(work.variant_paths.ranking),
    ),
)

EVALUATION_ASSETS: Final = (
    stage_asset(
        pipeline.BASELINES,
        "A model must beat these, among them popularity and repeating the last item.",
        group="evaluation",
        kinds={"polars", "scipy"},
    ),
    stage_asset(
        pipeline.BLEND,
        "A method is dropped if validation users gain without it; it then costs nothing when serving.",
        group="evaluation",
        kinds={"lightgbm", "parquet"},
    ),
    stage_asset(
        pipeline.PROMOTED,
        "`pixrec recommend` reads it. If the check fails, the earlier promotion still serves.",
        group="evaluation",
        kinds={"pytorch", "faiss"},
        check_specs=[NOT_WORSE],
        check=gate_result,
        freshness_policy=FRESHNESS,
    ),
    stage_asset(
        pipeline.REFIT,
        "It serves afterwards. Reported metrics stay those of the measured promotion.",
        group="evaluation",
        kinds={"pytorch", "faiss"},
        pool="gpu",
        retry_policy=dg.RetryPolicy(max_retries=1, delay=10),
    ),
    stage_asset(
        pipeline.EVALUATION,
        "Recall, NDCG and MRR with confidence intervals; cold items separately.",
        group="evaluation",
        kinds={"polars", "json"},
        show=_evaluation,
    ),
    stage_asset(
        pipeline.REPORT,
        "One page: the quality of each method, by group of users, with example recommendations.",
        group="evaluation",
        kinds={"html", "markdown"},
        show=_report,
    ),
)

#: Exists only if settings name a joint training.
JOINT_ASSETS: Final = (
    (
        stage_asset(
            pipeline.JOINT_CHECKPOINT,
            "The first of two stages of training. Validation metrics are means over its datasets.",
            group=JOINT,
            **TRAINING,
        ),
    )
    if SETTINGS.joint
    else ()
)

ASSETS: Final = (*DATA_ASSETS, *JOINT_ASSETS, *MODEL_ASSETS, *EVALUATION_ASSETS)


# Assets of serving are no stages, as no training follows from them.


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
    with raising_failures(work := work_of(context)):
        stats = pipeline.refresh(work)
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
    days, zone = work.settings.server.attribution_days, work.dataset_settings.source.options.get("time_zone", "UTC")
    with raising_failures(work):
        measured = measure_online(work.paths.online, files.require(work.paths.interactions), days, zone)
    files.write_json(work.paths.online_metrics, measured)
    rows = [
        [name, f"{each['lists']:,}", f"{each['hits']:,}", f"{each['hit_rate']:.2%}"]
        for name, each in measured["methods"].items()
    ]
    table = markdown_table(("method", "lists", "with a purchase", "share"), rows)
    path = dg.MetadataValue.path(work.paths.online_metrics)
    return dg.MaterializeResult(metadata={"hit_rates": table, "path": path, **flatten_stats(measured)})


SERVING_ASSETS: Final = (refreshed, online_metrics)
