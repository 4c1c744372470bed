"""`pixrec settings`."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import click
from pydantic import BaseModel

from pixrec_assets.terminal import echo
from pixrec_core.settings import DatasetSettings, JointSettings, Section, Sections, Settings


@click.command()
def settings() -> None:
    """Print every setting with its type, default and unit, as Markdown: docs/settings.md.

    `pixrec doctor` checks the pixrec.toml of this folder.
    """
    echo(settings_page())


HEAD: Final = """\
# Settings

Generated from `pixrec_core/settings.py` by `pixrec settings > docs/settings.md`; a test
checks that the page is up to date.

Settings are in `pixrec.toml` of the working folder, or in the file of `pixrec --config` or `PIXREC_CONFIG`. An unknown
name is an error. Environment variables take precedence: `PIXREC_TRAINING__EPOCHS=5`. Relative paths start from the
folder of `pixrec.toml`; `~` is the home.

A section such as `[training]` applies to all datasets, `[datasets.NAME.training]` to one of them, and
`[joint.NAME.training]` to a training over several; `[engine]`, `[tracking]`, `[server]` and
`[dagster]` apply to all.
Options of sources: [your data](your-data.md).
"""

#: Sections that exist only at the top level.
TOP_LEVEL: Final = ("engine", "tracking", "server", "dagster")

#: Top-level fields that are not settings of the file, or have their own tables.
DESCRIBED_ELSEWHERE: Final = ("root", "datasets", "joint", *TOP_LEVEL)

#: Bounds of a JSON schema in words.
BOUNDS: Final = {"minimum": "{} or more", "exclusiveMinimum": "over {}", "maximum": "{} or less"} | {
    "exclusiveMaximum": "under {}",
    "minItems": "{} or more of them",
}


def settings_page() -> str:
    """Return the page in Markdown, with one table per section."""
    names = [name for name in Settings.model_fields if name not in (*Sections.model_fields, *DESCRIBED_ELSEWHERE)]
    parts = [HEAD, *_table("Top level", Settings, names)]
    parts += _table("`[datasets.NAME]`", DatasetSettings, ["start_from"])
    parts.append("\n## `[datasets.NAME.source]`\n\n")
    parts.append("`kind` is the source of raw files, which defines the other options: [your data](your-data.md).\n")
    parts += _table("`[joint.NAME]`", JointSettings, ["datasets"])
    for name, section in (Sections.model_fields | {name: Settings.model_fields[name] for name in TOP_LEVEL}).items():
        assert isinstance(section.annotation, type), "every section is a model"
        parts += _section(name, section.annotation)
    return "".join(parts)


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    """Yield the table of a section, then the tables of the sections in it."""
    inner = {key: section for key, field in model.model_fields.items() if (section := _inner(field.annotation))}
    yield from _table(f"`[{name}]`", model, [key for key in model.model_fields if key not in inner])
    for key, nested in inner.items():
        yield from _section(f"{name}.{key}", nested)


def _inner(annotation: Any) -> type[Section] | None:
    """The class of a field that is a section; else None."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _table(title: str, model: type[BaseModel], names: list[str]) -> Iterator[str]:
    schema = model.model_json_schema()
    yield f"\n## {title}\n\n| setting | value | default | description |\n|---|---|---|---|\n"
    for name in names:
        field = schema["properties"][name]
        default = model.model_fields[name].get_default(call_default_factory=False)
        cells = (f"`{name}`", _value(field), _default(field, default), field.get("description", ""))
        yield f"| {' | '.join(cells)} |\n"


def _value(field: Mapping[str, Any]) -> str:
    """Type, choices and bounds."""
    if "anyOf" in field:
        return " or ".join(_value(each) for each in field["anyOf"] if each.get("type") != "null")
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field.get("type") == "array":
        return f"list of {_value(field['items'])}" + _bounds(field)
    if "patternProperties" in field:
        return "table by host pattern"
    kind = field.get("format") or {"boolean": "`true` or `false`"}.get(field["type"], field["type"])
    return f"{kind}{_bounds(field)}"


def _bounds(field: Mapping[str, Any]) -> str:
    bounds = [
        words.format(f"{field[key]:,}" if isinstance(field[key], int) else f"{field[key]:g}")
        for key, words in BOUNDS.items()
        if key in field
    ]
    return f", {', '.join(bounds)}" if bounds else ""


def _default(field: Mapping[str, Any], default: Any) -> str:
    """The default as TOML; a dash if there is none."""
    if default is None or "default" not in field:
        return "-"
    return f"`{json.dumps(field['default'])}`"
