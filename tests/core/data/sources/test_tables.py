"""CSV and Parquet tables of a user, read by the source and the next stages."""

import csv
import datetime as dt
import gzip
import json
import re

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pixrec_core import files
from pixrec_core.data import interactions, items, raw_files, raw_lines
from pixrec_core.data.sources import _csv, tables
from pixrec_core.data.sources._mapping import Mapping
from pixrec_core.errors import SourceError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import INTERACTION_SCHEMA, ITEM_SCHEMA
from pixrec_core.settings import SourceSettings
from tests.core.data import raw_shop
from tests.core.data.raw_shop import LENIENT

UNCLOSED = "a quote is not closed, or text follows a closing quote"
NAIVE = dt.datetime(2024, 5, 1)  # noqa: DTZ001 - as tables hold it
ORDERS = "customer,sku,bought_at,stars\n"
BOUGHT = {"user": "customer", "item": "sku", "timestamp": "bought_at", "rating": "stars"}
MAY_1 = 1_714_521_600_000

OLD_PREFIX = "http://127.0.0.1:PORT/"  # of local photos in data of older versions


def options(**more):
    chosen = {"interactions": "orders.csv", "items": "products.csv", "interaction_columns": BOUGHT}
    return {**chosen, "item_columns": {"item": "sku"}, **more}


def fetched(root, orders=ORDERS + "u,s,2024-05-01,5\n", products="sku\ns\n", **more):
    """Return the dataset after the raw stage; tables given as bytes or text are written first."""
    for name, content in (("orders.csv", orders), ("products.csv", products)):
        if content is not None:
            (root / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    paths = DatasetPaths(root / "data" / "shop")
    raw_files.fetch(SourceSettings(kind="tables", **options(**more)), root, paths)
    return paths


def interactions_of(root, orders, **more):
    paths = fetched(root, orders, **more)
    interactions.build_interactions(LENIENT, paths)
    good, bad = raw_shop.tables(paths.interactions, paths.interactions_quarantine, INTERACTION_SCHEMA)
    return good.rows(), bad


def items_of(root, products, columns, **more):
    paths = fetched(root, products=products, item_columns={"item": "sku", **columns}, **more)
    items.build_items(LENIENT, paths)
    good, bad = raw_shop.tables(paths.items, paths.items_quarantine, ITEM_SCHEMA)
    return {row["item"]: row for row in good.iter_rows(named=True)}, bad


def parquet(root, name, **columns):
    pl.DataFrame(columns).write_parquet(root / name)


def test_a_parent_that_means_none_gives_each_item_a_hundred_photos_at_most(tmp_path):
    rows = "".join(f"{n},0,https://h/{n}.jpg\n" for n in range(2_500))
    found, _ = items_of(tmp_path, f"sku,parent,photo\n{rows}", {"parent": "parent", "image": "photo"})
    assert found["2000"]["image_url"] == "https://h/2000.jpg"
    assert found["2000"]["other_image_urls"] == [f"https://h/{n}.jpg" for n in range(99)]


def test_orders_become_interactions_with_their_line_numbers(tmp_path):
    text = 'customer,note,sku,stars,bought_at\nu,"a ""b""",s,4.5,2024-05-01\nu,,t,0,2024-05-02T02:00:00+02:00\n'
    orders = "\ufeff" + text.replace("\n", "\r\n")
    rows, bad = interactions_of(tmp_path, orders)
    assert rows == [("u", "s", MAY_1, 4.5, 2), ("u", "t", MAY_1 + 86_400_000, 0.0, 3)]
    assert bad.is_empty()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("u,s,tomorrow,5", "bought_at is not a time in ISO 8601: tomorrow"),
        ("u,s,2024-02-30,5", "bought_at is not a time in ISO 8601: 2024-02-30"),
        ("u,s,infinity,5", "bought_at is not a time in ISO 8601: infinity"),
        ("u,s,1714521600,5", "bought_at is not a time in ISO 8601: 1714521600"),
        ("u,s,1969-12-31,5", "timestamp is not after 1970"),
        ("u,s,,5", "bought_at is empty"),
        (",s,2024-05-01,5", "customer is empty"),
        (" ,s,2024-05-01,5", "customer is empty"),
        ("u,s, ,5", "bought_at is empty"),
        ("u,,2024-05-01,5", "sku is empty"),
        ("u,s,2024-05-01,", "stars is empty"),
        ("u,s,2024-05-01,five", "stars is not a number: five"),
        ("u,s,2024-05-01,nan", "stars is not a number: nan"),
        ("u,s,2024-05-01,9", "rating is not from 0 to 5"),
        ("u,s,2024-05-01", "3 cells where the header has 4"),
        ("u,s,2024-05-01,5,6", "5 cells where the header has 4"),
        ('u,"s"t,2024-05-01,5', "a quote is not closed, or text follows a closing quote"),
    ],
)
def test_a_bad_row_is_quarantined_under_the_users_file_and_line(tmp_path, row, reason):
    good = "u,first,2024-05-01,5"
    rows, bad = interactions_of(
        tmp_path, ORDERS + f'"u","multi\nline",2024-05-01,5\n\n{row}\n{good}\n' + 199 * "v,w,2024-05-01,5\n"
    )
    assert [(item, line) for user, item, _, _, line in rows if user == "u"] == [("multi\nline", 2), ("first", 6)]
    ((file, line, reported, _),) = bad.rows()
    assert (file, line, reported) == (str(tmp_path / "orders.csv"), 5, reason)


