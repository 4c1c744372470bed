import gzip

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.data import interactions, raw_lines
from pixrec_core.errors import SourceError
from tests.core.data import raw_shop


def lines_of(tmp_path, raw):
    path = tmp_path / "raw.jsonl"
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(("raw", "count"), [(b"a\nb\n", 2), (b"a\nb", 2), (b"\n\n", 2), (b"a\r\n\r\nb", 3), (b"a", 1)])
def test_counts_lines_with_and_without_a_last_line_end(tmp_path, raw, count):
    path = lines_of(tmp_path, raw)
    found = raw_lines.index(path)
    assert (found.count, found.readable) == (count, True)
    assert len(list(raw_lines.lines(path))) == count


@pytest.mark.parametrize(
    ("raw", "count"), [(raw_lines.BOM + b"{}\n", 1), (b"{}\n" + b"x" * raw_lines.LONGEST, 2)], ids=["bom", "endless"]
)
def test_a_bom_and_an_endless_line_are_detected(tmp_path, raw, count):
    found = raw_lines.index(lines_of(tmp_path, raw))
    assert (found.count, found.readable) == (count, False)


def test_an_endless_line_is_truncated(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_lines, "LONGEST", 5)
    path = lines_of(tmp_path, b"1234\n12345\n123456789\nend")
    assert list(raw_lines.lines(path)) == [b"1234\n", b"12345\n", b"123456", b"end"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=9).map(lambda raw: raw.replace(b"\n", b"")), max_size=30), st.booleans(), st.data())
def test_any_lines_can_be_read_by_number(tmp_path_factory, whole, ended, data):
    """Chunks of 4 bytes, and lines of 0 to 9 bytes that are truncated after 6: all combinations of their ends."""
    raw = b"\n".join(whole) + b"\n" * ended
    path = lines_of(tmp_path_factory.mktemp("pick"), raw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(raw_lines, "_STRETCH", 4)
        patch.setattr(raw_lines, "LONGEST", 6)
        found, everything = raw_lines.index(path), list(raw_lines.lines(path))
        numbers = sorted(data.draw(st.sets(st.integers(1, max(found.count, 1)), max_size=found.count)))
        picked = list(raw_lines.pick(path, found, numbers))
    assert found.count == len(everything) == raw.count(b"\n") + (raw[-1:] not in (b"", b"\n"))
    assert picked == [everything[number - 1] for number in numbers]


def test_a_readable_copy_has_the_lines_that_are_not_blank_with_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_lines, "LONGEST", 5)
    path = lines_of(tmp_path, raw_lines.BOM + b"{}\n\n\n \t\r\n123456789\n[]")
    assert raw_lines.write_readable(path, tmp_path / "copy").tolist() == [1, 5, 6]
    assert (tmp_path / "copy").read_bytes() == b"{}\nnull\n[]"


@given(st.lists(st.sampled_from([b"\n", b"\n", b"\r\n", b" \n", b"x\n", b"yy\r\n"])))
def test_blank_lines_are_found(tmp_path_factory, rows):
    path = lines_of(tmp_path_factory.mktemp("blank"), b"".join(rows))
    first, width = raw_lines.blank_runs(path)
    numbers = raw_lines.write_readable(path, path.with_name("copy")).tolist()
    blank = [line for start, count in zip(first, width, strict=True) for line in range(start, start + count)]
    assert blank == [number for number, row in enumerate(rows, 1) if not row.strip(b"\r\n")]
    assert all(start + count < following for start, count, following in zip(first, width, first[1:], strict=False))
    assert numbers == [number for number, row in enumerate(rows, 1) if row.strip()]


def test_millions_of_blank_lines_take_no_rows(tmp_path):
    path = lines_of(tmp_path, raw_shop.review() + b"\n" * 5_000_000 + b"bad\n" + raw_shop.review(user_id="v"))
    paths = raw_shop.at(tmp_path, path, path)
    stats = interactions.build_interactions(raw_shop.LENIENT, paths)
    assert (stats["rows"], stats["bad_lines"]) == (2, 1)
    assert pl.read_parquet(paths.interactions_quarantine)["line"].to_list() == [5_000_002]


