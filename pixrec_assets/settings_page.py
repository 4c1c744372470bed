"""The page of all settings, made from their definitions: docs/settings.md."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel

from pixrec_core.settings import DatasetSettings, JointSettings, Section, Sections, Settings

HEAD: Final = """\
# Settings

Made by `pixrec settings > docs/settings.md` from [`pixrec_core/settings.py`](../pixrec_core/settings.py); a test
holds it current.

They stand in `pixrec.toml`, in the folder where `pixrec` is called, or in the file that `pixrec --config` or
`PIXREC_CONFIG` names. A name that is not here is an error. Environment variables win: `PIXREC_TRAINING__EPOCHS=5`.

A section such as `[training]` holds for all datasets, `[datasets.NAME.training]` for one alone,
`[joint.NAME.training]` for a training over several; `[engine]` and `[tracking]` hold for all.
Options of sources: [data.md](data.md).
"""

#: Sections that stand at the top level alone.
OF_ALL: Final = ("engine", "tracking")

#: Top-level fields that are no settings of the file, or have tables of their own.
TOLD_ELSEWHERE: Final = ("root", "datasets", "joint", *OF_ALL)

#: What JSON schema says of a bound, in words.
BOUNDS: Final = {"minimum": "{} or more", "exclusiveMinimum": "over {}", "maximum": "{} or less"} | {
    "exclusiveMaximum": "under {}",
    "minItems": "{} or more of them",
}


def settings_page() -> str:
    """The page in Markdown, a table a section."""
    own = [name for name in Settings.model_fields if name not in (*Sections.model_fields, *TOLD_ELSEWHERE)]
    parts = [HEAD, *_table("Top level", Settings, own)]
    parts += _table("`[datasets.NAME]`", DatasetSettings, ["start_from"])
    parts += [
        *("\n## `[datasets.NAME.source]`\n\n`kind` names where raw files come from, ",),
        "the rest belongs to that source: [data.md](data.md).\n",
    ]
    parts += _table("`[joint.NAME]`", JointSettings, ["datasets"])
    for name, section in (Sections.model_fields | {name: Settings.model_fields[name] for name in OF_ALL}).items():
        assert isinstance(section.annotation, type), "every section is a model"
        parts += _section(name, section.annotation)
    return "".join(parts)


def _section(name: str, model: type[BaseModel]) -> Iterator[str]:
    """A section's table, then those of the sections within."""
    inner = {key: section for key, field in model.model_fields.items() if (section := _inner(field.annotation))}
    yield from _table(f"`[{name}]`", model, [key for key in model.model_fields if key not in inner])
    for key, nested in inner.items():
        yield from _section(f"{name}.{key}", nested)


def _inner(annotation: Any) -> type[Section] | None:
    """The section that a field holds, if it holds one."""
    return annotation if isinstance(annotation, type) and issubclass(annotation, Section) else None


def _table(title: str, model: type[BaseModel], names: list[str]) -> Iterator[str]:
    schema = model.model_json_schema()
    yield f"\n## {title}\n\n| setting | value | default | what it is |\n|---|---|---|---|\n"
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
    kind = field.get("format") or {"boolean": "`true` or `false`"}.get(field["type"], field["type"])
    return f"{kind}{_bounds(field)}"


def _bounds(field: Mapping[str, Any]) -> str:
    told = [words.format(f"{field[key]:g}") for key, words in BOUNDS.items() if key in field]
    return f", {', '.join(told)}" if told else ""


def _default(field: Mapping[str, Any], default: Any) -> str:
    """As TOML writes it; a dash where there is none."""
    if default is None or "default" not in field:
        return "-"
    return f"`{json.dumps(field['default'])}`"