def test_the_quarantine_contains_the_row(tmp_path):
    _, bad = interactions_of(tmp_path, ORDERS + "u,s,2024-05-01,5\n" * 200 + "u,s,soon,5\n")
    assert bad["raw"].to_list() == ["u,s,soon,5"]


def test_broken_utf8_is_reported_and_other_rows_are_kept(tmp_path):
    orders = ORDERS.encode() + b"u\xff,s,2024-05-01,5\nv\xc3\xa9,s,2024-05-01,5\n"
    rows, bad = interactions_of(tmp_path, orders)
    assert [row[0] for row in rows] == ["v\u00e9"]
    assert bad.select("line", "reason").rows() == [(2, "broken UTF-8")]


@pytest.mark.parametrize("rows", [200, 400_000], ids=["small", "longer than a row may be"])
@pytest.mark.parametrize("closing", ["", 'v,"s,2024-05-01,5\n'], ids=["never closed", "closed by another"])
def test_a_stray_quote_rejects_only_its_line(tmp_path, rows, closing):
    behind = "u,t,2024-05-01,5\n" * rows
    found, bad = interactions_of(tmp_path, ORDERS + 'u,"s,2024-05-01,5\n' + behind + closing + behind)
    assert found == [("u", "t", MAY_1, 5.0, 3)]
    assert bad["line"].to_list() == [2, 3 + rows][: 2 if closing else 1]
    assert set(bad["reason"]) <= {UNCLOSED, "longer than 2,000,000 bytes"}


def test_a_stray_quote_in_a_file_with_windows_line_ends_rejects_only_its_line(tmp_path):
    """The file is read again with the line blank, and DuckDB gives up if a line end differs from the one before."""
    behind = "u,t,2024-05-01,5\n"
    orders = (ORDERS + behind + 'u,"s,2024-05-01,5\n' + behind).replace("\n", "\r\n")
    found, bad = interactions_of(tmp_path, orders)
    assert found == [("u", "t", MAY_1, 5.0, 2)]
    assert bad.select("line", "reason").rows() == [(3, UNCLOSED)]


def test_stray_quotes_without_end_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(_csv, "READINGS", 1)
    with pytest.raises(SourceError, match=r"orders\.csv has quotes that are never closed, the first on line 3;"):
        interactions_of(tmp_path, ORDERS + 'u,s,2024-05-01,5\nu,"s,2024\nu,s,2024-05-01,5\n')


def test_more_unreadable_rows_than_memory_holds_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(_csv, "MAX_REJECTS", 5)
    with pytest.raises(
        SourceError, match=r"more than 5 faults in rows that are not CSV .* the first: 2 cells where the header"
    ):
        interactions_of(tmp_path, ORDERS + "u,s,2024-05-01,5\n" + "u,s\n" * 6)


