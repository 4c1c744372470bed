"""From training a dual tower to what serves; one partition a dataset, or a joint training, and variant."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import dagster as dg

from pixrec_assets.checks import NOT_WORSE, gate_result
from pixrec_assets.metadata import of_stats, of_table
from pixrec_assets.partitions import JOINT
from pixrec_assets.stage_asset import materialise, result, stage_asset, work_of
from pixrec_core import pipeline
from pixrec_core.settings import Settings

GROUP = "model"


#: One training at a time; one that was killed for its memory is tried again, and resumes.
TRAINING: Final[Mapping[str, Any]] = {
    "kinds": {"pytorch", "huggingface"},
    "pool": "gpu",
    "retry_policy": dg.RetryPolicy(max_retries=1, delay=10),
}


@stage_asset(pipeline.JOINT_CHECKPOINT, group=JOINT, **TRAINING)
def joint_checkpoint(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]
) -> dg.MaterializeResult[Any]:
    """The first of two stages of training; the validation metrics are means over its datasets."""
    work = work_of(context, settings)
    stamp = materialise(pipeline.JOINT_CHECKPOINT, work, on_epoch=_observer(context))
    return result(pipeline.JOINT_CHECKPOINT, work, stamp)


@stage_asset(pipeline.CHECKPOINT, group=GROUP, **TRAINING)
def checkpoint(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Any]:
    """Loss and validation metrics appear after each epoch; a run that was killed resumes where it stood."""
    work = work_of(context, settings)
    stamp = materialise(pipeline.CHECKPOINT, work, on_epoch=_observer(context))
    return result(pipeline.CHECKPOINT, work, stamp)


def _observer(context: dg.AssetExecutionContext) -> Callable[[Mapping[str, Any]], None]:
    """Makes each epoch an observation of the run's asset and partition, which the UI plots."""

    def observe(epoch: Mapping[str, Any]) -> None:
        observation = dg.AssetObservation(
            context.asset_key, partition=str(context.partition_key), metadata=of_stats(epoch)
        )
        context.log_event(observation)

    return observe


@stage_asset(pipeline.ITEM_VECTORS, group=GROUP, kinds={"pytorch", "numpy"})
def item_vectors(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Any]:
    """Cold items have one too: title and photo suffice."""
    work = work_of(context, settings)
    return result(pipeline.ITEM_VECTORS, work, materialise(pipeline.ITEM_VECTORS, work))


@stage_asset(pipeline.ITEM_INDEX, group=GROUP, kinds={"faiss"})
def item_index(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Any]:
    """What answers a user vector with its nearest items in milliseconds."""
    work = work_of(context, settings)
    return result(pipeline.ITEM_INDEX, work, materialise(pipeline.ITEM_INDEX, work))


@stage_asset(pipeline.RANKING, group=GROUP, kinds={"pytorch", "parquet"})
def ranking(context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]) -> dg.MaterializeResult[Any]:
    """One row a user and rank, in the same table that every baseline fills."""
    work = work_of(context, settings)
    stamp = materialise(pipeline.RANKING, work)
    return result(pipeline.RANKING, work, stamp, of_table(work.variant_paths.ranking))


@stage_asset(pipeline.PROMOTED, group=GROUP, kinds={"pytorch", "faiss"}, check_specs=[NOT_WORSE])
def promoted(
    context: dg.AssetExecutionContext, settings: dg.ResourceParam[Settings]
) -> Iterator[dg.MaterializeResult[Any]]:
    """What `pixrec recommend` reads. Where the check failed, it is still what was promoted before."""
    work = work_of(context, settings)
    stamp = materialise(pipeline.PROMOTED, work)
    yield result(pipeline.PROMOTED, work, stamp, check_results=[gate_result(stamp["stats"])])
