"""`pixrec photos`."""

import json
from typing import Final

import click
from rich.markup import escape
from rich.table import Column, Table

from pixrec_assets.terminal import out
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM
from pixrec_core.settings import load_settings

EXAMPLES: Final = """\b
Examples:
  pixrec photos --dataset sample
  pixrec photos --dataset sample --failed --json | jq '.[].url'
"""


@click.command(epilog=EXAMPLES)
@click.option("--dataset", required=True, help="A dataset that the settings name.")
@click.option("--failed", is_flag=True, help="List each photo that failed: item, URL, reason and tries.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for other programs.")
def photos(dataset: str, failed: bool, as_json: bool) -> None:
    """What came of a dataset's photos: how many by status and reason, or each one that failed.

    `pixrec run --dataset NAME --stage images --force` tries what failed again and keeps every photo
    that is there.
    """
    from pixrec_core.data import image_journal, image_manifest  # bring what downloads and decodes

    settings = load_settings()
    settings.dataset(dataset)
    manifest = image_manifest.read(DatasetPaths.of(settings.data_dir, dataset))
    failures = manifest.filter(status=image_journal.FAILED).select(ITEM, "url", "reason", "attempts")
    shown = failures if failed else image_manifest.counts(manifest.lazy())
    if as_json:
        click.echo(json.dumps(shown.to_dicts(), indent=2, ensure_ascii=False))
        return
    table = Table(*(Column(name, overflow="fold") for name in shown.columns))
    for row in shown.iter_rows():
        table.add_row(*("-" if value is None else escape(str(value)) for value in row))
    out.print(table)
    if not failures.is_empty():
        out.print(f"to try what failed again: [bold]pixrec run --dataset {dataset} --stage images --force[/]")