def test_lines_that_belong_to_no_row_count_as_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(raw_lines, "blank_runs", lambda path: ([], []))
    paths = fetched(tmp_path, ORDERS + "u,s,2024-05-01,5\n\n\n")
    assert interactions.build_interactions(LENIENT, paths)["bad_lines"] == 2
    bad = pl.read_parquet(paths.interactions_quarantine)
    assert bad.select("line", "reason").rows() == [(4, "2 lines of the file belong to no row")]


@pytest.mark.parametrize("ends", [["\r"], ["\n", "\r\n"], ["\r\n", "\r"]], ids=repr)
def test_line_ends_may_be_mixed(tmp_path, ends):
    rows = [ORDERS.rstrip("\n"), "u,s,2024-05-01,5", "", '"v","a\nb",2024-05-01,5', "w,t,2024-05-01,5"]
    found, bad = interactions_of(tmp_path, "".join(row + ends[n % len(ends)] for n, row in enumerate(rows)))
    assert bad.is_empty()
    assert [(row[0], row[1], row[4]) for row in found] == [("u", "s", 2), ("v", "a\nb", 4), ("w", "t", 6)]


def test_bad_rows_count_to_the_share_and_the_error_names_the_users_file(tmp_path):
    paths = fetched(tmp_path, ORDERS + "u,s,2024-05-01,5\n" * 150 + "u,s,,5\n" * 2)
    with pytest.raises(
        SourceError, match=r"orders\.csv: 2 of 152 lines are rejected, .* First: line 152: bought_at is empty"
    ):
        interactions.build_interactions(raw_shop.IngestSettings(), paths)


