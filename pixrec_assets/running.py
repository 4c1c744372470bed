"""What a run of the pipeline has to make, inputs first, and how one of its tasks may fail."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work

#: A stage and its place of work: one artefact to make.
Task = tuple[Stage, Work]

#: What tells tasks apart: the stage's name and its partition.
Key = tuple[str, str]


@dataclass(frozen=True)
class Fault:
    """Why a task did not finish: `known` says whether `text` is a message for the user or a traceback."""

    text: str
    known: bool
    run_id: str | None = None


def key_of(task: Task) -> Key:
    """Name of the stage and partition, as Dagster writes it."""
    stage, work = task
    return stage.name, stage.partition_key(work)


def tasks_of(
    settings: Settings, datasets: Sequence[str], variants: Sequence[str], stages: Collection[str]
) -> list[Task]:
    """What `planned` names for several datasets, each once: joint trainings share what they are made from."""
    tasks: dict[Key, Task] = {}
    for dataset in datasets:
        for task in planned(settings, dataset, variants, stages):
            tasks.setdefault(key_of(task), task)
    return list(tasks.values())


def planned(settings: Settings, dataset: str, variants: Sequence[str], stages: Collection[str]) -> Iterator[Task]:
    """Stages and their places of work, inputs first.

    Args:
        settings: of the whole project.
        dataset: one that the settings name, or a joint training.
        variants: those to train; none means all. What compares all variants is left out where only
            some are asked for.
        stages: names of the only ones wanted; none means all. Stages of the other datasets of a joint
            training are never among them.

    Raises:
        SettingsError: the settings do not know the dataset or a variant.
    """
    settings.trained(dataset)
    if unknown := set(variants) - set(settings.variants):
        raise SettingsError(f"unknown variant {', '.join(sorted(unknown))}; known: {', '.join(settings.variants)}")
    for per, group in groupby(pipeline.STAGES, key=lambda stage: stage.partitioned_by):
        wanted = [stage for stage in group if _wanted(stage, variants, stages)]
        chosen = [(stage, at) for at in _places(settings, dataset, variants, per) for stage in wanted]
        if per == "joint" and not stages:
            yield from _joint_data(chosen, dataset)
        yield from chosen


def _places(settings: Settings, dataset: str, variants: Sequence[str], per: str) -> list[Work]:
    """Where stages of a kind have work to do for a dataset or a joint training."""
    joint = dataset if dataset in settings.joint else settings.dataset(dataset).start_from
    name = joint if per == "joint" else dataset if dataset in settings.datasets else None
    own: Sequence[str | None] = (None,) if per == "dataset" else variants or settings.variants
    return [Work(settings, name, variant) for variant in own] if name else []


def _joint_data(trainings: Sequence[Task], dataset: str) -> Iterator[Task]:
    """What joint trainings read of the datasets other than the one that is planned already."""
    read = {at.dataset: at.with_variant(None) for stage, work in trainings for _, at in stage.reads(work)}
    stages = [stage for stage in pipeline.STAGES if any(_feeds(stage, training) for training, _ in trainings)]
    yield from ((stage, at) for name, at in read.items() if name != dataset for stage in stages)


def _feeds(stage: Stage, reader: Stage) -> bool:
    """Whether a stage is read, directly or not, by another."""
    return any(stage.name == source.name or _feeds(stage, source) for source in reader.inputs)


def _wanted(stage: Stage, variants: Sequence[str], stages: Collection[str]) -> bool:
    return stage.name in stages if stages else not (variants and _compares_variants(stage))


def _compares_variants(stage: Stage) -> bool:
    """Whether a stage of the dataset reads, directly or not, what there is one of a variant."""
    return stage.partitioned_by == "dataset" and any(
        s.partitioned_by == "variant" or _compares_variants(s) for s in stage.inputs
    )
