"""Turns a stage of the core into a Dagster asset: lineage, partitions and versions come from the stage."""

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import dagster as dg
from pydantic import ValidationError

from pixrec_assets.checks import contract_result
from pixrec_assets.headline import format_figure
from pixrec_assets.metadata import Metadata, flatten_stats
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
from pixrec_core import pipeline
from pixrec_core.errors import ContractError, LostProcessError, PixRecError
from pixrec_core.settings import TrainingSettings, error_lines
from pixrec_core.stages import Stage, StageInputs, Stamp, Stats, Work

OWNERS: Final = ["team:pixrec"]

#: Dagster's type of each type of a JSON schema.
TYPES: Final = {"integer": int, "number": float, "boolean": bool, "string": str}

#: Resources of every asset: the settings, and the stage's inputs if the caller has inspected them, else None.
RESOURCES: Final = {"settings", "inputs"}

INTERRUPTED: Final = "interrupted"

#: Metadata key by which the UI links an asset to its source.
CODE_REFERENCES: Final = "dagster/code_references"

#: What the launchpad offers for one run: each setting of `[training]`, by default that of pixrec.toml.
TRAINING_CONFIG: Final = {
    name: dg.Field(TYPES[schema["type"]], is_required=False, description=schema["description"])
    for name, schema in TrainingSettings.model_json_schema()["properties"].items()
    if schema.get("type") in TYPES
}

#: The raw stage builds two files, and each is an asset.
RAW_ASSETS: Final = ("raw_reviews", "raw_metadata")

PARTITIONS: Final = {"dataset": DATASETS, "variant": DATASET_VARIANTS, "joint": JOINT_VARIANTS}

#: Partition mappings between an input and the asset that reads it; None within one partitioning.
MAPPINGS: Final[Mapping[tuple[str, str], dg.PartitionMapping]] = {
    ("dataset", "variant"): ACROSS_VARIANTS,
    ("variant", "dataset"): ACROSS_VARIANTS,
    ("dataset", "joint"): JOINED,
    ("joint", "variant"): STARTING,
}

#: Follow the content of inputs: an input that was rebuilt with the same content (a weekly download without news)
#: starts no training. Data that broke their contract are not materialised, so they start nothing either. The condition
#: on blocking checks is left out: it takes a warning for a failure and would wait for ever.
FOLLOW_INPUTS: Final = (
    dg.AutomationCondition.eager()
    .replace(
        "newly_updated_without_root",
        dg.AutomationCondition.data_version_changed() & ~dg.AutomationCondition.executed_with_root_target(),
    )
    .with_label("an input changed")
)

#: The same, but one tick later if an input is about to change too. Inputs of another partitioning are built in runs of
#: their own, and an evaluation must not start while the trainings that it compares are running.
FOLLOW_SETTLED_INPUTS: Final = (
    FOLLOW_INPUTS
    & ~dg.AutomationCondition.any_deps_match(
        dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    )
).with_label("an input changed and no other is about to")


def stage_asset(
    stage: Stage,
    details: str,
    *,
    group: str,
    kinds: set[str],
    reads: Sequence[str] = (),
    show: Callable[[Work], Metadata] = lambda _: {},
    check: Callable[[Stats], dg.AssetCheckResult] | None = None,
    observes_epochs: bool = False,
    **options: Any,
) -> dg.AssetsDefinition:
    """Return the asset that materialises a stage.

    Args:
        stage: the stage; the asset has its name, inputs, version and partitioning.
        details: second paragraph of the asset's description; the first is the docstring of the stage.
        group: `data`, `joint`, `model` or `evaluation`.
        kinds: badges in the UI, at most three.
        reads: asset names of the inputs if they differ from the names of the stage's inputs.
        show: metadata of the artefact to list first.
        check: evaluates the asset's check from the stage's statistics; the check of a contract needs none.
        observes_epochs: whether each epoch becomes an observation, which the UI plots.
        options: passed to `dagster.asset`.
    """

    def build(context: dg.AssetExecutionContext) -> Iterator[Any]:
        work = work_of(context)
        present: Stage = getattr(pipeline, stage.name.upper())
        callbacks = {"on_epoch": _epoch_observer(context)} if observes_epochs else {}
        has_contract = "check_specs" in options and check is None
        try:
            stamp = materialise(present, work, context.resources.inputs, **callbacks)
        except dg.Failure as failure:
            if has_contract and isinstance(failure.__cause__, ContractError):
                yield contract_result(stage.name, work.paths, accepted=False)
            raise
        checks = [contract_result(stage.name, work.paths, accepted=True)] if has_contract else []
        checks += [check(stamp["stats"])] if check else []
        metadata = _order_metadata(present, work, stamp, show(work))
        version = dg.DataVersion(stamp["data_version"])
        yield dg.MaterializeResult(metadata=metadata, data_version=version, check_results=checks)

    asset: dg.AssetsDefinition = dg.asset(
        name=stage.name,
        deps=list(reads) if reads else [_dependency(stage, each) for each in stage.inputs if is_used(each)],
        partitions_def=PARTITIONS[stage.partitioned_by],
        group_name=group,
        kinds=kinds,
        owners=OWNERS,
        tags=section_tags(stage),
        code_version=str(stage.version),
        description=f"{inspect.getdoc(stage.run)}\n\n{details}",
        automation_condition=None if group == "data" else _condition(stage),
        required_resource_keys=RESOURCES,
        # Settings come from pixrec.toml: without a schema Dagster accepts any config and ignores it.
        config_schema=TRAINING_CONFIG if observes_epochs else {},
        metadata={CODE_REFERENCES: _code_of(stage)},
        **options,
    )(build)
    return asset


