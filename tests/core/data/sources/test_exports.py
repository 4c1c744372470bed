"""Tables as shops, spreadsheets and warehouses export them: the right values, or a message that says what to do."""

import csv
import gzip
import io
import logging
import re
import zipfile
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pixrec_core.data import interactions, items, raw_files
from pixrec_core.data.id_mismatch import explain_mismatch
from pixrec_core.data.sources import tables
from pixrec_core.data.sources._mapped_columns import MappedColumns
from pixrec_core.errors import SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import SourceSettings
from tests.core.data.raw_shop import LENIENT

BOUGHT = {"user": "customer", "item": "sku", "timestamp": "bought_at"}
ORDERS = "customer,sku,bought_at\n"
ORDER = "Müller,s,2024-05-01\n"
MAY_1 = 1_714_521_600_000
SEMICOLONS = (ORDERS + ORDER).replace(",", ";")


def source(**more):
    chosen = {"interactions": "orders.csv", "items": "products.csv", "interaction_columns": BOUGHT}
    return SourceSettings(kind="tables", **{**chosen, "item_columns": {"item": "sku"}, **more})


def fetched(root, orders=ORDERS + ORDER, products="sku\ns\n", **more):
    """Return the dataset after the raw stage; contents of None are not written."""
    for name, content in (("orders.csv", orders), ("products.csv", products)):
        if content is not None:
            (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    paths = DatasetPaths(root / "data" / "shop")
    raw_files.fetch(source(**more), root, paths)
    return paths


def bought(root, orders=None, **more):
    """Return the interactions as dictionaries, and the balance."""
    paths = fetched(root, orders, **more)
    stats = interactions.build_interactions(LENIENT, paths)
    return pl.read_parquet(paths.interactions).to_dicts(), stats["balance"]


def catalogue(root, products, columns=None, **more):
    """Return the items by id, and the balance."""
    paths = fetched(root, products=products, item_columns={"item": "sku", **(columns or {})}, **more)
    stats = items.build_items(LENIENT, paths)
    return {row["item"]: row for row in pl.read_parquet(paths.items).to_dicts()}, stats["balance"]


def zipped(*names):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), ORDERS + ORDER)  # with a fixed time: the content names a test
    return content.getvalue()


def damaged_zip(method):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        archive.writestr(zipfile.ZipInfo("orders.csv"), ORDERS + ORDER, method)
    return content.getvalue()[:60] + b"\xff" * 20 + content.getvalue()[80:]


@pytest.mark.parametrize(
    "orders",
    [
        (ORDERS + ORDER).encode("utf-16"),
        ("\ufeff" + ORDERS + ORDER).encode("utf-16-be"),
        (ORDERS + ORDER).replace(",", "\t").encode("utf-16-le"),
        (ORDERS + ORDER).encode("cp1252"),
        gzip.compress((ORDERS + ORDER).encode("utf-16"), mtime=0),
        zipped("__MACOSX/._orders.csv", "orders.csv"),
        SEMICOLONS,
        SEMICOLONS.replace(";", "|"),
        "sep=;\n" + SEMICOLONS,
        '"sep=\t"\r\n' + SEMICOLONS.replace(";", "\t").replace("\n", "\r\n"),
        ' Customer ,"SKU",BOUGHT_AT\n' + ORDER,
        (ORDERS + ORDER).encode("utf-32"),
        SEMICOLONS.replace(";", "\x01"),
        SEMICOLONS.replace(";", "^"),
        zipped("README.txt", ".DS_Store", "orders.csv"),
        "Report of orders\n2024-05-02\n\n" + ORDERS + ORDER,
    ],
    ids=[
        *("utf-16", "utf-16-be", "utf-16-le", "cp1252", "gzip", "zip", *";|", "sep=;", "sep=tab", "header", "utf-32"),
        *("hive", "caret", "zip of a table", "title above"),
    ],
)
def test_files_in_other_forms_are_read(tmp_path, orders):
    rows, balance = bought(tmp_path, orders)
    assert [(row["user"], row["item"], row["timestamp"]) for row in rows] == [("Müller", "s", MAY_1)]
    assert balance == {"read": 1, "kept": 1, "rejected": {}, "dropped": {}}


