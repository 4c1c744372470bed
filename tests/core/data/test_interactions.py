import gzip
import json
import math
import re
import unicodedata

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.data import interactions, raw_lines
from pixrec_core.errors import SourceError
from pixrec_core.schemas import INTERACTION_SCHEMA
from pixrec_core.settings import IngestSettings
from tests.core.data import raw_shop
from tests.core.data.raw_shop import LENIENT, review


def built(paths, settings=LENIENT):
    stats = interactions.build_interactions(settings, paths)
    rows, bad = raw_shop.tables(paths.interactions, paths.interactions_quarantine, INTERACTION_SCHEMA)
    return stats, rows.rows(), bad


def test_rows_are_sorted_by_user_time_and_line(tmp_path):
    raw = (
        review(user_id="v", parent_asin="late", timestamp=2)
        + review(user_id="u", parent_asin="tie2", timestamp=5)
        + review(user_id="u", parent_asin="tie1", timestamp=5, rating=0.0)
        + review(user_id="u", parent_asin="first", timestamp=1, rating=3)
    )
    stats, rows, _ = built(raw_shop.of(tmp_path, raw))
    assert rows == [
        ("u", "first", 1, 3.0, 4),
        ("u", "tie2", 5, 5.0, 2),
        ("u", "tie1", 5, 0.0, 3),
        ("v", "late", 2, 5.0, 1),
    ]
    assert stats == {
        "rows": 4, "bad_lines": 0, "bad_share": 0.0, "duplicates": 0, "truncated": False, "users": 2, "items": 4,
        "first_time": "1970-01-01T00:00:00+00:00", "last_time": "1970-01-01T00:00:00+00:00", "variants": 4,
        "balance": {"read": 4, "kept": 4, "rejected": {}, "dropped": {}},
    }  # fmt: skip


def test_drops_exact_duplicates_and_keeps_the_first(tmp_path):
    raw = review(rating=2) + review(rating=4) + review(timestamp=1001) + review(rating=1)
    stats, rows, _ = built(raw_shop.of(tmp_path, raw))
    assert rows == [("u1", "p", 1000, 2.0, 1), ("u1", "p", 1001, 5.0, 3)]
    assert stats["duplicates"] == 2


def test_falls_back_to_asin_and_counts_variants(tmp_path):
    raw = review(parent_asin=...) + review(parent_asin=None, asin="b") + review() + review(asin="p", timestamp=7)
    stats, rows, _ = built(raw_shop.of(tmp_path, raw))
    assert [row[1] for row in rows] == ["p", "a", "b", "p"]
    assert stats["variants"] == 1
    assert built(raw_shop.of(tmp_path, review(asin=...)))[0]["variants"] == 0


@pytest.mark.parametrize("factor", [1000, 1 / 1000, 1 / 1_000_000])
def test_times_of_another_unit_are_read_with_a_note(tmp_path, caplog, factor):
    caplog.set_level("INFO")
    raw = b"".join(review(timestamp=round((1_700_000_000_000 + n * 1000) / factor)) for n in range(3))
    _, rows, _ = built(raw_shop.of(tmp_path, raw))
    assert [row[2] for row in rows] == [1_700_000_000_000, 1_700_000_001_000, 1_700_000_002_000]
    assert "seconds, not milliseconds, and are read as such" in caplog.text


def test_a_time_that_is_too_large_in_seconds_too_is_rejected(tmp_path):
    raw = b"".join(review(timestamp=1_700_000_000 + n) for n in range(2000)) + review(timestamp=9 * 10**18)
    _, rows, rejected = built(raw_shop.of(tmp_path, raw))
    assert [row[2] for row in rows[:2]] == [1_700_000_000_000, 1_700_000_001_000]
    assert rejected.filter(line=2001)["reason"].str.contains("past the year 9999").to_list() == [True]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"timestamp": "1714521600000"}, ("u1", "p", 1_714_521_600_000, 5.0)),
        ({"timestamp": 1714521600000.5}, ("u1", "p", 1_714_521_600_000, 5.0)),
        ({"timestamp": "2024-05-01T02:00:00+02:00"}, ("u1", "p", 1_714_521_600_000, 5.0)),
        ({"timestamp": "2024-05-01 00:00:00 UTC"}, ("u1", "p", 1_714_521_600_000, 5.0)),
        ({"user_id": 4711, "parent_asin": 7.0}, ("4711", "7", 1000, 5.0)),
        ({"user_id": " u\u0308\u00a0", "parent_asin": "p\u200b"}, ("ü", "p", 1000, 5.0)),
        ({"rating": "4.5"}, ("u1", "p", 1000, 4.5)),
    ],
    ids=str,
)
def test_numbers_and_texts_as_programs_write_them(tmp_path, fields, expected):
    _, rows, _ = built(raw_shop.of(tmp_path, review(**fields)))
    assert [row[:4] for row in rows] == [expected]


