"""`pixrec status`."""

import click
from rich.markup import escape
from rich.table import Table

from pixrec_assets import running
from pixrec_assets.headline import DECIDING, headline
from pixrec_assets.terminal import out
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import load_settings
from pixrec_core.stages import Stage, Work


@click.command()
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


def _state(stage: Stage, work: Work) -> tuple[str, str]:
    stamp = stage.stamp(work)
    if stamp is None:
        return "-", "[dim]not made[/]"
    return stamp["finished_at"], "[green]current[/]" if stage.is_current(work) else "[yellow]stale[/]"


def _show_best(paths: DatasetPaths) -> None:
    if paths.metrics.exists() and (measured := headline(paths)):
        method, metrics = list(measured.items())[-1]
        out.print(f"best {DECIDING}: {metrics.get(DECIDING, 0.0):.4f} by {escape(method)}\n")
