"""How the pages of this package are made from its templates."""

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from pixrec_core.report import tables


def environment() -> Environment:
    """Templates by name; what a page shows is escaped, and an unknown name is an error."""
    made = Environment(
        loader=PackageLoader("pixrec_core.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"percent": tables.percent, "points": tables.points}
    return made