def test_each_file_has_its_own_delimiter_even_if_another_is_set(tmp_path):
    (tmp_path / "products.csv").write_text("sku\tname\ns\tLamp\n")
    paths = fetched(tmp_path, products=None, delimiter=",", item_columns={"item": "sku", "title": "name"})
    items.build_items(LENIENT, paths)
    assert pl.read_parquet(paths.items)["title"].to_list() == ["Lamp"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zipped("[Content_Types].xml", "xl/workbook.xml"), r"is a spreadsheet .*; save it as CSV in UTF-8"),
        *(
            (content, r"a zip archive or an Excel workbook that cannot be read")
            for content in (
                b"PK\x03\x04 and nothing else",
                *map(damaged_zip, (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)),
            )
        ),
        (zipped("a.csv", "b.csv"), r"a zip archive of 2 files \('a.csv', 'b.csv'\); unpack it and name one"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1...", "is an Excel workbook; save it as CSV in UTF-8"),
        (b"(\xb5/\xfd...", "is compressed with zstd; unpack it"),
        (b"<!DOCTYPE html><p>Log in", "is a web page or XML, such as the page of an error or a login"),
        ((ORDERS + "Иванов Пётр,s,2024-05-01\n").encode("cp1251"), "is not UTF-8: .* Set `encoding` in .*shop.source"),
        (gzip.compress(gzip.compress(b"a,b", mtime=0), mtime=0), "is compressed twice; unpack it once"),
        (zipped(), "is an empty zip archive"),
        (b"orders.csv".ljust(257, b"\0") + b"ustar\0", "is a tar archive; unpack it"),
        (b"ORC\0\1", "is an ORC file; write it as Parquet"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS"),
        (bytes(range(256)), "is a binary file, not a table"),
        (b'{"customer": "u"}\n', "is JSON; write it as CSV or Parquet"),
        ("customer;sku;bought_at\n" + ORDER, "no row that can be read; line 2: 1 cells where the header has 3"),
        (ORDERS.replace("sku", "customer") + ORDER, "has more than one column 'customer', .*; rename one of them"),
    ],
)
def test_other_kinds_of_files_are_refused_by_name(tmp_path, content, message):
    with pytest.raises(SourceError, match=message):
        fetched(tmp_path, content)


def test_the_encoding_can_be_set(tmp_path):
    orders = (ORDERS + "Иванов Пётр,s,2024-05-01\n").encode("cp1251")
    assert bought(tmp_path, orders, encoding="cp1251")[0][0]["user"] == "Иванов Пётр"
    (tmp_path / "products.csv").write_text("sku,name\ns,Лампа и торшер\n")  # a file in UTF-8 stays in UTF-8
    paths = fetched(tmp_path, orders, None, encoding="cp1251", item_columns={"item": "sku", "title": "name"})
    items.build_items(LENIENT, paths)
    assert pl.read_parquet(paths.items)["title"].to_list() == ["Лампа и торшер"]
    for encoding in ("utf-16", "ascii"):
        with pytest.raises(SourceError, match=rf"orders.csv is not {encoding}: .*Correct `encoding`"):
            fetched(tmp_path, orders, encoding=encoding)
    for wrong in ({"encoding": "klingon"}, {"time_zone": "Mars/Base"}, {"time_unit": "s", "time_format": "%Y"}):
        with pytest.raises(ValidationError):
            tables.Options(**(source().options | wrong))


@pytest.mark.parametrize("name", ["orders", "orders/*/*.csv"])
def test_folders_and_patterns_are_read_in_order_with_their_partitions(tmp_path, name):
    for year in (2023, 2024):
        folder = tmp_path / "orders" / f"year={year}"
        folder.mkdir(parents=True)
        (folder / "part.csv").write_text(f"{ORDERS}u{year},s,2024-05-01\nbroken\n")
        (folder / "_SUCCESS.csv").write_text("no table") if name == "orders" else None
    paths = fetched(tmp_path, None, interactions=name)
    stats = interactions.build_interactions(LENIENT, paths)
    rows = pl.read_parquet(paths.interactions)
    assert rows.select("user", "position").rows() == [("u2023", 2), ("u2024", 5)]
    assert stats["balance"]["rejected"] == {"1 cells where the header has 3": 2}
    bad = pl.read_parquet(paths.interactions_quarantine)
    assert bad.select("file", "line").rows() == [
        (str(tmp_path / "orders" / f"year={year}" / "part.csv"), 3) for year in (2023, 2024)
    ]
    filtered = BOUGHT | {"where": "year > 2023"}
    assert [row["user"] for row in bought(tmp_path, None, interactions=name, interaction_columns=filtered)[0]] == [
        "u2024"
    ]


@pytest.mark.parametrize(
    ("part", "where"), [("day=__HIVE_DEFAULT_PARTITION__", "day IS NULL"), ("day=1%2F2", "day = '1/2'")]
)
def test_values_of_partitions_are_decoded(tmp_path, part, where):
    (tmp_path / "orders" / part).mkdir(parents=True)
    (tmp_path / "orders" / part / "part.csv").write_text(ORDERS + ORDER)
    assert len(bought(tmp_path, None, interactions="orders", interaction_columns=BOUGHT | {"where": where})[0]) == 1


