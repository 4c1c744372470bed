"""From a stage of the core to a Dagster asset: lineage, partitions and versions come from the stage itself."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import dagster as dg

from pixrec_assets.metadata import Metadata, of_stats
from pixrec_assets.partitions import (
    ACROSS_VARIANTS,
    DATASET,
    DATASET_VARIANTS,
    DATASETS,
    JOINED,
    JOINT,
    JOINT_VARIANTS,
    SETTINGS,
    STARTING,
    VARIANT,
)
from pixrec_core.errors import LostProcessError, PixRecError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Stamp, Work

OWNERS: Final = ["team:pixrec"]

INTERRUPTED: Final = "interrupted"

#: The raw stage makes two files, and each is an asset of its own.
RAW_ASSETS: Final = ("raw_reviews", "raw_metadata")

PARTITIONS: Final = {"dataset": DATASETS, "variant": DATASET_VARIANTS, "joint": JOINT_VARIANTS}

#: How the partitions of what is read become those of what reads it; within one kind they are the same.
MAPPINGS: Final[Mapping[tuple[str, str], dg.PartitionMapping]] = {
    ("dataset", "variant"): ACROSS_VARIANTS,
    ("variant", "dataset"): ACROSS_VARIANTS,
    ("dataset", "joint"): JOINED,
    ("joint", "variant"): STARTING,
}

#: Follow what the inputs became: one that was made again and came out the same (a weekly download without news)
#: sets off no training. Data that broke their contract were not made, so they set off nothing either; the
#: condition on blocking checks is left out, since it takes a warning for a failure and would wait for ever.
FOLLOW_INPUTS: Final = (
    dg.AutomationCondition.eager()
    .replace(
        "newly_updated_without_root",
        dg.AutomationCondition.data_version_changed() & ~dg.AutomationCondition.executed_with_root_target(),
    )
    .with_label("an input came out different")
)

#: The same, a tick later where an input is about to follow too. Inputs of another partitioning are made in runs of
#: their own: an evaluation must not start beside the trainings that it compares.
FOLLOW_SETTLED_INPUTS: Final = (
    FOLLOW_INPUTS
    & ~dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    )
).with_label("an input came out different and none is about to")


def stage_asset(
    stage: Stage, *, group: str, kinds: set[str], reads: Sequence[str] = (), **options: Any
) -> Callable[[Callable[..., Any]], dg.AssetsDefinition]:
    """Decorate the function that materialises `stage` as the asset of the same name.

    Args:
        stage: whose inputs, version and partitioning the asset has.
        group: `data`, `joint`, `model` or `evaluation`.
        kinds: what the UI draws as badges; three at most.
        reads: asset names of the inputs where they are not the names of the stage's inputs.
        options: passed to `dagster.asset`.
    """

    def decorate(body: Callable[..., Any]) -> dg.AssetsDefinition:
        asset: dg.AssetsDefinition = dg.asset(
            name=stage.name,
            deps=list(reads) if reads else [_dependency(stage, each) for each in stage.inputs if is_used(each)],
            partitions_def=PARTITIONS[stage.partitioned_by],
            group_name=group,
            kinds=kinds,
            owners=OWNERS,
            tags=tags_of(stage),
            code_version=str(stage.version),
            description=describe(stage, body),
            automation_condition=None if group == "data" else _condition(stage),
            **options,
        )(body)
        return asset

    return decorate


def _condition(stage: Stage) -> dg.AutomationCondition[Any]:
    partitionings = {source.partitioned_by for source in stage.inputs if is_used(source)}
    return FOLLOW_SETTLED_INPUTS if len(partitionings) > 1 else FOLLOW_INPUTS


def is_used(stage: Stage) -> bool:
    """Whether settings give a stage anything to do: without a joint training there is no asset of one."""
    return stage.partitioned_by != "joint" or bool(SETTINGS.joint)


def asset_keys(stage: Stage) -> list[dg.AssetKey]:
    """Assets that a stage materialises."""
    return [dg.AssetKey(name) for name in (RAW_ASSETS if stage.name == "raw" else (stage.name,))]


def describe(stage: Stage, body: Callable[..., Any]) -> str:
    """What the stage does, then what the asset's own docstring adds."""
    return f"{inspect.getdoc(stage.run)}\n\n{inspect.getdoc(body)}"


def tags_of(stage: Stage) -> Mapping[str, str]:
    """The settings sections that change the artefact, so that they can be searched for."""
    return {f"pixrec/{section}": "" for section in stage.config_sections}


def _dependency(stage: Stage, source: Stage) -> dg.AssetDep:
    return dg.AssetDep(source.name, partition_mapping=MAPPINGS.get((source.partitioned_by, stage.partitioned_by)))


def work_of(context: dg.AssetExecutionContext, settings: Settings) -> Work:
    """The dataset or joint training, and the variant where there is one, that the run's partition names."""
    key = context.partition_key
    if isinstance(key, dg.MultiPartitionKey):
        names = key.keys_by_dimension
        return Work(settings, names[JOINT] if JOINT in names else names[DATASET], names[VARIANT])
    return Work(settings, key)


def materialise(stage: Stage, work: Work, **callbacks: Any) -> Stamp:
    """Run the stage.

    Raises:
        dagster.Failure: the stage found something that its user can mend, and another try would find it
            again; or its user stopped it, which a retry policy would otherwise take for a crash.
    """
    try:
        return stage.materialise(work, **callbacks)
    except PixRecError as error:
        again = isinstance(error, LostProcessError)
        raise dg.Failure(f"{type(error).__name__}: {error}", allow_retries=again) from error
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
        raise dg.Failure(INTERRUPTED, allow_retries=False) from interrupt


def result(stage: Stage, work: Work, stamp: Stamp, *shown: Metadata, **more: Any) -> dg.MaterializeResult[Any]:
    """What Dagster records of a finished stage: its data version and metadata.

    The UI lists metadata in this order: what is `shown`, where the artefact lies, then the stage's numbers, of which
    there may be dozens.
    """
    first = {name: value for each in shown for name, value in each.items()}
    rest = {"path": dg.MetadataValue.path(stage.artefact(work)), "seconds": stamp["seconds"]} | of_stats(stamp["stats"])
    metadata = first | {name: value for name, value in rest.items() if name not in first}
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(stamp["data_version"]), **more)
