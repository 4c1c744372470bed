"""The command line: `pixrec run`, `pixrec demo`, `pixrec status`, `pixrec photos`, `pixrec recommend`."""

import json
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from pixrec_assets import running
from pixrec_assets.headline import COLUMNS, DECIDING, headline, rows_of
from pixrec_assets.home import dagster_home
from pixrec_core import pipeline
from pixrec_core.errors import PixRecError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM
from pixrec_core.settings import CONFIG_VARIABLE, Settings, load_settings
from pixrec_core.stages import Stage, Work

SAMPLE: Final = "sample"
#: What test users' next items are, by split.
HIDDEN: Final = {"leave_one_out": "last item hidden", "time": "first item after the test cut hidden"}
INTERRUPTED: Final = 130  # 128 + SIGINT, as shells expect

out = Console(highlight=False, soft_wrap=True)
err = Console(highlight=False, soft_wrap=True, stderr=True)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--config",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Settings file; without it $PIXREC_CONFIG, else pixrec.toml in this folder.",
)
@click.version_option(package_name="pixrec")
def cli(config: Path | None) -> None:
    """Next-item recommendations from text and pixels."""
    if config:
        os.environ[CONFIG_VARIABLE] = str(config.resolve())


@cli.command()
@click.option("--dataset", required=True, help="A dataset that the settings name, or a joint training.")
@click.option(
    "--variant",
    "variants",
    multiple=True,
    help="Train only this one (repeatable); the evaluation, which compares all, is left to a run without it.",
)
@click.option(
    "--stage",
    "stages",
    multiple=True,
    type=click.Choice([stage.name for stage in pipeline.STAGES]),
    help="Make only this one (repeatable).",
)
@click.option("--force", is_flag=True, help="Make it again even where it is up to date.")
def run(dataset: str, variants: tuple[str, ...], stages: tuple[str, ...], force: bool) -> None:
    """Make what is missing or stale, and show how well the variants do."""
    _run(load_settings(), dataset, variants, stages, force=force)


@cli.command()
def demo() -> None:
    """The whole pipeline on generated shoppers and drawn photos; no download, no settings file needed."""
    _run(load_settings(), SAMPLE, (), (), force=False)


@cli.command()
def status() -> None:
    """What has been made, when, and whether it is still current."""
    settings = load_settings()
    for name in (*settings.joint, *settings.datasets):
        table = Table("artefact", "partition", "made", "state", title=name, title_justify="left")
        for stage, work in running.planned(settings, name, (), ()):
            if work.dataset == name:
                table.add_row(stage.name, stage.place(work), *_state(stage, work))
        out.print(table)
        _show_best(DatasetPaths.of(settings.data_dir, name))