@pytest.mark.parametrize(
    ("value", "unit"),
    [
        ("1714521600", "s"), ("1714521600.25", "s"), ("1714521600000", "ms"), ("1714521600000000", "us"),
        ("2024-05-01", "iso"), ("2024-05-01 00:00", "iso"), ("2024-05-01T00:00:00.000Z", "iso"),
        ("2024-05-01T02:00:00+02:00", "iso"), ("2024-04-30T19:00:00-0500", "iso"), ("2024-05-01 02:00:00+02", "iso"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("said", [True, False])
def test_the_time_unit_comes_from_the_values_or_the_settings(tmp_path, value, unit, said):
    rows, bad = interactions_of(tmp_path, ORDERS + f"u,s,{value},5\n", time_unit=unit if said else None)
    assert bad.is_empty()
    assert rows[0][2] == MAY_1 + (250 if "." in value and unit == "s" else 0)


@pytest.mark.parametrize(
    "values",
    [["1"], ["05/01/2024"], ["-5"], ["1714521600", "1714521600000"], ["2024-05-01", "1714521600"], ["May", "June"]],
)
def test_unclear_times_are_an_error_with_the_first_value(tmp_path, values):
    orders = ORDERS + "".join(f"u,s,{value},5\n" for value in values)
    with pytest.raises(SourceError) as caught:
        fetched(tmp_path, orders)
    assert "the times in 'bought_at' are not clear: " in str(caught.value)
    assert repr(values[0]) in str(caught.value)
    assert "Set `time_" in str(caught.value)
    assert "in [datasets.shop.source] of pixrec.toml" in str(caught.value)


def test_few_invalid_times_do_not_hide_the_unit(tmp_path):
    """Milliseconds among seconds are not read as the year 56,300, nor seconds among milliseconds as 1970."""
    times = ["1714521600000"] * 400 + ["-1", "1714521600", "0"]
    rows, bad = interactions_of(tmp_path, ORDERS + "".join(f"u,s{n},{t},5\n" for n, t in enumerate(times)))
    assert len(rows) == 400
    assert bad["line"].to_list() == [402, 403, 404]
    assert bad["reason"][1] == "bought_at is not a time in milliseconds: 1714521600"


def test_a_time_unit_in_the_settings_is_used(tmp_path):
    rows, _ = interactions_of(tmp_path, ORDERS + "u,s,5,5\n", time_unit="s")
    assert rows[0][2] == 5000


def test_days_of_excel_are_in_the_time_zone_of_the_settings(tmp_path):
    """45413.5 is 2024-05-01 12:00, which is 10:00 UTC in Berlin; an absurd number is rejected."""
    orders = ORDERS + "u,s,45413.5,5\n" * 200 + "u,t,1e300,5\n"
    rows, bad = interactions_of(tmp_path, orders, time_unit="excel", time_zone="Europe/Berlin")
    assert [row[2] for row in rows] == [MAY_1 + 10 * 3_600_000]
    assert bad["reason"].to_list() == ["bought_at is not a time in Excel's days: 1e300"]


def test_without_a_rating_column_all_ratings_are_equal(tmp_path):
    columns = {name: BOUGHT[name] for name in ("user", "item", "timestamp")}
    assert interactions_of(tmp_path, ORDERS + "u,s,2024-05-01,\n", interaction_columns=columns)[0][0][3] == 5.0
    rows, _ = interactions_of(tmp_path, None, interaction_columns=columns, constant_rating=3)
    assert rows[0][3] == 3.0


def test_semicolons_and_gzip(tmp_path):
    orders = gzip.compress((ORDERS + "u,s,2024-05-01,5\n").replace(",", ";").encode())
    rows, _ = interactions_of(tmp_path, orders, delimiter=";")
    assert rows == [("u", "s", MAY_1, 5.0, 2)]


def test_a_truncated_gzip_keeps_its_readable_rows_and_is_reported(tmp_path):
    orders = ORDERS + "".join(f"u{n},s,2024-05-01,5\n" for n in range(20_000))
    rows, bad = interactions_of(tmp_path, gzip.compress(orders.encode())[:-20_000])
    assert 100 < len(rows) < 20_000
    assert "the file is damaged and readable only up to here: Compressed file ended" in bad["reason"][-1]


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        (
            "orders.csv",
            {"user": "Costumer"},
            "no column 'Costumer', .* maps to `user`; close: customer; known: customer, sku",
        ),
        ("orders.csv", {"item": "product"}, "no column 'product', .* maps to `item`; known: customer, sku, bought_at"),
        ("orders.csv", {"item": "twice"}, "more than one column 'twice'"),
        (
            "orders.parquet",
            {"user": "costumer"},
            "no column 'costumer', .*; close: customer; known: customer, sku, bought",
        ),
    ],
)
def test_a_missing_column_is_reported_with_the_known_ones(tmp_path, name, columns, message):
    parquet(tmp_path, "orders.parquet", customer=["u"], sku=["s"], bought_at=["2024-05-01"], stars=[5])
    orders = ORDERS.replace("\n", ",twice,twice\n") + "u,s,2024-05-01,5,,\n"
    with pytest.raises(SourceError, match=rf"{re.escape(name)} has {message}"):
        fetched(tmp_path, orders, interactions=name, interaction_columns=BOUGHT | columns)


@pytest.mark.parametrize(
    ("orders", "message"),
    [
        (ORDERS, "orders.csv has no row below its header"),
        ("", "orders.csv is empty"),
        (b"PAR1 and nothing else", r"orders.csv is a damaged Parquet file .*; write it again"),
        ('"cust"omer,sku\n', "does not start with a CSV header"),
    ],
)
def test_files_that_are_not_tables_are_reported(tmp_path, orders, message):
    with pytest.raises(SourceError, match=message):
        fetched(tmp_path, orders)
    assert not (tmp_path / "data" / "shop" / "raw").exists()


def test_a_missing_file_is_reported_with_its_path(tmp_path):
    with pytest.raises(SourceError, match=rf"{tmp_path}/no/orders.csv does not exist; correct"):
        fetched(tmp_path, interactions="no/orders.csv")


@pytest.mark.parametrize(
    "bought_at",
    [
        [NAIVE],
        [dt.date(2024, 5, 1)],
        pl.Series([NAIVE], dtype=pl.Datetime("ns")),
        pl.Series([NAIVE], dtype=pl.Datetime("ms")),
        pl.Series([NAIVE + dt.timedelta(hours=2)]).dt.replace_time_zone("Europe/Berlin"),
        [1_714_521_600],
        [1_714_521_600_000.0],
        ["2024-05-01"],
    ],
)
def test_parquet_types_are_used(tmp_path, bought_at):
    parquet(tmp_path, "orders.parquet", customer=[7.0], sku=[12], bought_at=bought_at, stars=[4])
    rows, bad = interactions_of(tmp_path, None, interactions="orders.parquet")
    assert bad.is_empty()
    assert rows == [("7", "12", MAY_1, 4.0, 1)]


def test_rows_of_parquet_are_counted_from_one(tmp_path):
    times = [dt.date(2024, 5, 1)] * 3 + [None]
    parquet(tmp_path, "o.parquet", customer=["a", None, "c", "d"], sku=["s"] * 4, bought_at=times, stars=[5.0] * 4)
    rows, bad = interactions_of(tmp_path, None, interactions="o.parquet")
    assert [(row[0], row[4]) for row in rows] == [("a", 1), ("c", 3)]
    assert bad.select("file", "line", "reason").rows() == [
        (str(tmp_path / "o.parquet"), 2, "customer is empty"), (str(tmp_path / "o.parquet"), 4, "bought_at is empty"),
    ]  # fmt: skip


def test_a_column_of_a_filter_is_of_numbers_only_if_it_is_in_every_file(tmp_path):
    (tmp_path / "orders").mkdir()
    for name, shop in (("1", "A"), ("2", "7"), ("3", "7")):
        (tmp_path / "orders" / f"{name}.csv").write_text(
            f"customer,sku,bought_at,stars,shop\nu{name},s,2024-05-01,5,{shop}\n"
        )
    columns = BOUGHT | {"where": "shop <> '9'"}
    rows, bad = interactions_of(tmp_path, None, interactions="orders", interaction_columns=columns)
    assert [row[0] for row in rows] == ["u1", "u2", "u3"]
    assert bad.is_empty()


def test_bytes_of_parquet_are_read_as_utf8_text(tmp_path):
    """Some writers do not mark text as UTF-8; the other table does, and ids of both match."""
    parquet(
        tmp_path, "o.parquet", customer=["Zo\u00eb".encode(), b"\xff", b"w"], sku=["Caf\u00e9".encode(), b"s", b"s"],
        bought_at=[b"2024-05-01"] * 3, stars=[b"4.5"] * 3, status=["bezahlt \u2713".encode()] * 2 + [b"offen"],
        photo=[b"\xff\xd8"] * 3,
    )  # fmt: skip
    columns = BOUGHT | {"where": "status = 'bezahlt \u2713'"}
    rows, bad = interactions_of(tmp_path, None, interactions="o.parquet", interaction_columns=columns)
    assert rows == [("Zo\u00eb", "Caf\u00e9", MAY_1, 4.5, 1)]
    assert bad.select("line", "reason").rows() == [(2, "customer is not UTF-8 text: \\xFF")]


def test_bytes_of_parquet_are_read_as_text_of_items(tmp_path):
    parquet(
        tmp_path, "p.parquet", sku=["Caf\u00e9".encode(), b"\xff", b"s"], group=[b"g"] * 3,
        label=["M\u00fcsli".encode(), b"", None], cats=[["K\u00fcche".encode(), None], [], [b"\xfe"]],
        colour=["gr\u00fcn".encode(), b"", b""],
    )  # fmt: skip
    columns = {"parent": "group", "title": "label", "categories": "cats", "details": {"Farbe": "colour"}}
    rows, bad = items_of(tmp_path, None, columns, items="p.parquet")
    (row,) = rows.values()
    assert (row["item"], row["title"]) == ("Caf\u00e9", "M\u00fcsli")
    assert (row["categories"], row["details"]) == (["K\u00fcche"], ["Farbe: gr\u00fcn"])
    assert bad.select("line", "reason").rows() == [
        (2, "sku is not UTF-8 text: \\xFF"), (3, "cats is not UTF-8 text: ['\\\\xFE']"),
    ]  # fmt: skip
    empty = {"group": "g", "colour": ""}
    assert [json.loads(raw) for raw in bad["raw"]] == [
        empty | {"sku": None, "label": "", "cats": []}, empty | {"sku": "s", "label": None, "cats": None},
    ]  # fmt: skip


def test_text_of_parquet_that_is_falsely_marked_as_utf8_is_an_error_with_the_value(tmp_path):
    column = pa.array([b"u", b"\xff\xfe"]).cast(pa.string(), safe=False)
    table = pa.table({"customer": column, "sku": ["s", "s"], "bought_at": ["2024-05-01"] * 2, "stars": [5.0, 5.0]})
    pq.write_table(table, tmp_path / "o.parquet")
    with pytest.raises(SourceError, match=r'cannot be read .*o\.parquet": value "\\xFF\\xFE" is not valid UTF8!\)'):
        fetched(tmp_path, None, interactions="o.parquet")


ALL = {
    "title": "name", "main_category": "dept", "categories": "cats", "store": "brand", "features": "points",
    "description": "text", "price": "price", "image": "photo", "details": {"Fabric": "material", "Made in": "origin"},
}  # fmt: skip


def test_products_become_items(tmp_path):
    products = (
        "sku,name,dept,cats,brand,points,text,price,photo,material,origin\n"
        's,"A ""big"" lamp",Home,"[""Home"",""Lamps""]",Lux,Red;  Big ;,One text,"$1,299.50",https://h/a+b.jpg,wool ,\n'
        "t,,,,,,,from 3,,,\n"
    )
    rows, bad = items_of(tmp_path, products, ALL, separator=";")
    assert bad.is_empty()
    assert rows["s"] == {
        "item": "s", "title": 'A "big" lamp', "main_category": "Home", "categories": ["Home", "Lamps"], "store": "Lux",
        "features": ["Red", "Big"], "details": ["Fabric: wool"], "description": ["One text"], "price": 1299.5,
        "in_stock": None, "image_url": "https://h/a+b.jpg", "other_image_urls": [],
    }  # fmt: skip
    assert rows["t"] == {
        "item": "t", "title": "", "main_category": "", "categories": [], "store": "", "features": [],
        "details": [], "description": [], "price": None, "in_stock": None, "image_url": None, "other_image_urls": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        *((text, True) for text in ("true", "TRUE", "1", "3.0", "yes", "in stock", "in_stock", "InStock", "preorder")),
        *((text, True) for text in ("ja", "auf Lager", "Verfügbar")),
        *(
            (text, False)
            for text in ("false", "0", "-1", "No", "out of stock", "out_of_stock", "OutOfStock", "sold-out")
        ),
        *((text, False) for text in ("Nein", "ausverkauft", "nicht lieferbar")),
        *((text, None) for text in ("", "perhaps")),
    ],
)
def test_stock_as_shops_write_it(tmp_path, written, expected):
    rows, bad = items_of(tmp_path, f"sku,stock\ns,{written}\n", {"in_stock": "stock"})
    assert bad.is_empty()
    assert rows["s"]["in_stock"] is expected