@pytest.mark.parametrize("text", ['[{"user_id": "u"},', '[\n{"user_id": "u"}', '{\n "user_id": "u"\n}'])
def test_json_that_is_not_in_lines_is_refused_by_name(tmp_path, text):
    with pytest.raises(
        SourceError, match=r"is (a JSON list|JSON with an object on several lines); write one object per"
    ):
        built(raw_shop.of(tmp_path, text.encode()))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (review(timestamp=-1), "timestamp is not after 1970"),
        (review(timestamp=0), "timestamp is not after 1970"),
        (review(timestamp="1000"), "timestamp is neither a whole number nor ISO 8601: "),
        (review(timestamp=1.5), "timestamp is neither a whole number nor ISO 8601: "),
        (review(timestamp=True), "timestamp is neither a whole number nor ISO 8601: "),
        (review(timestamp=10**30), "timestamp is neither a whole number nor ISO 8601: "),
        (review(timestamp=10**16), "timestamp is past the year 9999; it must be in milliseconds"),
        (review(timestamp=...), "timestamp is missing"),
        (review(rating=None), "rating is missing"),
        (review(rating="five"), 'rating is not a number: "five"'),
        (review(rating=math.nan), "rating is not from 0 to 5"),
        (review(rating=5.5), "rating is not from 0 to 5"),
        (review(rating=-1), "rating is not from 0 to 5"),
        (review().replace(b"5.0", b"1e999"), "rating is not from 0 to 5"),
        (review(user_id=...), "user_id is missing"),
        (review(user_id=None), "user_id is missing"),
        (review(user_id=6.5), "user_id is neither text nor a whole number: 6.5"),
        (review(user_id=" "), "user is empty"),
        (review(user_id="a\0b"), "user contains a NUL"),
        (review(parent_asin=""), "item is empty"),
        (review(parent_asin=["p"]), 'parent_asin is neither text nor a whole number: ["p"]'),
        (review(parent_asin=None, asin=None), "parent_asin is missing"),
        (b"{}\n", "user_id is missing"),
        (b"[1, 2]\n", "not a JSON object"),
        (b"null\n", "not a JSON object"),
        (b"nonsense\n", "not JSON: Expecting value: line 1 column 1 (char 0)"),
        (review()[:20] + b"\n", "not JSON: "),
        (review()[:-1] + review(), "not JSON: Extra data"),
        (review().replace(b"u1", b"u\xff"), "broken UTF-8 at byte 15"),
        (review().replace(b"u1", b"u\x00"), "contains a NUL byte"),
        (review(user_id="\ud800"), "contains half of a surrogate pair"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n", "nested too deeply"),
    ],
)
def test_quarantines_a_bad_line_with_its_reason(tmp_path, line, reason):
    stats, rows, bad = built(raw_shop.of(tmp_path, review(user_id="before") + line + review(user_id="behind")))
    assert [(row[0], row[4]) for row in rows] == [("before", 1), ("behind", 3)]
    ((file, number, reported, raw),) = bad.rows()
    assert (file, number) == (str(tmp_path / "raw.jsonl"), 2)
    assert reported.startswith(reason)
    assert raw == line.decode("utf-8", "replace")[:200].rstrip("\n")
    assert (stats["bad_lines"], stats["bad_share"]) == (1, 1 / 3)


