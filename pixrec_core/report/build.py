"""The report stage: metrics, rankings and photos as one HTML page, and its main tables in Markdown.

The page is self-contained: no network, no script, no font. It shows the period of the data and no build time, so the
same inputs give the same bytes.
"""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from pixrec_core import files
from pixrec_core.paths import DatasetPaths
from pixrec_core.report import tables
from pixrec_core.report.figures import plot_curves
from pixrec_core.report.inputs import MULTIMODAL, TEXT_ONLY, Inputs, read_inputs
from pixrec_core.report.pictures import Album, galleries, neighbourhoods
from pixrec_core.report.tables import render_template
from pixrec_core.stages import Stats


def build_report(
    dataset: str, paths: DatasetPaths, variants: Sequence[str], *, refit: bool = False, serves_measured: bool = True
) -> Stats:
    """Write `index.html` and `report.md` to the report's folder.

    The page leaves out variants without a ranking. With `refit` it states that the serving method is fitted on all
    interactions afterwards. `serves_measured` is whether the metrics are of what serves.

    Returns:
        Path and size of the page, number of users shown, number of unreadable photos, and the main figures.

    Raises:
        MissingArtefactError: metrics or sequences have not been built.
        ArtefactError: an input is damaged.
    """
    inputs = read_inputs(dataset, paths, variants)
    album = Album(inputs.paths, inputs.titles)
    shown = galleries(inputs, album)
    context = _context(inputs, refit=refit) | {"galleries": shown, "neighbourhoods": neighbourhoods(inputs, album)}
    context["serves_measured"] = serves_measured
    with files.replacing(paths.report) as folder:
        folder.mkdir()
        for name in ("index.html", "report.md"):
            (folder / name).write_text(render_template(name, context), encoding="utf-8")
    page = paths.report / "index.html"
    return {
        "html": str(page),
        "html_bytes": page.stat().st_size,
        "users_shown": sum(len(gallery.users) for gallery in shown),
        "unreadable_photos": album.unreadable,
        **_main_figures(inputs),
    }


def _context(inputs: Inputs, *, refit: bool) -> dict[str, Any]:
    """Variables of both templates, without the pictures."""
    protocols = inputs.metrics.protocols
    lines = {method: n for n, method in enumerate(dict.fromkeys([*inputs.rankings, *inputs.training]), start=1)}
    return {
        "inputs": inputs,
        "tables": tables,
        "protocols": protocols,
        "first": next(iter(protocols.values())),
        "lines": lines,
        "held_out": tables.held_out_sentence(inputs.stats.get("sequences", {}), refit=refit),
        "sample": inputs.stats.get("raw", {}).get("source") == "sample",
        "panels": [(title, Markup(svg)) for title, svg in plot_curves(inputs.training, lines)],  # noqa: S704  # own SVG
    }


def _main_figures(inputs: Inputs) -> dict[str, float | str]:
    """The sentence on photos, and the main metrics of both sides of the ablation, for a list of runs."""
    first = next(iter(inputs.metrics.protocols.values()))
    return {"verdict": tables.photo_sentence(first)} | {
        f"{variant} {metric}": first.methods[variant][metric].value
        for variant in (MULTIMODAL, TEXT_ONLY)
        for metric in tables.MAIN_METRICS
        if metric in first.methods.get(variant, {})
    }