def test_parquet_lists_and_decimals_are_used(tmp_path):
    price = pl.Series(["12.50"]).cast(pl.Decimal(10, 2))
    parquet(tmp_path, "p.parquet", sku=["s"], cats=[["A", None, "B|C"]], price=price, points=["x|y"])
    columns = {"categories": "cats", "price": "price", "features": "points"}
    rows, bad = items_of(tmp_path, None, columns, items="p.parquet", separator="|")
    assert bad.is_empty()
    assert (rows["s"]["categories"], rows["s"]["price"], rows["s"]["features"]) == (["A", "B|C"], 12.5, ["x", "y"])


def test_a_list_that_is_not_json_is_rejected_without_a_separator(tmp_path):
    products = 'sku,cats\nr,"[A, B]"\ns,one text\n'
    rows, bad = items_of(tmp_path, products, {"categories": "cats"})
    assert rows["s"]["categories"] == ["one text"]
    assert bad.select("file", "line", "reason").rows() == [
        (str(tmp_path / "products.csv"), 2, "cats is not a list in JSON: [A, B]")
    ]


def test_local_photos_keep_their_paths(tmp_path):
    (tmp_path / "pics").mkdir()
    products = "sku,photo\na,sub/a b+\u00e9.jpg\nb,HTTPS://h/x.jpg\nc,\nd,../../etc/passwd\n"
    rows, _ = items_of(tmp_path, products, {"image": "photo"}, photos="pics")
    assert {item: row["image_url"] for item, row in rows.items()} == {
        "a": "sub/a b+\u00e9.jpg",
        "b": "HTTPS://h/x.jpg",
        "c": None,
        "d": "../../etc/passwd",
    }
    assert raw_files.locate(DatasetPaths(tmp_path / "data" / "shop")).photos == tmp_path / "pics"