def test_every_file_of_a_folder_is_read_or_named(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "orders"
    folder.mkdir()
    for name, text in {"a.csv": ORDERS + ORDER, "b.csv": "", "c.csv": ORDERS, "d.xlsx": "PK", "_SUCCESS": ""}.items():
        (folder / name).write_text(text)
    assert len(bought(tmp_path, None, interactions="orders")[0]) == 1
    assert "warning: 1 other files of the folder are left out, such as 'd.xlsx'; the run continues" in caplog.text
    (folder / "b.csv").write_text("customer,bought_at\nu,2024-05-01\n")
    with pytest.raises(SourceError, match=r"b\.csv has no column 'sku'"):
        fetched(tmp_path, None, interactions="orders")


@pytest.mark.parametrize("name", ["https://h/orders.csv", "s3://h/orders.parquet", "~nobody-has-this-name/orders.csv"])
def test_names_that_are_no_local_files_are_reported(tmp_path, name):
    with pytest.raises(SourceError, match=r"is no local file|is not a path that can be used"):
        fetched(tmp_path, None, interactions=name)


QUOTES = {
    '"a \\"b\\", c",s,2024-05-01\n': ['a "b", c'], 'a "b" c,s,2024-05-01\n': ['a "b" c'],
    '"19 rack,s,2024-05-01\nb,s,2024-05-02\n20 rack",s,2024-05-03\n': ["b", '20 rack"'],  # two stray quotes
    '"a\nb, c",s,2024-05-01\n': ["a\nb, c"],
}  # fmt: skip


@pytest.mark.parametrize("orders", QUOTES)
def test_quotes_in_unusual_places(tmp_path, orders):
    rows, balance = bought(tmp_path, ORDERS + orders + "".join(f"v{n},t,2024-05-02\n" for n in range(9)))
    assert sorted(row["user"] for row in rows if row["item"] == "s") == sorted(QUOTES[orders])
    assert balance["read"] == len(rows) + sum(balance["rejected"].values())


@pytest.mark.parametrize(
    ("written", "kept"),
    [(["2024-05-02", "soon", None], {"1": MAY_1, "v0": MAY_1 + 86_400_000}), ([1_714_521_600, 5, None], {"1": MAY_1})],
)
def test_a_file_between_others_with_times_may_have_texts_and_numbers(tmp_path, written, kept):
    folder = tmp_path / "orders"
    folder.mkdir()
    for name in "ac":
        pl.DataFrame({"customer": ["1"], "sku": ["s"], "bought_at": [datetime(2024, 5, 1, tzinfo=UTC)]}).write_parquet(
            folder / f"{name}.parquet"
        )
    pl.DataFrame({"customer": ["v0", "v1", "v2"], "sku": ["s"] * 3, "bought_at": written}).write_parquet(
        folder / "b.parquet"
    )
    rows, balance = bought(tmp_path, None, interactions="orders")
    assert {row["user"]: row["timestamp"] for row in rows} == kept
    wrong = len(written) - len(kept)
    assert balance["rejected"] == {"bought_at is not a time in ISO 8601": wrong, "bought_at is empty": 1}


@pytest.mark.parametrize(
    ("first", "shown"),
    [("999999999999", " = 33658-09-27 01:46:39 UTC"), ("99999999999999", ""), ("-99999999999999", ""), ("inf", "")],
)
def test_an_absurd_first_time_is_a_rejected_row_and_ends_nothing(tmp_path, first, shown):
    """DuckDB cannot show times after the year 294,246, nor Python those after 9999."""
    orders = ORDERS + f"u,s,{first}\n" + "v,s,1714521600\n" * 200
    rows, balance = bought(tmp_path, orders)
    assert [row["timestamp"] for row in rows] == [MAY_1]
    assert sum(balance["rejected"].values()) == 1
    lines = raw_files.preview(source(), tmp_path, "shop")
    assert f"  timestamp <- 'bought_at': '{first}'{shown}, '1714521600' = 2024-05-01 00:00:00 UTC, " in "\n".join(lines)


def test_parquet_partitions_may_differ_in_types(tmp_path):
    folder = tmp_path / "orders"
    folder.mkdir()
    pl.DataFrame({"customer": [1], "sku": ["s"], "bought_at": [1_714_521_600]}).write_parquet(folder / "a.parquet")
    pl.DataFrame({"customer": ["2"], "sku": ["s"], "bought_at": ["1714521601"]}).write_parquet(folder / "b.parquet")
    rows, _ = bought(tmp_path, None, interactions="orders")
    assert [(row["user"], row["timestamp"] - MAY_1) for row in rows] == [("1", 0), ("2", 1000)]


@pytest.mark.parametrize(
    ("value", "expected", "more"),
    [
        ("2024-04-30 19:00:00 -0500", MAY_1, {}),
        ("2024-05-01 00:00:00 UTC", MAY_1, {}),
        ("2024-05-01 00:00:00.000000 +0000 UTC", MAY_1, {}),
        ("2024-05-01 00:00:00,000", MAY_1, {}),
        ("1714521600000000000", MAY_1, {}),
        ("45413", MAY_1, {}),
        ("45413.5", MAY_1 + 43_200_000, {}),
        ("20240501", MAY_1, {}),
        ("5/31/2024 1:05 PM", MAY_1 + 30 * 86_400_000 + 47_100_000, {}),
        ("01.05.2024 12:00", MAY_1 + 43_200_000, {}),
        ("1-May-2024", MAY_1, {}),
        ("Wed, 01 May 2024 00:00:00 +0000", MAY_1, {}),
        ("01/05/2024", MAY_1, {"time_format": "%d/%m/%Y"}),
        ("2024-05-01 02:00", MAY_1, {"time_zone": "Europe/Berlin"}),
        ("01.05.2024 02:00", MAY_1, {"time_zone": "Europe/Berlin"}),
    ],
)
def test_times_as_programs_write_them(tmp_path, value, expected, more):
    rows, balance = bought(tmp_path, f'{ORDERS}u,s,"{value}"\n', **more)
    assert balance["rejected"] == {}
    assert rows[0]["timestamp"] == expected


@pytest.mark.parametrize(
    ("value", "more", "message"),
    [
        ("05/01/2024", {}, "'05/01/2024' can be %m/%d/%Y or %d/%m/%Y. Set `time_format = \"%m/%d/%Y\"` or"),
        ("1714521600", {"time_unit": "iso"}, "'1714521600', which is not ISO 8601; it looks like `time_unit = \"s\"`"),
        ("01.05.2024", {"time_format": "%Y/%m/%d"}, 'is not the format %Y/%m/%d; it looks like `time_format = "%d.%m'),
        ("01.05.2024", {"time_format": "%Q"}, "`time_format` in .* is not a format"),
        ("yesterday", {}, "the first of 1 is 'yesterday'; none is in a known form. Set `time_unit`"),
    ],
)
def test_unclear_times_are_reported_with_a_guess(tmp_path, value, more, message):
    with pytest.raises(SourceError, match=message.replace("(", r"\(")):
        fetched(tmp_path, f"{ORDERS}u,s,{value}\n", **more)


def test_times_that_a_spreadsheet_rounded_are_read_with_a_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows, _ = bought(tmp_path, ORDERS + "u,s,1.71452E+12\n")
    assert rows[0]["timestamp"] == 1_714_520_000_000
    assert "warning:" in caplog.text
    assert "exact only to 10,000 seconds" in caplog.text


PRICES = {
        "15.00 USD": 15.0, "USD 15.00": 15.0, "US$15.00": 15.0, "12,50": 12.5, "12,50 €": 12.5,
        "€12.50": 12.5, "1.299,00": 1299.0, "1.299": 1299.0, "1 299,00 kr": 1299.0, "1\u202f299.00": 1299.0,
        "1,299.00": 1299.0, "1'299.00": 1299.0, "CHF 1\u2019299.-": 1299.0, "Rs. 499": 499.0, "₹499.00": 499.0,
        "R$ 49,90": 49.9, "1,23,456.78": 123_456.78, "1.234.567": 1_234_567.0, "0.999": 0.999, ".99": 0.99,
        "12,-": 12.0, "1299:-": 1299.0, "12,00 €*": 12.0, "CA$ 15.00": 15.0, "99¢": None, "15p": None, "19 99": None,
        "ab 12,00 €": None, "ca. 12": None, "12.50-15.00": None, "from 3": None, "0": None, "-5.00": None, "None": None,
}  # fmt: skip


def test_prices_as_shops_write_them(tmp_path):
    products = "sku,price\n" + "".join(f's{n},"{written}"\n' for n, written in enumerate(PRICES))
    rows, _ = catalogue(tmp_path, products, {"price": "price"})
    assert {written: rows[f"s{n}"]["price"] for n, written in enumerate(PRICES)} == PRICES


@pytest.mark.parametrize(
    ("others", "more", "expected"),
    [
        (["2.50"], {}, 1.299), (["2,50"], {}, 1299.0), (["2.50", "2,50"], {}, 1299.0), (["2"], {"decimal": "."}, 1.299),
        (["2.5"], {"decimal": ","}, 1299.0),
    ],
)  # fmt: skip
def test_the_other_prices_tell_what_a_separator_before_three_digits_is(tmp_path, others, more, expected):
    products = "sku;price\ns;1.299\n" + "".join(f"t{n};{price}\n" for n, price in enumerate(others))
    assert catalogue(tmp_path, products, {"price": "price"}, **more)[0]["s"]["price"] == expected


def test_a_mapped_column_without_any_price_is_a_warning(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    catalogue(tmp_path, "sku,price\ns,on request\n", {"price": "price"})
    assert "warning: 1 of 1 prices cannot be read and are left empty, such as 'on request'" in caplog.text


def test_a_mapped_column_that_yields_nothing_is_a_warning(tmp_path, caplog):
    products = "sku,name,cost,stock,pic,path\ns, ,0,perhaps,,NULL\nt,None,0,,null,\n"
    columns = {"title": "name", "price": "cost", "in_stock": "stock", "image": "pic", "categories": "path"}
    catalogue(tmp_path, products, columns)
    warned = {name for name in columns if f"mapped to `{name}`, has no readable value in any of 2 rows" in caplog.text}
    assert warned == set(columns)


A, B = "http://h/a.jpg", "http://h/b.jpg"


PHOTOS = [
        (f"{A}, {B}", [A, B]), (f"{A}|{B}", [A, B]), (f"{A},{B}", [A, B]), (f"{A} {B}", [A, B]), (f"{A};\n{B}", [A, B]),
        (f'["{A}", "{B}"]', [A, B]), (f"['{A}' '{B}']", [A, B]), (f"['{A}', None, '{B}']", [A, B]),
        (f'[{{"large": "{A}", "thumb": "{B}"}}]', [A]), (f'{{"src": "{A}"}}', [A]), (r'["http:\/\/h\/a.jpg"]', [A]),
        (f"{{'hi_res': array([None, 'http://h/big.jpg']), 'large': array(['{A}', '{B}'])}}", [A, B]),
        ("http://h/front view.jpg", ["http://h/front%20view.jpg"]), ("//h/a.jpg", ["https://h/a.jpg"]),
        ("www.shop.com/a.jpg", ["https://www.shop.com/a.jpg"]), ("http://h/q?w=1&amp;h=2", ["http://h/q?w=1&h=2"]),
        (f'"{A}"', [A]), (f" {A} ", [A]), (f"http://proxy/?u={A}", [f"http://proxy/?u={A}"]), ("a.jpg", ["a.jpg"]),
        ("[]", []), ("None", []), ("", []), ("[null]", []), ('{"url": null}', []), (f'[["{A}"], ["{B}"]]', [A, B]),
        (f"{A} > {B}", [A, B]), (f"{{{A},{B}}}", [A, B]), (f'<img src="{A}"><img src="{B}">', [A, B]),
        (f'=IMAGE("{A}")', [A]), (f"![front]({A})", [A]), (f"<{A}>", [A]), (f"\u201c{A}\u201d", [A]),
        (f"{A}\u00a0", [A]),
        (f'[{{"thumbnail": "{B}", "original": "{A}"}}]', [A]), ("a.jpg, sub/b.PNG", ["a.jpg", "sub/b.PNG"]),
        ("a,b.jpg", ["a,b.jpg"]), ("http://h/a,b.jpg", ["http://h/a,b.jpg"]), ("no image", ["no image"]),
]  # fmt: skip


def test_photos_as_cells_name_them(tmp_path):
    buffer = io.StringIO()
    csv.writer(buffer).writerows([("sku", "photo"), *((str(n), cell) for n, (cell, _) in enumerate(PHOTOS))])
    rows, _ = catalogue(tmp_path, buffer.getvalue(), {"image": "photo"})
    for n, (cell, expected) in enumerate(PHOTOS):
        row = rows[str(n)]
        assert ([row["image_url"]] if row["image_url"] else []) + row["other_image_urls"] == expected, cell


@pytest.mark.parametrize(
    "image",
    [
        [[A, B]],
        [[{"large": A, "variant": "MAIN"}, {"large": B, "variant": "PT01"}]],
        [{"hi_res": [None, None], "large": [A, B], "thumb": ["http://h/t.jpg"] * 2, "variant": ["MAIN", "PT01"]}],
        ["a|b"],
    ],
)
def test_photos_of_parquet_types(tmp_path, image):
    pl.DataFrame({"sku": ["s"], "photo": image}).write_parquet(tmp_path / "p.parquet")
    more = {"image_separator": "|", "photos": "."} if image == ["a|b"] else {}
    row = catalogue(tmp_path, None, {"image": "photo"}, items="p.parquet", **more)[0]["s"]
    assert [row["image_url"], *row["other_image_urls"]] == (["a", "b"] if more else [A, B])


@pytest.mark.parametrize(
    ("value", "fix"),
    [
        ("s3://bucket/a.jpg", "only http and https are read"), ("data:image/png;base64,iVB", "only http and https are"),
        ("media/a", "if these are files, set `photos` .*; if they are parts of URLs, write whole URLs"),
    ],
)  # fmt: skip
def test_photos_that_are_no_urls_are_an_error_with_the_fix(tmp_path, value, fix):
    with pytest.raises(SourceError, match=fix):
        catalogue(tmp_path, f'sku,photo\ns,"{value}"\n', {"image": "photo"})


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("title", "VARCHAR[]"), ("title", "STRUCT(en VARCHAR)"), ("item", "BIGINT[]"), ("item", "STRUCT(id BIGINT)"),
        ("price", "DOUBLE[]"), ("price", "STRUCT(amount DOUBLE)"), ("details.Size", "MAP(VARCHAR, VARCHAR)"),
        ("categories", "STRUCT(a VARCHAR)"), ("categories", 'STRUCT("name" BLOB)[]'),
    ],
)  # fmt: skip
def test_types_that_cannot_be_read_are_named(name, kind):
    columns = MappedColumns({"item": "sku", name: "theirs"}, {"item": "VARCHAR", name: kind}, {})
    with pytest.raises(SourceError, match=rf"column 'theirs' has the type {re.escape(kind)}, which cannot be read"):
        columns.items()