@cli.command()
@click.option("--dataset", required=True, help="A dataset that the settings name.")
@click.option("--failed", is_flag=True, help="List each photo that failed: item, URL, reason and tries.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def photos(dataset: str, failed: bool, as_json: bool) -> None:
    """What came of a dataset's photos: how many by status and reason, or each one that failed.

    `pixrec run --dataset NAME --stage images --force` tries what failed again and keeps every photo
    that is there.
    """
    from pixrec_core.data import image_journal, images  # bring what downloads and decodes

    settings = load_settings()
    settings.dataset(dataset)
    manifest = images.read_manifest(DatasetPaths.of(settings.data_dir, dataset))
    failures = manifest.filter(status=image_journal.FAILED).select(ITEM, "url", "reason", "attempts")
    shown = failures if failed else images.counts(manifest)
    if as_json:
        click.echo(json.dumps(shown.to_dicts(), indent=2, ensure_ascii=False))
        return
    table = Table(*(Column(name, overflow="fold") for name in shown.columns))
    for row in shown.iter_rows():
        table.add_row(*("-" if value is None else escape(str(value)) for value in row))
    out.print(table)
    if not failures.is_empty():
        out.print(f"to try what failed again: [bold]pixrec run --dataset {dataset} --stage images --force[/]")


@cli.command()
@click.option("--dataset", required=True, help="A dataset that the settings name.")
@click.option("--user", help="Id of a user: what comes next after all that they had.")
@click.option("--items", help="A history, oldest first, ids joined by commas: what comes next.")
@click.option("--text", help="Words: the items nearest to one with this title.")
@click.option(
    "--photo",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A photo's file: the items nearest to one that looks so.",
)
@click.option("--variant", help="Who answers; without it the promoted variant with the best NDCG@10.")
@click.option("--top", type=click.IntRange(min=1), default=10, show_default=True, help="Items wanted.")
@click.option("--allow-seen/--filter-seen", default=True, help="Whether items of the history may be among them.")
@click.option("--format", "shape", type=click.Choice(["table", "json", "html"]), default="table", show_default=True)
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file instead.")
def recommend(
    dataset: str,
    user: str | None,
    items: str | None,
    text: str | None,
    photo: Path | None,
    variant: str | None,
    top: int,
    allow_seen: bool,
    shape: str,
    output: Path | None,
) -> None:
    """Recommend items to a user or after a history, or find those like a text or a photo.

    What answers is the promoted checkpoint, whatever has been trained since.
    """
    if sum(given is not None for given in (user, items, text, photo)) != 1:
        raise click.UsageError("give one of --user, --items, --text and --photo, and no more")
    from pixrec_assets import recommending  # brings torch and faiss

    settings = load_settings()
    if photo:
        query = recommending.by_photo(photo, settings.dataset(dataset).images.max_bytes)
    else:
        query = recommending.by_words(user=user, items=items, text=text)
    told = recommending.answer(settings, dataset, variant, query, top, filter_seen=not allow_seen)
    recommending.show(told, DatasetPaths.of(settings.data_dir, dataset), shape, output, out)


def _state(stage: Stage, work: Work) -> tuple[str, str]:
    stamp = stage.stamp(work)
    if stamp is None:
        return "-", "[dim]not made[/]"
    if not stage.is_current(work):
        return stamp["finished_at"], "[yellow]stale[/]"
    return stamp["finished_at"], "[green]current[/]" if stamp["stats"].get("promoted", True) else "[yellow]refused[/]"


def _show_best(paths: DatasetPaths) -> None:
    if paths.metrics.exists() and (measured := headline(paths)):
        method, metrics = list(measured.items())[-1]
        out.print(f"best {DECIDING}: {metrics.get(DECIDING, 0.0):.4f} by {escape(method)}\n")


def _run(settings: Settings, dataset: str, variants: Sequence[str], stages: Sequence[str], *, force: bool) -> None:
    """Run and show the outcome; a failure ends the process with exit code 1."""
    work = list(running.planned(settings, dataset, variants, stages))
    _show_progress()
    if failed := running.run(work, out, force=force):
        _explain(failed, dagster_home(settings))
        sys.exit(1)
    _show_headline(settings, dataset)


def _show_progress() -> None:
    """The core's log lines on the terminal."""
    log = logging.getLogger("pixrec_core")
    log.setLevel(logging.INFO)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("  %(asctime)s %(message)s", "%X"))
    log.handlers = [handler]


def _explain(failed: running.Failed, home: Path) -> None:
    """What went wrong, and how to go on."""
    err.print(f"[bold red]{failed.stage.name} of {failed.stage.place(failed.work)} failed[/]")
    err.print(f"[red]{escape(failed.text.strip())}[/]")
    if not failed.known:
        err.print(f"This is unexpected. The whole log is run {failed.run_id} of the Dagster instance in {home}")
    err.print(f"What was made before is kept. To go on: [bold]pixrec run --dataset {failed.work.dataset}[/]")


def _show_headline(settings: Settings, dataset: str) -> None:
    paths = DatasetPaths.of(settings.data_dir, dataset)
    if not paths.metrics.exists():
        return
    table = Table(
        *COLUMNS, title=f"{HIDDEN[settings.dataset(dataset).sequences.split]}, seen items allowed", title_justify="left"
    )
    for row in rows_of(headline(paths)):
        table.add_row(*map(escape, row))
    out.print(table)
    out.print(f"report: {paths.report / 'index.html'}")


def main() -> None:
    """Entry point: errors that a user can mend are shown as one message, without a traceback."""
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except PixRecError as error:
        err.print(f"[red]{escape(str(error))}[/]")
        sys.exit(1)
    except (KeyboardInterrupt, click.Abort):
        err.print("interrupted; what was made before is kept")
        sys.exit(INTERRUPTED)
