"""`pixrec photos`."""

from typing import Final

import click
from rich.markup import escape
from rich.table import Column, Table

from pixrec_assets.commands.options import one_dataset_argument
from pixrec_assets.terminal import echo, out
from pixrec_core.paths import DatasetPaths
from pixrec_core.printable import printable_json, shown_url
from pixrec_core.settings import load_settings

EXAMPLES: Final = """\b
Examples:
  pixrec photos books
  pixrec photos books --failed --whole-urls --json | jq '.[].url'
"""


@click.command(epilog=EXAMPLES)
@one_dataset_argument
@click.option("--failed", is_flag=True, help="List each failed photo: item, URL, reason and attempts.")
@click.option("--whole-urls", is_flag=True, help="Print URLs with password and query, which may be secret.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def photos(dataset: str, failed: bool, whole_urls: bool, as_json: bool) -> None:
    """Count the photos of a DATASET by status and reason, or list those that failed.

    `pixrec run DATASET --stage images --force` tries failed photos again and keeps the others.
    """
    import polars as pl

    from pixrec_core.data import image_manifest  # imports DuckDB
    from pixrec_core.schemas import ITEM

    settings = load_settings()
    settings.dataset(dataset)
    manifest = image_manifest.read_manifest(DatasetPaths.of(settings.data_dir, dataset))
    failures = manifest.filter(status=image_manifest.FAILED).select(ITEM, "url", "reason", "attempts")
    if not whole_urls:
        failures = failures.with_columns(pl.Series("url", map(shown_url, failures["url"]), pl.String))
    rows = failures if failed else image_manifest.count_outcomes(manifest.lazy())
    if as_json:
        echo(f"{printable_json(rows.to_dicts())}\n")
        return
    table = Table(*(Column(name, overflow="fold") for name in rows.columns))
    for row in rows.iter_rows():
        table.add_row(*("-" if value is None else escape(str(value)) for value in row))
    out.print(table)
    if not failures.is_empty():
        out.print(f"To try the failed photos again: [bold]pixrec run {dataset} --stage images --force[/]")