def test_nested_columns_of_parquet_are_read(tmp_path):
    pl.DataFrame(
        {
            "sku": [Decimal("7.00")], "path": [[[{"id": 1, "name": "Home"}], [{"id": 2, "name": "Lamps"}]]],
            "tags": [["red", None, "wool"]], "stock": [float("nan")], "note": ["None"],
        }
    ).write_parquet(tmp_path / "p.parquet")  # fmt: skip
    columns = {"categories": "path", "details": {"Tags": "tags", "Note": "note"}, "in_stock": "stock"}
    row = catalogue(tmp_path, None, columns, items="p.parquet")[0]["7"]
    assert (row["categories"], row["details"], row["in_stock"]) == (["Home", "Lamps"], ["Tags: red, wool"], None)


def test_quantities_of_parquet_are_numbers(tmp_path):
    quantities = [Decimal("0.00"), Decimal("-1.00"), Decimal("0.50"), Decimal("2.00")]
    pl.DataFrame(
        {"customer": list("abcd"), "sku": ["s"] * 4, "bought_at": ["2024-05-01"] * 4, "pieces": quantities}
    ).write_parquet(tmp_path / "o.parquet")
    returned = BOUGHT | {"quantity": "pieces"}
    rows, balance = bought(tmp_path, None, interactions="o.parquet", interaction_columns=returned)
    assert [row["user"] for row in rows] == ["c", "d"]
    assert balance["dropped"] == {"returns (a quantity of 0 or less)": 2}
    with pytest.raises(SourceError, match="all rows are left out: 1 returns"):
        bought(tmp_path, ORDERS[:-1] + ",pieces\nu,s,2024-05-01,-1\n", interaction_columns=returned)


