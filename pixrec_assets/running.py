"""Run what is stale, through Dagster, one asset at a time in this process.

An asset's own run decides whether the next one is stale, so each is asked when its turn comes:
a download that brought the same bytes again makes nothing else run. Dagster takes seconds to
import and is left out where all is current.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from rich.console import Console
from rich.markup import escape

from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Stamp, Work


@dataclass(frozen=True)
class Failed:
    """A stage that did not finish: `known` says whether `text` is a message for the user or a traceback."""

    stage: Stage
    work: Work
    text: str
    known: bool
    run_id: str


def planned(
    settings: Settings, dataset: str, variants: Sequence[str], stages: Collection[str]
) -> Iterator[tuple[Stage, Work]]:
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
    for per, group in groupby(pipeline.STAGES, key=lambda stage: stage.per):
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


def _joint_data(trainings: Sequence[tuple[Stage, Work]], dataset: str) -> Iterator[tuple[Stage, Work]]:
    """What joint trainings read of the datasets other than the one that is planned already."""
    read = {at.dataset: at.of(None) for stage, work in trainings for _, at in stage.reads(work)}
    stages = [stage for stage in pipeline.STAGES if any(_feeds(stage, training) for training, _ in trainings)]
    yield from ((stage, at) for name, at in read.items() if name != dataset for stage in stages)


def _feeds(stage: Stage, reader: Stage) -> bool:
    """Whether a stage is read, directly or not, by another."""
    return any(stage.name == source.name or _feeds(stage, source) for source in reader.inputs)


def _wanted(stage: Stage, variants: Sequence[str], stages: Collection[str]) -> bool:
    return stage.name in stages if stages else not (variants and _compares_variants(stage))


def _compares_variants(stage: Stage) -> bool:
    """Whether a stage of the dataset reads, directly or not, what there is one of a variant."""
    return stage.per == "dataset" and any(s.per == "variant" or _compares_variants(s) for s in stage.inputs)


def run(work: Sequence[tuple[Stage, Work]], console: Console, *, force: bool) -> Failed | None:
    """Materialise what is stale, or all of it by `force`; stop at the first failure."""
    for stage, at in work:
        label = f"[bold]{stage.name}[/] {escape(stage.place(at))}"
        stamp = stage.stamp(at)
        if stamp and not force and stage.is_current(at):
            console.print(f"{label}: up to date (made {stamp['finished_at']})")
            _show_verdict(stamp, console)
            continue
        console.print(f"{label}: materialising ...")
        if failed := _materialise(stage, at):
            return failed
        made = stage.stamp(at)
        assert made is not None, "a stage that finished leaves its stamp"
        console.print(f"{label}: done in {made['seconds']:.1f} s")
        _show_verdict(made, console)
    return None


def _show_verdict(stamp: Stamp, console: Console) -> None:
    """What the gate before serving decided; a refusal is repeated in each run until another checkpoint passes."""
    if "verdict" in stamp["stats"]:
        colour = "dim" if stamp["stats"]["promoted"] else "yellow"
        console.print(f"  [{colour}]{escape(stamp['stats']['verdict'])}[/]")


def _materialise(stage: Stage, work: Work) -> Failed | None:
    from pixrec_assets import execution  # brings Dagster, which takes seconds

    return execution.materialise(stage, work, stage.place(work))
