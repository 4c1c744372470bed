"""`pixrec export` and `pixrec push`."""

from pathlib import Path
from typing import Final

import click
from rich.markup import escape

from pixrec_assets.commands.options import one_dataset_argument, output_errors
from pixrec_assets.terminal import out
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import load_settings

EXAMPLES: Final = """\b
Examples:
  pixrec export books --output books-vectors
  pixrec export books --method text_only --output books-vectors
  pixrec export books --format onnx --output books-onnx
"""
PUSH_EXAMPLES: Final = """\b
Examples:
  pixrec push books owner/books-tower
  HF_TOKEN=... pixrec push books owner/books-tower --method text_only
"""


@click.command(epilog=EXAMPLES)
@one_dataset_argument
@click.option("--method", help="Variant to export; by default the promoted one that was best on validation.")
@click.option(
    "--format",
    "kind",
    type=click.Choice(["parquet", "onnx"]),
    default="parquet",
    show_default=True,
    help="parquet: item vectors for a vector database; onnx: item and user encoder too, for onnxruntime.",
)
@click.option(
    "--output",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; an earlier export in it is replaced.",
)
@click.option("--whole-urls", is_flag=True, help="Write photo URLs with password and query, which may be secret.")
def export(dataset: str, method: str | None, kind: str, output: Path, whole_urls: bool) -> None:
    """Write a promoted variant of a DATASET for other programs: its item vectors, or its encoders as ONNX.

    They come from a promoted checkpoint, even if another has been trained since: docs/serving.md.
    """
    settings = load_settings()
    settings.dataset(dataset)
    folder = DatasetPaths.of(settings.data_dir, dataset).promoted
    if kind == "onnx":
        if whole_urls:
            raise click.UsageError("--whole-urls is for item vectors; an export to ONNX has no URLs")
        from pixrec_core.serving.export import export_onnx  # imports torch

        with output_errors(output):
            written = export_onnx(folder, output.resolve(), method)
        differences = ", ".join(f"{name} {value:.1g}" for name, value in written["max_difference"].items())
        out.print(
            f"{written['method']} of {dataset} as ONNX, largest difference from PyTorch: {differences}: "
            f"{escape(str(output))}"
        )
        return
    from pixrec_core.serving import export as module  # imports torch

    with output_errors(output):
        written = module.export_items(folder, output.resolve(), method, whole_urls=whole_urls)
    out.print(
        f"{written['items']:,} vectors of {written['dimension']} numbers, {written['method']} of {dataset}: "
        f"{escape(str(output / module.EXPORTED))}"
    )


@click.command(epilog=PUSH_EXAMPLES)
@click.argument("dataset")
@click.argument("repository", metavar="OWNER/NAME")
@click.option("--method", help="Variant to push; by default the promoted one that was best on validation.")
@click.option("--public", is_flag=True, help="Make a new repository public; by default it is private.")
def push(dataset: str, repository: str, method: str | None, public: bool) -> None:
    """Upload the promoted checkpoint of a DATASET and its model card to the Hugging Face hub.

    Log in first with `hf auth login`, or set HF_TOKEN. The checkpoint has the weights, the encoders of texts and
    photos, settings and the training record; it has no items, users or interactions.
    """
    from pixrec_core.serving.export import push_checkpoint

    settings = load_settings()
    settings.dataset(dataset)
    url = push_checkpoint(DatasetPaths.of(settings.data_dir, dataset).promoted, repository, method, private=not public)
    out.print(f"pushed to {escape(url)}")