@pytest.mark.parametrize("kind", [pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64, pl.Int8, pl.Float32])
def test_prices_and_quantities_may_be_numbers_of_any_size(tmp_path, kind):
    pl.DataFrame({"sku": ["s"], "price": [5]}, schema_overrides={"price": kind}).write_parquet(tmp_path / "p.parquet")
    assert catalogue(tmp_path, None, {"price": "price"}, items="p.parquet")[0]["s"]["price"] == 5.0


def test_a_list_of_prices_and_a_list_of_dates_are_refused(tmp_path):
    pl.DataFrame({"sku": ["s"], "price": [["5"]]}).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(SourceError, match=r"'price' has the type VARCHAR\[\], which cannot be read as `price`"):
        catalogue(tmp_path, None, {"price": "price"}, items="p.parquet")
    orders = pl.DataFrame({"customer": ["u"], "sku": ["s"], "bought_at": [[date(2024, 5, 1)]]})
    orders.write_parquet(tmp_path / "o.parquet")
    with pytest.raises(SourceError, match=r"the times in 'bought_at' are not clear: .*'\[2024-05-01\]'"):
        bought(tmp_path, None, interactions="o.parquet")


def test_photos_inside_of_a_table_are_an_error(tmp_path):
    pl.DataFrame({"sku": ["s"], "photo": [b"jpeg"]}).write_parquet(tmp_path / "p.parquet")
    with pytest.raises(
        SourceError, match=r"'photo' has the type BLOB: the photos are inside of the table\. Write each"
    ):
        catalogue(tmp_path, None, {"image": "photo"}, items="p.parquet")