def test_blank_lines_bom_and_crlf_are_accepted(tmp_path):
    raw = raw_lines.BOM + review(user_id="é") + b"\n \t\n" + b"bad\n" + b"\r\n" + review(user_id="z")
    stats, rows, bad = built(raw_shop.of(tmp_path, raw.replace(b"\n", b"\r\n")[:-2]))
    assert [(row[0], row[4]) for row in rows] == [("z", 6), ("é", 1)]
    assert bad["line"].to_list() == [4]
    assert stats["bad_share"] == 1 / 3


def test_a_long_line_is_read_and_an_endless_one_is_rejected(tmp_path):
    long, endless = (review(user_id=name, text="x" * size) for name, size in (("l", 9 << 20), ("e", 40 << 20)))
    _, rows, bad = built(raw_shop.of(tmp_path, long + endless + review(user_id="z")))
    assert [(row[0], row[4]) for row in rows] == [("l", 1), ("z", 3)]
    assert bad.select("line", "reason").rows() == [(2, "longer than 16,777,216 bytes")]


def test_gzip_gives_the_same_rows_and_a_truncated_one_its_readable_rows(tmp_path):
    raw = b"".join(review(user_id=f"u{number:05}", timestamp=number + 1) for number in range(50_000))
    _, rows, _ = built(raw_shop.of(tmp_path, gzip.compress(raw), "reviews.gz"))
    assert [row[4] for row in rows] == list(range(1, 50_001))
    stats, kept, bad = built(raw_shop.of(tmp_path, gzip.compress(raw)[:-20_000], "cut.gz"), IngestSettings())
    assert stats["truncated"]
    assert 1_000 < len(kept) < 50_000
    assert kept == rows[: len(kept)]
    assert "damaged and readable only up to here" in bad["reason"][-1]
    assert bad["line"][-1] in (len(kept), len(kept) + 1)


def test_too_many_rejected_lines_are_an_error_that_says_what_to_do(tmp_path):
    paths = raw_shop.of(tmp_path, review() * 96 + b"1\n2\n3\n4\n")
    with pytest.raises(SourceError) as caught:
        interactions.build_interactions(IngestSettings(max_bad_share=0.03), paths)
    reported = str(caught.value)
    for part in (
        "raw.jsonl",
        "4 of 100",
        "line 97: not a JSON object",
        "line 99",
        "max_bad_share",
        "quarantine.parquet",
    ):
        assert part in reported
    assert "line 100" not in reported
    assert pl.read_parquet(paths.interactions_quarantine).height == 4
    assert not paths.interactions.exists()
    assert interactions.build_interactions(IngestSettings(max_bad_share=0.04), paths)["bad_share"] == 0.04


@pytest.mark.parametrize("raw", [b"\n\n", b"1\n", b"\xff\xfe{\x00}\x00\n\x00"])
def test_a_file_without_a_valid_line_is_an_error(tmp_path, raw):
    with pytest.raises(SourceError, match=r"raw\.jsonl has no good row"):
        interactions.build_interactions(LENIENT, raw_shop.of(tmp_path, raw))


def test_the_real_lines_parse(shared_data, tmp_path):
    folder = shared_data / "amazon-2023-lines"
    stats, rows, _ = built(raw_shop.at(tmp_path, folder / "reviews.jsonl", folder / "meta.jsonl"), IngestSettings())
    assert rows[0] == ("AEDTXOC3YW6O7P2UPM22VNNRF77A", "B08N5QKX1Y", 1563230263551, 5.0, 2)
    assert (stats["rows"], stats["variants"], stats["first_time"]) == (4, 2, "2019-07-15T22:37:43+00:00")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "lines", "rows", "users"), [("hm", 81_916, 73_137, 34_484), ("movielens-100k", 100_000, 100_000, 943)]
)
def test_real_sets_agree_with_a_python_loop(shared_data, tmp_path, name, lines, rows, users):
    folder = shared_data / name
    paths = raw_shop.at(tmp_path, folder / "reviews.jsonl.gz", folder / "meta.jsonl.gz")
    stats, found, _ = built(paths, IngestSettings())
    assert found == by_python(folder / "reviews.jsonl.gz")
    assert (stats["rows"] + stats["duplicates"], stats["rows"], stats["users"]) == (lines, rows, users)


