"""The pages about data document all options, and their numbers are those of the code."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from pixrec_core.data import raw_files
from pixrec_core.data.sources import _heads, _times
from pixrec_core.data.sources._download import ATTEMPTS
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.settings import IngestSettings

DOCS = Path(__file__).resolve().parents[4] / "docs"
PAGE = "".join((DOCS / name).read_text() for name in ("your-data.md", "amazon.md"))


def options_of(model):
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from options_of(field.annotation)


@pytest.mark.parametrize("name", plugin_names(raw_files.SOURCES))
def test_every_option_is_documented(name):
    described = set(re.findall(r"`(\w+)`", PAGE))
    assert set(options_of(load_plugin(raw_files.SOURCES, name).Options)) - described == set()
    assert f"`{name}`" in PAGE


def test_documented_numbers_are_those_of_the_code():
    ingest = IngestSettings()
    assert f"max_bad_share = {ingest.max_bad_share:g} " in PAGE
    assert f"max_expansion = {ingest.max_expansion:g} " in PAGE
    assert f"the first {_heads.HEAD_ROWS:,} values" in PAGE
    assert f"at least {_times.SURE:.0%}".replace("%", " %") in PAGE
    assert ATTEMPTS == 5
    assert "up to five times in a row" in PAGE