def _order_metadata(stage: Stage, work: Work, stamp: Stamp, first: Metadata) -> Metadata:
    """The UI keeps this order: the main figure, `first`, path, seconds, then dozens of statistics."""
    if figure := format_figure(stage.name, stamp["stats"]):
        first = {"summary": figure, **first}
    rest = {"path": dg.MetadataValue.path(stage.artefact(work)), "seconds": stamp["seconds"]}
    rest |= flatten_stats(stamp["stats"])
    return {**first, **{name: value for name, value in rest.items() if name not in first}}


def _epoch_observer(context: dg.AssetExecutionContext) -> Callable[[Mapping[str, Any]], None]:
    def observe(epoch: Mapping[str, Any]) -> None:
        context.log_event(
            dg.AssetObservation(context.asset_key, partition=str(context.partition_key), metadata=flatten_stats(epoch))
        )

    return observe


def _condition(stage: Stage) -> dg.AutomationCondition[Any]:
    partitionings = {source.partitioned_by for source in stage.inputs if is_used(source)}
    return FOLLOW_SETTLED_INPUTS if len(partitionings) > 1 else FOLLOW_INPUTS


def is_used(stage: Stage) -> bool:
    """Whether settings use a stage: without a joint training there is no asset of one."""
    return stage.partitioned_by != "joint" or bool(SETTINGS.joint)


def asset_keys(stage: Stage) -> list[dg.AssetKey]:
    """Keys of the assets that a stage materialises."""
    return [dg.AssetKey(name) for name in (RAW_ASSETS if stage.name == "raw" else (stage.name,))]


def section_tags(stage: Stage) -> Mapping[str, str]:
    """One tag per settings section that changes the artefact, to search for in the UI."""
    return {f"pixrec/{section}": "" for section in stage.config_sections}


def _dependency(stage: Stage, source: Stage) -> dg.AssetDep:
    return dg.AssetDep(source.name, partition_mapping=MAPPINGS.get((source.partitioned_by, stage.partitioned_by)))


def work_of(context: dg.AssetExecutionContext) -> Work:
    """Return the dataset or joint training, and the variant if there is one, of the run's partition.

    Raises:
        dagster.Failure: the config of the run sets a value of `[training]` that is out of range.
    """
    settings, key = context.resources.settings, context.partition_key
    if not isinstance(key, dg.MultiPartitionKey):
        return Work(settings, key)
    names = key.keys_by_dimension
    work = Work(settings, names[JOINT] if JOINT in names else names[DATASET], names[VARIANT])
    return _with_training(work, dict(context.op_execution_context.op_config or {}))


def _with_training(work: Work, config: Mapping[str, Any]) -> Work:
    """Return the work with the settings of `[training]` that the config of one run replaces."""
    if not config:
        return work
    trained, section = work.trained, type(work.trained.training)
    try:
        training = section.model_validate(trained.training.model_dump() | dict(config))
    except ValidationError as error:
        lines = "\n".join(error_lines(error, section))
        raise dg.Failure(f"config of the run, [training]: {lines}", allow_retries=False) from error
    return work.with_trained(trained.model_copy(update={"training": training}))


def _code_of(stage: Stage) -> dg.CodeReferencesMetadataValue:
    """Where the UI finds the source of a stage."""
    code = inspect.unwrap(stage.run).__code__
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)  # there is no other way to name a source
        reference = dg.LocalFileCodeReference(file_path=code.co_filename, line_number=code.co_firstlineno)
        return dg.CodeReferencesMetadataValue(code_references=[reference])


def materialise(stage: Stage, work: Work, inputs: StageInputs | None = None, **callbacks: Any) -> Stamp:
    """Run the stage and return its stamp.

    Raises:
        dagster.Failure: see `raising_failures`.
    """
    with raising_failures(work):
        return stage.materialise(work, inputs=inputs, **callbacks)


@contextmanager
def raising_failures(work: Work) -> Iterator[None]:
    """Turn errors into one message in Dagster, in place of a traceback.

    Raises:
        dagster.Failure: an error that a retry would meet again; or the user interrupted the run, which a retry policy
            would otherwise take for a crash. After a lost process a retry is allowed.
    """
    try:
        yield
    except PixRecError as error:
        is_retried = isinstance(error, LostProcessError)
        text = str(error).replace("<name>", work.dataset)  # of [datasets.<name>], which sources do not know
        raise dg.Failure(f"{type(error).__name__}: {text}", allow_retries=is_retried) from error
    except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt) as interrupt:
        raise dg.Failure(INTERRUPTED, allow_retries=False) from interrupt
