"""`pixrec export`."""

from pathlib import Path
from typing import Final

import click
from rich.markup import escape

from pixrec_assets.commands.options import deprecated_variant_option, one_dataset_argument
from pixrec_assets.terminal import out
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import load_settings

EXAMPLES: Final = """\b
Examples:
  pixrec export books --output books-vectors
  pixrec export books --method text_only --output books-vectors
"""


@click.command(epilog=EXAMPLES)
@one_dataset_argument
@click.option("--method", help="Variant to export; by default the promoted one that was best on validation.")
@deprecated_variant_option
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; an earlier export in it is replaced.",
)
@click.option("--whole-urls", is_flag=True, help="Write photo URLs with password and query, which may be secret.")
def export(dataset: str, method: str | None, output: Path, whole_urls: bool) -> None:
    """Write the item vectors of a DATASET as Parquet, for a vector database.

    They come from a promoted checkpoint, even if another has been trained since: docs/serving.md.
    """
    from pixrec_core.serving import export as module  # imports torch

    settings = load_settings()
    settings.dataset(dataset)
    folder = DatasetPaths.of(settings.data_dir, dataset).promoted
    written = module.export_items(folder, output.resolve(), method, whole_urls=whole_urls)
    out.print(
        f"{written['items']:,} vectors of {written['dimension']} numbers, {written['method']} of {dataset}: "
        f"{escape(str(output / module.EXPORTED))}"
    )
