"""Which stages a call of `pixrec run` covers, for which partitions, and in which order."""

from collections.abc import Collection, Iterator, Sequence
from itertools import groupby
from typing import Final

from pixrec_core import pipeline
from pixrec_core.errors import SettingsError, did_you_mean
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, StageRun, Work

NOT_BUILT: Final = "not built"  # a reason of `find_outdated`


def plan_datasets(
    settings: Settings,
    datasets: Sequence[str],
    variants: Sequence[str] = (),
    stages: Collection[str] = (),
    up_to: str | None = None,
) -> list[StageRun]:
    """Return the runs of `plan_dataset` for several datasets, each once: joint trainings share their inputs.

    Raises:
        SettingsError: see `plan_dataset`; or the settings of a dataset name an unknown method or encoder.
    """
    for dataset in settings.datasets.keys() & datasets:
        pipeline.check_names(settings.datasets[dataset], settings.variants)
    runs = (run for dataset in datasets for run in plan_dataset(settings, dataset, variants, stages, up_to))
    return list({str(run): run for run in runs}.values())


def plan_dataset(
    settings: Settings,
    dataset: str,
    variants: Sequence[str] = (),
    stages: Collection[str] = (),
    up_to: str | None = None,
) -> Iterator[StageRun]:
    """Yield the stage runs of a dataset, inputs first.

    Args:
        settings: settings of the whole project.
        dataset: a dataset or a joint training.
        variants: variants to train; empty means all. Stages that compare all variants run only if none is named.
        stages: names of the only stages to run; empty means all. They run for this dataset alone, not for the other
            datasets of its joint training.
        up_to: run this stage and every stage that it depends on.

    Raises:
        SettingsError: the settings do not contain the dataset or a variant, or `up_to` compares all variants and
            some are named.
    """
    settings.trained(dataset)
    for variant in variants:
        if variant not in settings.variants:
            raise SettingsError(f"unknown variant {variant!r}{did_you_mean(variant, settings.variants)}")
    wanted = [stage for stage in pipeline.STAGES if not stages or stage.name in stages]
    if up_to:
        last = pipeline.stage_named(up_to)
        if variants and _compares_variants(last):
            raise SettingsError(f"`{up_to}` compares all variants: leave out --variant, or name an earlier stage")
        wanted = [stage for stage in wanted if stage is last or _depends_on(last, stage)]
    elif variants and not stages:
        wanted = [stage for stage in wanted if not _compares_variants(stage)]
    for partitioned_by, group in groupby(wanted, key=lambda stage: stage.partitioned_by):
        in_group = list(group)
        partitions = _partitions(settings, dataset, variants, partitioned_by)
        runs = [StageRun(stage, work) for work in partitions for stage in in_group]
        if partitioned_by == "joint" and not stages:
            yield from _data_of_joint(runs, dataset)
        yield from runs


def find_outdated(runs: Sequence[StageRun]) -> dict[str, str]:
    """Return the stage runs that a run would build, or build if their inputs change: run -> why.

    The reason is "not built", "stale", or "behind X" for an artefact whose direct or indirect input X is either. An
    artefact behind another may stay as it is: a download of unchanged bytes makes nothing else stale.

    `runs` have inputs first.
    """
    reasons: dict[str, str] = {}
    roots: dict[str, str] = {}
    for run in runs:
        key = str(run)
        source = next((str(each) for each in run.stage.reads(run.work) if str(each) in roots), None)
        if run.stage.stamp(run.work) is None:
            reasons[key] = NOT_BUILT
        elif source:
            reasons[key] = f"behind {roots[source]}"
        elif not run.stage.is_current(run.work):
            reasons[key] = "stale"
        if key in reasons:
            roots[key] = roots[source] if source else run.stage.name
    return reasons


def _partitions(settings: Settings, dataset: str, variants: Sequence[str], partitioned_by: str) -> list[Work]:
    """The partitions of a dataset, or of a joint training, for stages of one partitioning."""
    joint = dataset if dataset in settings.joint else settings.dataset(dataset).start_from
    name = joint if partitioned_by == "joint" else dataset if dataset in settings.datasets else None
    of_stage: Sequence[str | None] = (None,) if partitioned_by == "dataset" else variants or settings.variants
    return [Work(settings, name, variant) for variant in of_stage] if name else []


def _data_of_joint(trainings: Sequence[StageRun], dataset: str) -> Iterator[StageRun]:
    """What joint trainings read of datasets other than `dataset`, whose data stages are planned already."""
    read = {source.work.dataset: source.work for run in trainings for source in run.stage.reads(run.work)}
    stages = [stage for stage in pipeline.STAGES if any(_depends_on(run.stage, stage) for run in trainings)]
    yield from (
        StageRun(stage, work.with_variant(None)) for name, work in read.items() if name != dataset for stage in stages
    )


def _depends_on(stage: Stage, source: Stage) -> bool:
    """Whether a stage reads another, directly or through other stages."""
    return any(source.name == each.name or _depends_on(each, source) for each in stage.inputs)


def _compares_variants(stage: Stage) -> bool:
    """Whether a stage of the dataset reads, directly or not, an artefact of every variant."""
    return stage.partitioned_by == "dataset" and any(
        source.partitioned_by == "variant" or _compares_variants(source) for source in stage.inputs
    )