@pytest.mark.parametrize(
    ("ordered", "sold", "expected"),
    [
        ("SKU-1 ", "SKU-1", "SKU-1"), ("\u00a0SKU-1\t", "SKU-1", "SKU-1"),
        ("\u200bSKU-1\u202f", "SKU-1", "SKU-1"), ("1012.0", "1012", "1012"),
        ("1012", "1012.0", "1012"), ("Fu\u0308ß", "Füß", "Füß"), ("1.0", "1.0", "1"),
    ],
)  # fmt: skip
def test_ids_that_are_surely_equal_match(tmp_path, ordered, sold, expected):
    paths = fetched(tmp_path, f'{ORDERS}u,"{ordered}",2024-05-01\n', f"sku\n{sold}\n")
    items.build_items(LENIENT, paths)
    interactions.build_interactions(LENIENT, paths)
    assert pl.read_parquet(paths.interactions)["item"].to_list() == pl.read_parquet(paths.items)["item"].to_list()
    assert pl.read_parquet(paths.items)["item"].to_list() == [expected]


@pytest.mark.parametrize(
    ("ordered", "sold", "cause"),
    [
        ("00001012", "1012", "leading zeros"), ("sku-a", "SKU-A", "case"), ("4006381333931", "4.00638E+12", "rounded"),
        ("gid://shopify/Product/7", "7", "prefix"), ("A-1", "A1", "punctuation"), ("a b", "ab", "blanks"),
        ("A&amp;B", "A&B", "escapes"), ("A1;B1", "A1", "several ids in one cell"), ("SKU-1-M", "SKU-1", "suffix"),
        ("DE-A1", "A1", "prefix"),
        ("x", "y", "different kinds"),
    ],
)  # fmt: skip
def test_orders_that_name_no_product_are_an_error_with_the_likely_cause(tmp_path, ordered, sold, cause):
    assert cause in explain_mismatch([ordered], [sold])
    if cause == "leading zeros":
        paths = fetched(tmp_path, f"{ORDERS}u,{ordered},2024-05-01\n", f"sku\n{sold}\n")
        items.build_items(LENIENT, paths)
        with pytest.raises(
            SourceError, match=f"interactions say '{ordered}', items say '{sold}'; likely cause: .*{cause}"
        ):
            interactions.build_interactions(LENIENT, paths)


def test_words_for_missing_values_are_no_ids(tmp_path):
    words = ["NULL", "None", "nan", r"\N", " NULL", "\u00a0NaN\t", "\u200b", " "]
    rows, balance = bought(tmp_path, ORDERS + ORDER + "".join(f"{word},s,2024-05-01\n" for word in words))
    assert len(rows) == 1
    assert balance["rejected"] == {"customer is empty": 8}