def test_a_plain_file_is_read_in_place(tmp_path):
    path = lines_of(tmp_path, b"{}\n")
    assert raw_lines.unpack(path, tmp_path, 100) == raw_lines.PlainFile(path)


def test_gzip_is_known_by_its_bytes_and_may_have_members(tmp_path):
    path = lines_of(tmp_path, gzip.compress(b"a\n") + gzip.compress(b"b\n"))
    plain = raw_lines.unpack(path, tmp_path, 100)
    assert plain.path.read_bytes() == b"a\nb\n"
    assert plain.damage is None


@pytest.mark.parametrize("damage", ["cut", "no trailer", "checksum", "garbage"])
def test_a_damaged_gzip_keeps_what_was_readable(tmp_path, damage):
    whole = b"".join(b"%d\n" % number for number in range(100_000))
    packed = gzip.compress(whole)
    broken = {
        "cut": packed[: len(packed) // 2],
        "no trailer": packed[:-8],
        "checksum": packed[:-8] + b"\0" * 8,
        "garbage": packed + b"garbage",
    }
    plain = raw_lines.unpack(lines_of(tmp_path, broken[damage]), tmp_path, 100)
    kept = plain.path.read_bytes()
    assert plain.damage
    assert whole.startswith(kept)
    assert len(kept) > (0.4 if damage == "cut" else 0.9) * len(whole)


def test_errors_name_a_missing_and_an_empty_file(tmp_path):
    with pytest.raises(SourceError, match=r"nowhere does not exist; correct .*source"):
        raw_lines.unpack(tmp_path / "nowhere", tmp_path, 100)
    with pytest.raises(SourceError, match=r"raw\.jsonl is empty"):
        raw_lines.unpack(lines_of(tmp_path, b""), tmp_path, 100)


def test_members_before_a_damaged_one_are_read(tmp_path):
    members = [gzip.compress(b"a\n"), gzip.compress(b"b\n"), gzip.compress(b"c\n" * 1000)[:-12]]
    plain = raw_lines.unpack(lines_of(tmp_path, b"".join(members)), tmp_path, 100)
    kept = plain.path.read_bytes()
    assert kept.startswith(b"a\nb\n")
    assert (b"a\nb\n" + b"c\n" * 1000).startswith(kept)
    assert plain.damage


def test_a_gzip_bomb_is_an_error_but_a_small_file_may_expand(tmp_path, monkeypatch):
    path = lines_of(tmp_path, gzip.compress(b"\n" * 5_000_000))
    assert path.stat().st_size < 10_000
    assert raw_lines.index(raw_lines.unpack(path, tmp_path, 2).path).count == 5_000_000
    monkeypatch.setattr(raw_lines, "ALWAYS_ALLOWED", 100_000)
    with pytest.raises(SourceError, match=r"raw\.jsonl unpacks to more than 500 times .* raise max_expansion"):
        raw_lines.unpack(path, tmp_path, 500)
    assert (tmp_path / "unpacked").stat().st_size < 500 * path.stat().st_size
    assert raw_lines.unpack(path, tmp_path, 1100).damage is None


def test_a_full_disk_is_not_reported_as_damage(tmp_path):
    path = lines_of(tmp_path, gzip.compress(b"{}\n"))
    (tmp_path / "unpacked").symlink_to("/dev/full")
    with pytest.raises(SourceError, match=r"cannot be unpacked .* No space left on device; free disk space"):
        raw_lines.unpack(path, tmp_path, 100)


def test_a_pattern_is_found_in_a_folder_whose_name_has_brackets(tmp_path):
    folder = tmp_path / "shop [2024]"
    folder.mkdir()
    for name in ("orders-1.csv", "orders-2.csv", "items.csv"):
        (folder / name).write_text("a")
    assert [path.name for path in raw_lines.list_files(folder / "orders-*.csv")] == ["orders-1.csv", "orders-2.csv"]
