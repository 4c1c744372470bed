"""docs/settings.md describes every setting and is up to date."""

from pathlib import Path

from pixrec_assets.commands.settings import settings_page
from pixrec_core.settings import Sections

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == settings_page(), "pixrec settings > docs/settings.md"


def test_every_setting_has_a_row_and_a_description():
    page = settings_page()
    for name, section in Sections.model_fields.items():
        assert f"\n## `[{name}]`\n" in page
        for field in section.annotation.model_fields:
            assert f"| `{field}` |" in page or f"## `[{name}.{field}]`" in page
    rows = [row for row in page.splitlines() if row.startswith("| `")]
    assert all(len(row.removesuffix(" |").rpartition(" | ")[2]) > 3 for row in rows)


def test_some_rows():
    page = settings_page()
    assert "| `attempts` | integer, 1 or more | `4` | attempts per URL before it counts as failed |" in page
    assert '| `vision` | `trainable`, `frozen` | `"trainable"` | train the vision tower, or freeze it |' in page
    assert "| `test_from` | date | - | time split: first day of test (UTC), instead of the share |" in page
    assert "| `warmup_ratio` | number, 0 or more, under 1 | `0.0` |" in page