def test_words_for_missing_values_with_blanks_around_them_are_no_values(tmp_path):
    products = "sku,name,brand,colour,tags,pic\ns,\tNULL, None,\u00a0nan,\t\\N,\u00a0null\n"
    columns = {"title": "name", "store": "brand", "details": {"Colour": "colour"}, "features": "tags", "image": "pic"}
    row = catalogue(tmp_path, products, columns)[0]["s"]
    assert (row["title"], row["store"], row["details"], row["features"], row["image_url"]) == ("", "", [], [], None)


def test_words_for_missing_values_do_not_keep_the_zeros_of_ids(tmp_path):
    rows, _ = bought(tmp_path, ORDERS + "4711.0,s,2024-05-01\n\\N,s,2024-05-01\n")
    assert [row["user"] for row in rows] == ["4711"]


@pytest.mark.parametrize("missing", ["NULL", " NULL", r"\N", "None", "nan", "\u00a0"])
def test_items_whose_parent_is_missing_share_nothing(tmp_path, missing):
    products = f"sku,group,brand,price,pic\ns,{missing},Lux,5,{A}\nt,{missing},,,\n,{missing},,,{B}\n"
    columns = {"parent": "group", "store": "brand", "price": "price", "image": "pic"}
    rows, balance = catalogue(tmp_path, products, columns)
    found = {item: (row["store"], row["price"], row["image_url"]) for item, row in rows.items()}
    assert found == {"s": ("Lux", 5.0, A), "t": ("", None, None)}
    assert balance["rejected"] == {"sku is empty": 1}


def test_items_whose_parent_is_not_a_number_share_nothing(tmp_path):
    nan = float("nan")
    pl.DataFrame({"sku": list("stuv"), "group": [nan, nan, 7.0, 7.0], "brand": ["A", None, "B", None]}).write_parquet(
        tmp_path / "p.parquet"
    )
    rows, _ = catalogue(tmp_path, None, {"parent": "group", "store": "brand"}, items="p.parquet")
    assert {item: row["store"] for item, row in rows.items()} == {"s": "A", "t": "", "u": "B", "v": "B"}


@pytest.mark.parametrize("missing", ["", " ", " NULL"])
def test_a_row_of_a_product_whose_id_is_missing_has_photos_of_the_product(tmp_path, missing):
    products = f"sku,group,pic\ns,p,{A}\n{missing},p,{B}\n"
    rows, balance = catalogue(tmp_path, products, {"parent": "group", "image": "pic"})
    assert [(row["image_url"], row["other_image_urls"]) for row in rows.values()] == [(A, [B])]
    assert balance["dropped"] == {"more photos of a product": 1}


def test_a_row_that_the_filter_leaves_out_gives_its_product_nothing(tmp_path):
    products = f"sku,group,name,pic,kind\ns,p,,{A},\n,p,Draft,{B},draft\n"
    columns = {"parent": "group", "title": "name", "image": "pic", "where": "kind IS NULL OR kind <> 'draft'"}
    rows, balance = catalogue(tmp_path, products, columns)
    assert [(row["title"], row["image_url"], row["other_image_urls"]) for row in rows.values()] == [("", A, [])]
    assert balance["dropped"] == {"left out by `where`": 1}


def test_returns_and_filtered_rows_are_left_out_and_counted(tmp_path):
    quantities = {"1": True, "2.0": True, "1.000": True, "0": False, "-1": False, "(2)": False, "\u22123": False}
    lines = [f'u,s{n},2024-05-01,"{pieces}",paid,9\n' for n, pieces in enumerate(quantities)]
    lines += ["u,s,soon,1,draft,9\n", "u,t,2024-05-01,1,paid,5\n", "u,s,2024-05-01,many,paid,9\n"]
    orders = "customer,sku,bought_at,pieces,status,total\n" + "".join([*lines, lines[0]])
    columns = BOUGHT | {"quantity": "pieces", "where": "status = 'paid' AND total > 5"}
    rows, balance = bought(tmp_path, orders, interaction_columns=columns)
    assert [row["item"] for row in rows] == [f"s{n}" for n, kept in enumerate(quantities.values()) if kept]
    assert balance == {
        "read": 11,
        "kept": 3,
        "rejected": {"pieces is not a quantity": 1},
        "dropped": {
            "left out by `where`": 2,
            "returns (a quantity of 0 or less)": 4,
            "duplicates (user, item and time of an earlier row)": 1,
        },
    }


@pytest.mark.parametrize("where", ["no_such_column = 1", "status = ", "status::INT = 1"])
def test_a_wrong_filter_is_an_error(tmp_path, where):
    orders = "customer,sku,bought_at,status\nu,s,2024-05-01,paid\n"
    with pytest.raises(
        SourceError, match=r"`where` in \[datasets\.shop\.source\] of pixrec\.toml is not a valid filter"
    ):
        fetched(tmp_path, orders, interaction_columns=BOUGHT | {"where": where})


