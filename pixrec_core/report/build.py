"""The report stage: metrics, rankings and photos -> one HTML page and its Markdown.

The page needs nothing beside itself: no network, no script, no font. It tells when the data are
from and not when it was made, so the same inputs give the same bytes.
"""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.report import tables
from pixrec_core.report.figures import curves
from pixrec_core.report.inputs import MULTIMODAL, TEXT_ONLY, VARIANTS, Inputs, read
from pixrec_core.report.neighbours import neighbourhoods
from pixrec_core.report.pictures import Album, galleries
from pixrec_core.report.templating import environment
from pixrec_core.stages import Stats


def build(dataset: str, paths: DatasetPaths, variants: Sequence[str]) -> Stats:
    """Write `index.html` and `report.md` to the report's folder.

    Args:
        dataset: its name, for the title and for the command that makes it again.
        paths: its artefacts.
        variants: those that were trained; one that has left no ranking is not shown.

    Returns:
        Path and bytes of the page, users shown, photos that could not be read, and the headline figures.

    Raises:
        MissingArtefactError: metrics or sequences have not been made.
        ArtefactError: an input is damaged.
    """
    inputs = read(dataset, paths, variants)
    album = Album(inputs.paths, inputs.titles)
    shown = galleries(inputs, album)
    context = _context(inputs) | {"galleries": shown, "neighbourhoods": neighbourhoods(inputs, album)}
    templates = environment()
    with files.replacing(paths.report) as folder:
        folder.mkdir()
        for name in ("index.html", "report.md"):
            (folder / name).write_text(templates.get_template(name).render(context), encoding="utf-8")
    page = paths.report / "index.html"
    return {
        "html": str(page),
        "html_bytes": page.stat().st_size,
        "users_shown": sum(len(gallery.shoppers) for gallery in shown),
        "unreadable_photos": album.unreadable,
        **_figures(inputs),
    }


def _context(inputs: Inputs) -> dict[str, Any]:
    """Names that both templates may use, beside the pictures."""
    protocols = inputs.metrics.protocols
    first = next(iter(protocols.values()))
    return {
        "inputs": inputs,
        "tables": tables,
        "protocols": protocols,
        "first": first,
        "held_out": tables.held_out(inputs.stats.get("sequences", {})),
        "sample": inputs.stats.get("raw", {}).get("source") == "sample",
        "variants": VARIANTS,
        "panels": [(panel.title, Markup(panel.svg)) for panel in curves(inputs.training)],  # noqa: S704  # our own SVG
    }


def _figures(inputs: Inputs) -> dict[str, float | str]:
    """The verdict, and the headline metrics of our variants, for a list of runs."""
    first = next(iter(inputs.metrics.protocols.values()))
    return {"verdict": tables.verdict(first)} | {
        f"{variant} {metric}": first.methods[variant][metric].value
        for variant in (MULTIMODAL, TEXT_ONLY)
        for metric in tables.HEADLINE
        if metric in first.methods.get(variant, {})
    }
