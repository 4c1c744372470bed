"""What the UI is shown."""

import base64
import io

import polars as pl
from PIL import Image

from pixrec_assets.metadata import (
    flatten_stats,
    markdown_table,
    photo_metadata,
    quarantine_metadata,
    sequences_metadata,
    table_metadata,
)
from pixrec_core.settings import Settings
from pixrec_core.stages import Work
from tests.assets import fake_stages
from tests.core.photo_bytes import with_size


def test_stats_are_flattened_and_empty_values_left_out():
    assert flatten_stats({"a": 1, "b": {"c": 0.5, "d": {"e": "x"}}, "f": None}) == {"a": 1, "b/c": 0.5, "b/d/e": "x"}


def test_cells_cannot_end_a_table_or_contain_markup():
    table = markdown_table(["title"], [["a | b\n<script>"], ["x" * 100]]).md_str
    assert table.splitlines() == ["| title |", "| --- |", "| a \\| b &lt;script> |", f"| {'x' * 79}… |"]


def test_a_parquet_file_shows_rows_columns_and_a_sample(settings: Settings):
    work = Work(settings, "sample")
    work.paths.root.mkdir(parents=True)
    fake_stages.items(work)
    shown = table_metadata(work.paths.items)
    assert shown["dagster/row_count"] == 2
    assert [column.name for column in shown["dagster/column_schema"].columns] == ["item", "title"]
    assert "Red shirt" in shown["sample"].md_str


def test_the_quarantine_is_counted_by_reason(tmp_path):
    lines = {"file": ["m"] * 3, "line": [1, 2, 3], "reason": ["no title", "broken", "no title"], "raw": ["{"] * 3}
    pl.DataFrame(lines).write_parquet(tmp_path / "q.parquet")
    shown = quarantine_metadata(tmp_path / "q.parquet")
    assert shown["quarantine_lines"] == 3
    assert shown["quarantine_reasons"].md_str.splitlines()[2:] == ["| no title | 2 |", "| broken | 1 |"]
    assert quarantine_metadata(tmp_path / "none.parquet") == {}


def test_photos_become_one_small_picture(settings: Settings):
    work = Work(settings, "sample")
    fake_stages.images(work)
    shown = photo_metadata(work.paths)
    _, _, encoded = shown["photos"].md_str.removesuffix(")").partition("base64,")
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.size == (6 * 96, 96)
    assert len(encoded) < 100_000
    red, green, blue = picture.getpixel((48, 48))
    assert red > 200
    assert max(green, blue) < 60
    assert "HTTP 404" in shown["failures"].md_str


def test_sequences_are_counted_by_split(settings: Settings):
    work = Work(settings, "sample")
    work.paths.root.mkdir(parents=True)
    fake_stages.sequences(work)
    shown = sequences_metadata(work.paths.sequences)
    assert shown["splits"].md_str.splitlines()[2:] == ["| test | 1 | 1.0 |", "| train | 1 | 2.0 |"]


def test_a_damaged_photo_leaves_its_place_in_the_picture_white(settings: Settings):
    work = Work(settings, "sample")
    fake_stages.images(work)
    jpeg = work.paths.image("a").read_bytes()
    for damaged in (jpeg[:30], with_size(jpeg, 65_500)):
        work.paths.image("a").write_bytes(damaged)
        _, _, encoded = photo_metadata(work.paths)["photos"].md_str.removesuffix(")").partition("base64,")
        assert Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((48, 48)) == (255, 255, 255)
