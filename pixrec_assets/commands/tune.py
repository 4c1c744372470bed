"""`pixrec tune`: search for better settings of a training, on validation users."""

import json
from typing import Final

import click

from pixrec_assets.commands.options import one_dataset_argument
from pixrec_assets.commands.run import SAMPLE, run_or_exit
from pixrec_assets.plan import plan_dataset
from pixrec_assets.terminal import echo, out
from pixrec_core import files, pipeline
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work

EXAMPLES: Final = """\b
Examples:
  pixrec tune books                        # an hour
  pixrec tune books --minutes 480          # go on for a night
  pixrec tune books --minutes 0            # the best settings so far
"""


@click.command(epilog=EXAMPLES)
@one_dataset_argument
@click.option("--variant", help="Variant to tune; by default the first one of the settings.")
@click.option(
    "--minutes",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    help="No training starts after them; a started one is finished.",
)
def tune(dataset: str, variant: str | None, minutes: float) -> None:
    """Search for settings with which a variant of a DATASET is better on validation users.

    The first training has the present settings, Optuna proposes those of the others. The best ones are printed, and
    written to data/DATASET/variants/VARIANT/tune/best.toml, to be pasted into pixrec.toml; nothing else changes. The
    same command continues an earlier or interrupted search, until a setting or an input of the training changes.
    """
    settings = load_settings()
    settings.dataset(dataset)
    variant = variant or settings.variants[0]
    work = Work(settings, dataset, variant)
    runs = [
        run
        for run in plan_dataset(settings, dataset, [variant], up_to=pipeline.CHECKPOINT.name)
        if run.stage is not pipeline.CHECKPOINT
    ]
    from pixrec_core.training.search import BEST, SCORE, changed_settings, search_space  # imports torch

    search_space(work.dataset_settings, variant)  # needs Optuna: better an error now than after the data stages
    run_or_exit(settings, runs, "tune", [dataset], ["--variant", variant, "--minutes", f"{minutes:g}"])
    found = pipeline.tune(work, minutes)
    trials = found["trials"]
    if not trials:
        out.print(f"{dataset}|{variant}: no training has been tried with the present settings and data")
        return
    changed = changed_settings(trials)
    scores = [trial[SCORE] for trial in trials]
    out.print(
        f"{dataset}|{variant}: {len(trials)} training{'s' if len(trials) > 1 else ''}, NDCG@10 on "
        f"{found['validation_users']:,} validation users: present settings {scores[0]:.4f}, best {max(scores):.4f}"
    )
    best = work.variant_paths.tune / BEST
    if not changed:
        files.remove(best)
        out.print("No other settings were better than the present ones.")
        return
    out.print(
        f"The best of {len(trials)} is chosen on these users, so expect a smaller gain on others. "
        f"To use it, add this to pixrec.toml, for all variants, and run `pixrec run {dataset}`:\n"
    )
    text = _toml(settings, dataset, changed)
    with files.replacing(best) as temporary:
        temporary.write_text(text, encoding="utf-8")
    echo(text)


def _toml(settings: Settings, dataset: str, sections: dict[str, dict[str, object]]) -> str:
    """Return sections of a dataset; at the top level for the sample that needs no entry in pixrec.toml."""
    prefix = "" if list(settings.datasets) == [SAMPLE] else f"datasets.{dataset}."
    blocks = (
        f"[{prefix}{section}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
        for section, values in sections.items()
    )
    return "\n".join(blocks)
