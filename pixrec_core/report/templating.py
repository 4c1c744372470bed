"""Rendering of this package's templates."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from pixrec_core.report import tables


def render_template(name: str, context: dict[str, Any]) -> str:
    """A page as text. Values are escaped in HTML, and an undefined name is an error."""
    environment = Environment(
        loader=PackageLoader("pixrec_core.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": tables.percent, "points": tables.points}
    return environment.get_template(name).render(context)