def test_photo_paths_without_a_photo_folder_are_an_error(tmp_path):
    with pytest.raises(SourceError, match=r"'photo' has no URL but 'a\.jpg'; if these are files, .* `photos`"):
        items_of(tmp_path, "sku,photo\na,a.jpg\nb,\n", {"image": "photo"})
    with pytest.raises(SourceError, match=r"nowhere is not a folder; correct `photos`"):
        items_of(tmp_path, "sku,photo\na,a.jpg\n", {"image": "photo"}, photos="nowhere")


@pytest.mark.parametrize(
    "wrong",
    [
        {"interaction_columns": {"user": "u", "item": "i"}},
        {"interaction_columns": BOUGHT | {"price": "p"}},
        {"item_columns": {"title": "t"}},
        {"time_unit": "minutes"},
        {"constant_rating": 6},
        {"delimiter": ", "},
        {"delimiter": '"'},
        {"separator": ""},
        {"colour": "red"},
    ],
)
def test_wrong_options_are_rejected(wrong):
    with pytest.raises(ValidationError):
        tables.Options(**options(**wrong))


def test_chunks_of_line_numbers_do_not_change_the_result(tmp_path, monkeypatch):
    lines = [
        f'u{n:02},"s{n}{chr(10) * (n % 3)}",2024-05-01,5{",6" * (n % 7 == 3)}\n' + "\n" * (n % 5 == 1)
        for n in range(50)
    ]
    expected = interactions_of(tmp_path, ORDERS + "".join(lines))
    monkeypatch.setattr(_csv, "_CHUNK_ROWS", 4)
    rows, bad = interactions_of(tmp_path, None)
    assert rows == expected[0]
    assert bad.equals(expected[1])


