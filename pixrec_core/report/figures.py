"""Training curves as inline SVG in the colours of the page, light or dark."""

import io
import re
from collections.abc import Mapping
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pixrec_core.report.inputs import Training

PANELS: Final = {
    "ndcg@10": "Validation NDCG@10",
    "loss": "Total loss (weighted)",
    "generation": "Next-item generation loss",
    "item_item": "Item-item contrastive loss",
    "user_item": "User-item contrastive loss",
}
#: Placeholder colours, replaced by CSS variables in the SVG. Line styles distinguish the methods without colour.
INK: Final = "#010203"
LINES: Final = (
    ("#010204", "-", "var(--line-1)"),
    ("#010205", "--", "var(--line-2)"),
    ("#010206", ":", "var(--line-3)"),
)
STYLE: Final[dict[Any, Any]] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pixrec",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def plot_curves(training: dict[str, Training], lines: Mapping[str, int]) -> list[tuple[str, str]]:
    """Title and `<svg>` element of one figure per term that is not always 0.

    Args:
        training: runs by method.
        lines: number of each method's line on the page, 1 to 3.
    """
    panels = []
    for term, title in PANELS.items():
        curves = {name: _points(run, term) for name, run in training.items()}
        if any(value for points in curves.values() for _, value in points):
            panels.append((title, _svg(title, curves, lines, {n: run.best_epoch for n, run in training.items()})))
    return panels


def _points(run: Training, term: str) -> list[tuple[float, float]]:
    """(epoch, value) of the epochs that recorded the term."""
    rows = [(row.get("epoch"), row.get(term)) for row in run.epochs]
    return [(epoch, value) for epoch, value in rows if epoch is not None and value is not None]


def _svg(
    title: str, curves: dict[str, list[tuple[float, float]]], lines: Mapping[str, int], best: dict[str, int | None]
) -> str:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(3.4, 2.1), layout="constrained")
        axes = figure.add_subplot(xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
        for name, points in curves.items():
            colour, dash, _ = LINES[lines[name] - 1]
            axes.plot(*zip(*points, strict=True), color=colour, linestyle=dash, marker=".") if points else None
            best_points = [point for point in points if point[0] == best[name]]
            if best_points:
                axes.plot(*best_points[0], color=colour, marker="o", fillstyle="none", markersize=9)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _inline(file.getvalue(), title)


def _inline(svg: str, title: str) -> str:
    """The `<svg>` element only: scalable, labelled, in the colours of the page, without ids, which must be unique."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', rf'\1 role="img" aria-label="{title}"', svg, count=1)
    for colour, _, variable in LINES:
        svg = svg.replace(colour, variable)
    return svg.replace(INK, "currentColor")