def test_rows_of_one_id_are_merged_and_the_run_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    products = f"sku,name,photo\ns,,{A}\ns,Shirt,{B}\ns,Shirt,{A}\n4.00638E+12,Mug,\n4.00638E+12,Lamp,\n"
    rows, balance = catalogue(tmp_path, products, {"title": "name", "image": "photo"})
    assert (rows["s"]["title"], rows["s"]["image_url"], rows["s"]["other_image_urls"]) == ("Shirt", A, [B])
    assert balance == {"read": 5, "kept": 2, "rejected": {}, "dropped": {"repeats of an id (merged into its item)": 3}}
    assert "such as '4.00638E+12' (2 rows: 'Lamp', 'Mug')" in caplog.text
    assert "were rounded by a spreadsheet" in caplog.text
    assert "5 rows read: 2 items, 3 repeats of an id" in caplog.text


@pytest.mark.parametrize("more", [{}, {"parent": "Handle"}])
def test_variants_have_the_texts_and_photos_of_their_product(tmp_path, more):
    """A product export of Shopify: only the first row of a product has its texts, and some rows only a photo."""
    products = f"Handle,Title,Variant SKU,Image Src\np,Shirt,p-s,{A}\np,,p-m,\np,,,{B}\nq,Mug,q,\n"
    columns = {"item": "Variant SKU", "title": "Title", "image": "Image Src"} | more
    paths = fetched(tmp_path, products=products, item_columns=columns)
    balance = items.build_items(LENIENT, paths)["balance"]
    found = pl.read_parquet(paths.items).select("item", "title", "image_url", "other_image_urls").rows()
    assert found == [("p-m", "Shirt", A, [B]), ("p-s", "Shirt", A, [B]), ("q", "Mug", None, [])]
    assert balance == {"read": 4, "kept": 3, "rejected": {}, "dropped": {"more photos of a product": 1}}


def test_a_variant_with_nothing_but_markup_has_the_text_and_price_of_its_product(tmp_path):
    products = "Handle,Title,Variant SKU,Variant Price\np,A &amp;lt;b&amp;gt; C,p-s,4\np,<br>,p-m,-1\n"
    columns = {"item": "Variant SKU", "title": "Title", "price": "Variant Price", "parent": "Handle"}
    paths = fetched(tmp_path, products=products, item_columns=columns)
    items.build_items(LENIENT, paths)
    found = pl.read_parquet(paths.items).select("item", "title", "price").rows()
    assert found == [("p-m", "A &lt;b&gt; C", 4.0), ("p-s", "A &lt;b&gt; C", 4.0)]  # entities are replaced once


CELLS = st.text(st.sampled_from("ab ,;|\t\"'\n\r\u00e9\u20ac"), max_size=6)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.text("abc", max_size=2), CELLS, st.sampled_from(["2024-05-01", "soon", ""])), max_size=20),
    st.sampled_from(",;\t|"),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
@example([("", "\r\t\r", "2024-05-01")], ",", "utf-8", "\n", csv.QUOTE_MINIMAL)
@example([("", "\r", "2024-05-01")], "\t", "utf-8", "\n", csv.QUOTE_MINIMAL)
def test_every_record_of_a_file_is_in_the_balance(tmp_path_factory, records, delimiter, encoding, end, quoting):
    """Compared with the records that Python's csv module counts in the same text."""
    root, buffer = tmp_path_factory.mktemp("balance"), io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, lineterminator=end, quoting=quoting)
    writer.writerows([("customer", "note", "bought_at", "sku"), ("good", "", "2024-05-01", "s")])
    writer.writerows((user, note, time, "s") for user, note, time in records)
    paths = fetched(root, buffer.getvalue().encode(encoding), time_unit="iso")
    balance = interactions.build_interactions(LENIENT, paths)["balance"]
    records = csv.reader(io.StringIO(buffer.getvalue(), newline=""), delimiter=delimiter)
    expected = [cells for cells in records if delimiter.join(cells).strip()][1:]  # a blank line is none
    whole = [(cells[0], cells[2]) for cells in expected if len(cells) == 4]  # Python writes a bare \r without quotes
    good = [(user, time) for user, time in whole if user and time == "2024-05-01"]
    assert balance["read"] == len(expected)
    assert balance["kept"] == len(set(good))
    assert sum(balance["rejected"].values()) == len(expected) - len(good)
    assert sum(balance["dropped"].values()) == len(good) - len(set(good))


def test_the_preview_shows_how_the_first_rows_are_read(tmp_path):
    (tmp_path / "orders.csv").write_text(SEMICOLONS.replace("2024-05-01", "1714521600"))
    (tmp_path / "products.csv").write_text('sku,price,stock\nS,"1,50 €",ja\n')
    shown = source(item_columns={"item": "sku", "price": "price", "in_stock": "stock"})
    lines = "\n".join(raw_files.preview(shown, tmp_path, "shop"))
    for part in (
        "orders.csv (CSV, cells separated by ';'), columns: customer, sku, bought_at",
        "timestamp <- 'bought_at': '1714521600' = 2024-05-01 00:00:00 UTC",
        "price <- 'price': '1,50 €' = 1.5",
        "in_stock <- 'stock': 'ja' = True",
        "the first 1 rows: 1 good",
        "ids: 0 of 1 items of these interactions are among these 1 items: 's' and 'S'",
        "warning: interactions say 's', items say 'S'; likely cause: case",
        "note: ",
    ):
        assert part in lines