@pytest.fixture(scope="module")
def db():
    with duckdb.connect() as connection:
        yield connection


def loaded(db, folder, raw):
    """Return rows of a CSV file with columns a and b, and the table that `load_csv` returns."""
    path = folder / "t.csv"
    path.write_bytes(raw)
    select, mapping = "x, y, NULL::VARCHAR AS fault", Mapping({"x": "a", "y": "b"}, delimiter=",")
    table = _csv.load_csv(db, path, mapping, select, folder, 100)
    return db.execute(f"SELECT line, x, y FROM ({table.query}) ORDER BY line").fetchall(), table


CELLS = st.text(st.sampled_from('ab,"\r\n \u00e9'), max_size=5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), max_size=12), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_each_row_has_the_line_that_it_starts_on(db, tmp_path_factory, rows, end, blank):
    """Compared with rows written by the csv module, and lines counted by splitting."""
    numbers, text = [], "a,b" + end
    for row in rows:
        numbers.append(len(re.findall(r"\r\n|\r|\n", text)) + 1)
        text += written(row, end) + (end if blank else "")
    found, table = loaded(db, tmp_path_factory.mktemp("csv"), text.encode())
    assert [line for line, *_ in found] == numbers
    assert [tuple(map(uniform, row)) for _, *row in found] == [tuple(map(uniform, row)) for row in rows]
    assert (table.faults, table.lost) == ((), 0)


def uniform(cell):
    return re.sub(r"\r\n?", "\n", cell or "")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(st.sampled_from('a,"\r '), max_size=6), max_size=12))
def test_every_line_is_a_row_or_rejected(db, tmp_path_factory, lines):
    text = "\n".join(["a,b", *lines, "z,z"])
    found, table = loaded(db, tmp_path_factory.mktemp("csv"), text.encode())
    split = uniform(text).split("\n")
    assert table.lost == 0
    assert table.lines == len(split)
    rejected = [line for line, _ in table.faults]
    assert sorted({1, *rejected, *(line for line, *_ in found)}) == sorted(
        [1, *rejected, *(line for line, *_ in found)]
    )
    for line, first, _ in found:
        assert split[line - 1].lstrip(" ").startswith((uniform(first).lstrip(" ").partition("\n")[0], '"'))


def written(row, end):
    class Line:
        text = ""

        def write(self, text):
            self.text += text

    line = Line()
    csv.writer(line, lineterminator=end, quoting=csv.QUOTE_ALL).writerow(row)
    return line.text