def by_python(path):
    """Return the expected rows, found with the json module."""
    raw = path.read_bytes()
    raw = gzip.decompress(raw) if raw.startswith(b"\x1f\x8b") else raw
    kept = {}
    for number, line in enumerate(raw.split(b"\n"), start=1):
        row = good_row(line, number)
        if row:
            kept.setdefault(row[:3], row)
    return sorted(kept.values(), key=lambda row: (row[0].encode(), row[2], row[4]))


def good_row(line, number):
    try:
        fields = json.loads(line.decode())
        json.dumps(fields, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    item = fields.get("asin") if fields.get("parent_asin") is None else fields["parent_asin"]
    user, time, rating = fields.get("user_id"), fields.get("timestamp"), fields.get("rating")
    user, item = map(clean_id, (user, item))
    rating = float(rating) if isinstance(rating, str) and re.fullmatch(r"[0-9]([.][0-9]+)?", rating) else rating
    ids = all(isinstance(name, str) and name.strip(" ") and "\0" not in name for name in (user, item))
    whole = type(time) is int and 0 < time <= interactions.MAX_TIMESTAMP
    number_like = type(rating) in (int, float) and 0 <= rating <= 5
    return (user, item, time, float(rating), number) if ids and whole and number_like else None


def clean_id(value):
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value).strip(BLANKS)
    text = repr(value)
    return re.sub(r"[.]0+$", "", text) if re.fullmatch(r"-?[0-9]+([.]0+)?", text) else value


BLANKS = "".join(
    map(chr, (*range(9, 14), 32, 0xA0, 0xAD, *range(0x2000, 0x2010), 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF))
)
IDS = st.sampled_from(["u1", "u2", "é", "日本", 'quo"te', "back\\slash", "tab\t", "\U0001f600", " "]) | st.text(
    st.characters(max_codepoint=0x2FFF), max_size=3
)  # Python and DuckDB know different versions of Unicode
FLOATS = st.floats(-1e7, 1e7) | st.sampled_from([math.inf, math.nan])  # larger ones are times
JUNK = st.none() | st.booleans() | st.integers() | FLOATS | st.text(max_size=3) | st.just([]) | st.just({"a": 1})
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "user_id": IDS | JUNK,
        "parent_asin": IDS | JUNK,
        "asin": IDS | JUNK,
        "timestamp": st.integers(-2, 3) | st.integers() | JUNK,
        "rating": st.sampled_from([0.0, 5, 4.5]) | JUNK,
        "text": JUNK,
    },
)
GOOD = st.fixed_dictionaries({"user_id": IDS, "asin": IDS, "timestamp": st.integers(1, 3), "rating": st.just(5.0)})
LINES = st.lists(
    (GOOD | FIELDS | JUNK).flatmap(lambda value: st.booleans().map(lambda ascii_: dumped(value, ascii_)))
    | st.sampled_from([b"", b" ", b"\r", b"\x0b", b"{", b"\xff", b"\x00", b'{"user_id":"u1"', b"{} {}", raw_lines.BOM])
    | st.binary(max_size=8).map(lambda raw: raw.replace(b"\n", b"")),
    max_size=12,
)  # fmt: skip


def dumped(value, ascii_):
    return json.dumps(value, ensure_ascii=ascii_).encode("utf-8", "surrogatepass")


@settings(max_examples=50, deadline=None)
@given(LINES, st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_any_lines_agree_with_a_python_loop(tmp_path_factory, lines, end, packed):
    raw = review() + end.join(lines)
    folder = tmp_path_factory.mktemp("mixture")
    stats, rows, bad = built(raw_shop.of(folder, gzip.compress(raw) if packed else raw))
    assert rows == by_python(folder / "raw.jsonl")
    blank = [number for number, line in enumerate(raw.split(b"\n"), start=1) if not line.strip()]
    good = [number for number, line in enumerate(raw.split(b"\n"), start=1) if good_row(line, number)]
    everything = range(1, raw.count(b"\n") + 2)
    assert bad["line"].to_list() == sorted(set(everything) - set(blank) - set(good))
    assert stats["rows"] + stats["duplicates"] == len(good)
