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
from pixrec_core.stages import Stage, Work


@dataclass(frozen=True)
class Failed:
    """A stage that did not finish: `known` says whether `text` is a message for the user or a traceback."""

    stage: Stage
    work: Work
    text: str
    known: bool
    run_id: str


def place(stage: Stage, work: Work) -> str:
    """The partition as Dagster writes it: `dataset` or `dataset|variant`."""
    return f"{work.dataset}|{work.variant}" if stage.per == "variant" else work.dataset


def planned(
    settings: Settings, dataset: str, variants: Sequence[str], stages: Collection[str]
) -> Iterator[tuple[Stage, Work]]:
    """Stages and their places of work, inputs first.

    Args:
        settings: of the whole project.
        dataset: one that the settings name.
        variants: those to train; none means all. What compares all variants is left out where only
            some are asked for.
        stages: names of the only ones wanted; none means all.

    Raises:
        SettingsError: the settings do not know the dataset or a variant.
    """
    settings.dataset(dataset)
    if unknown := set(variants) - set(settings.variants):
        raise SettingsError(f"unknown variant {', '.join(sorted(unknown))}; known: {', '.join(settings.variants)}")
    for per, group in groupby(pipeline.STAGES, key=lambda stage: stage.per):
        wanted = [stage for stage in group if _wanted(stage, variants, stages)]
        for variant in (variants or settings.variants) if per == "variant" else (None,):
            yield from ((stage, Work(settings, dataset, variant)) for stage in wanted)


def _wanted(stage: Stage, variants: Sequence[str], stages: Collection[str]) -> bool:
    return stage.name in stages if stages else not (variants and _compares_variants(stage))


def _compares_variants(stage: Stage) -> bool:
    """Whether a stage of the dataset reads, directly or not, what there is one of a variant."""
    return stage.per == "dataset" and any(s.per == "variant" or _compares_variants(s) for s in stage.inputs)


def run(work: Sequence[tuple[Stage, Work]], console: Console, *, force: bool) -> Failed | None:
    """Materialise what is stale, or all of it by `force`; stop at the first failure."""
    for stage, at in work:
        label = f"[bold]{stage.name}[/] {escape(place(stage, at))}"
        stamp = stage.stamp(at)
        if stamp and not force and stage.is_current(at):
            console.print(f"{label}: up to date (made {stamp['finished_at']})")
            continue
        console.print(f"{label}: materialising ...")
        if failed := _materialise(stage, at):
            return failed
        made = stage.stamp(at)
        assert made is not None, "a stage that finished leaves its stamp"
        console.print(f"{label}: done in {made['seconds']:.1f} s")
    return None


def _materialise(stage: Stage, work: Work) -> Failed | None:
    from pixrec_assets import execution  # brings Dagster, which takes seconds

    return execution.materialise(stage, work, place(stage, work))