def test_the_tables_are_read_in_place(tmp_path):
    paths = fetched(tmp_path)
    manifest = files.read_json(paths.raw_manifest)
    assert manifest["reviews"]["path"] == str(tmp_path / "orders.csv")
    assert manifest["metadata"]["path"] == str(tmp_path / "products.csv")
    assert not paths.raw.exists()


def test_tables_in_the_folder_of_downloads_are_not_removed(tmp_path):
    folder = tmp_path / "data" / "shop" / "raw"
    folder.mkdir(parents=True)
    (folder / "orders.csv").write_text(ORDERS + "u,s,2024-05-01,5\n")
    fetched(tmp_path, None, interactions="data/shop/raw/orders.csv")
    assert (folder / "orders.csv").exists()


@pytest.mark.parametrize("option", ["interactions", "items", "photos"])
def test_files_in_the_folder_of_artefacts_are_refused(tmp_path, option):
    """The stage `items` would replace items.parquet, and `images` would remove photos that it did not store."""
    folder = tmp_path / "data" / "shop"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "s.jpg").write_bytes(b"photo")
    parquet(folder, "interactions.parquet", customer=["u"], sku=["s"], bought_at=["2024-05-01"], stars=[5])
    parquet(folder, "items.parquet", sku=["s"])
    name = {"photos": "images"}.get(option, f"{option}.parquet")
    with pytest.raises(SourceError, match=rf"{folder / name} is in {folder}, .*; move it to another folder"):
        fetched(tmp_path, **{option: f"data/shop/{name}"})


def test_another_mapping_changes_the_version_of_the_data(tmp_path):
    first = raw_files.digest(fetched(tmp_path))
    assert raw_files.digest(fetched(tmp_path)) == first
    assert raw_files.digest(fetched(tmp_path, constant_rating=4)) != first


@pytest.mark.slow
def test_a_real_dataset_gives_the_same_rows_as_tables(shared_data, tmp_path):
    """H&M as CSV and Parquet gives the same rows as its JSON lines."""
    folder = (shared_data / "hm").resolve()
    reviews = pl.read_ndjson(gzip.decompress((folder / "reviews.jsonl.gz").read_bytes()))
    reviews.with_columns(when=pl.from_epoch("timestamp", "ms")).select("user_id", "parent_asin", "when").write_csv(
        tmp_path / "orders.csv", datetime_format="%Y-%m-%d %H:%M:%S%.3f"
    )
    lines = [json.loads(line) for line in gzip.decompress((folder / "meta.jsonl.gz").read_bytes()).splitlines()]
    names = ("parent_asin", "title", "main_category", "categories", "store", "features", "description", "price")
    properties = ("Department", "Color", "Pattern")  # and "Product code", a number that is left out
    rows = [
        {name: line.get(name) for name in names}
        | {name: line["details"].get(name) for name in properties}
        | {"photo": photo_of(line)}
        for line in lines
    ]
    pl.DataFrame(rows, infer_schema_length=None).write_parquet(tmp_path / "products.parquet")
    direct = DatasetPaths(tmp_path / "data" / "direct")
    raw_files.fetch(SourceSettings(kind="amazon_2023", folder=folder), tmp_path, direct)
    columns = {"user": "user_id", "item": "parent_asin", "timestamp": "when"}
    own = {name: name for name in names[1:]} | {"item": "parent_asin", "image": "photo"}
    own["details"] = {name: name for name in properties}
    as_tables = fetched(
        tmp_path, None, None, items="products.parquet", interaction_columns=columns, item_columns=own, photos=folder
    )
    for paths in (direct, as_tables):
        interactions.build_interactions(raw_shop.IngestSettings(), paths)
        items.build_items(raw_shop.IngestSettings(), paths)
    expected, found = (pl.read_parquet(paths.interactions) for paths in (direct, as_tables))
    assert found.with_columns(pl.col("position") - 1).equals(expected)  # the header is line 1
    paths_of_photos = pl.col("image_url").str.strip_prefix(OLD_PREFIX)
    by_name = pl.col("details").list.sort()
    expected = pl.read_parquet(direct.items).with_columns(paths_of_photos, by_name)
    assert pl.read_parquet(as_tables.items).equals(expected)


def photo_of(line):
    return line["images"][0]["large"].removeprefix(OLD_PREFIX) if line["images"] else None
