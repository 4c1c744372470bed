import gzip
import json

import pytest

from pixrec_core.data import items
from pixrec_core.errors import SourceError
from pixrec_core.schemas import ITEM_SCHEMA
from pixrec_core.settings import IngestSettings
from tests.core.data import raw_shop
from tests.core.data.raw_shop import LENIENT, item


def built(paths, settings=LENIENT):
    stats = items.build_items(settings, paths)
    return stats, *raw_shop.tables(paths.items, paths.items_quarantine, ITEM_SCHEMA)


def only(tmp_path, line):
    _, rows, bad = built(raw_shop.of(tmp_path, line))
    assert bad.is_empty(), bad
    return rows.row(0, named=True)


def photo(url, variant="MAIN", **others):
    return {"variant": variant, "large": url, "hi_res": None, "thumb": None} | others


def test_a_complete_line(tmp_path):
    line = item(
        main_category="Home", store="Lux", categories=["Home", "Lamps"], features=["Red", "Big"],
        description=["Shines."], price=12.5, images=[photo("http://h/a+b,c.jpg")],
        average_rating=4.0, rating_number=9, details={"Colour": "red", "ASIN": "p"},
    )  # fmt: skip
    assert only(tmp_path, line) == {
        "item": "p", "title": "Lamp", "main_category": "Home", "categories": ["Home", "Lamps"], "store": "Lux",
        "features": ["Red", "Big"], "details": ["Colour: red"], "description": ["Shines."], "price": 12.5,
        "in_stock": None, "image_url": "http://h/a+b,c.jpg", "other_image_urls": [],
    }  # fmt: skip


@pytest.mark.parametrize("empty", [..., None])
def test_missing_fields_are_empty(tmp_path, empty):
    names = ("title", "main_category", "store", "categories", "features", "description", "price", "images")
    assert only(tmp_path, item(**dict.fromkeys(names, empty))) == {
        "item": "p", "title": "", "main_category": "", "categories": [], "store": "", "features": [],
        "details": [], "description": [], "price": None, "in_stock": None, "image_url": None, "other_image_urls": [],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("details", "kept"),
    [
        ({"Color": " Dark  Blue ", "Size": 5, "Boxed": True, "For": ["men", 2, None]},
         ["Color: Dark Blue", "Size: 5", "Boxed: true", "For: men, 2"]),
        ([{"name": "Color", "value": "Red"}, {"key": "Fit", "value": "slim"}, 7], ["Color: Red", "Fit: slim"]),
        (json.dumps({"Brand": "Lux", "Rank": {"x": 1}}), ["Brand: Lux"]),  # as the Hugging Face hub has them
        ({"Material:": "<b>Oak</b>", "a/b~c": "d", 'x"y': "z", "e": "", "n": None},
         ["Material: Oak", "a/b~c: d", 'x"y: z']),
        ({"Date First Available": "May 1, 2020", "Best Sellers Rank": {"Home": 3}, "Customer Reviews": "4.5 of 5",
          "Item model number": "X1", "ISBN-13": "1", "MovieLens-1M ID": "7", "Barcode": "4006381333931",
          "Package Dimensions": "8 x 4 inches", "Item Weight": "2 kg", "Content Rating": "PG"}, ["Content Rating: PG"]),
        ("no object", []), ([], []), (5, []), (None, []),
    ],
)  # fmt: skip
def test_details_are_kept_without_those_that_leak_or_say_nothing(tmp_path, details, kept):
    assert only(tmp_path, item(details=details))["details"] == kept


def test_sorts_by_item_and_keeps_the_first_of_duplicates(tmp_path):
    raw = item(parent_asin="b", title="first") + item(parent_asin="a") + item(parent_asin="b", title="second")
    stats, rows, _ = built(raw_shop.of(tmp_path, raw))
    assert rows.select("item", "title").rows() == [("a", "Lamp"), ("b", "first")]
    assert stats == {
        "rows": 2, "bad_lines": 0, "bad_share": 0.0, "duplicates": 1, "truncated": False,
        "balance": {"read": 3, "kept": 2, "rejected": {}, "dropped": {"repeats of an id (merged into its item)": 1}},
        "with_image": 0, "with_price": 0,
    }  # fmt: skip


def test_a_value_that_is_nothing_but_markup_does_not_hide_one_of_a_later_row(tmp_path):
    first = item(title="<br>", store=" ", main_category="<b></b>", categories=["<p>"], features=[""], price="inf")
    later = item(title="Mug", store="Lux", main_category="Home", categories=["Cups"], features=["Red"], price=5)
    row = only(tmp_path, first + later)
    names = ("title", "store", "main_category", "categories", "features", "price")
    assert [row[name] for name in names] == ["Mug", "Lux", "Home", ["Cups"], ["Red"], 5.0]


@pytest.mark.parametrize(
    ("price", "read"),
    [
        (69.0, 69.0), (7, 7.0), ("12.99", 12.99), ("$12.99", 12.99), (" $1,299.50 ", 1299.5), ("€ 5", 5.0),
        ("from 3.99", None), ("", None), (None, None), ("$3.99 - $5.99", None), ("12,99", 12.99), ("0", None),
        (0, None), ("15.00 EUR", 15.0),
        (-3.5, None), ("-3.5", None), (True, None), ([3], None), ({"a": 3}, None), ("1e3", None), ("1.2.3", None),
        (".a-box-inner{width:3}", None), (float("nan"), None), (float("inf"), None), ("9" * 400, None),
    ],
)  # fmt: skip
def test_only_plain_prices_are_read(tmp_path, price, read):
    assert only(tmp_path, item(price=price))["price"] == read


@pytest.mark.parametrize(
    ("images", "url"),
    [
        ([photo("http://h/1", "PT01"), photo("http://h/2")], "http://h/2"),
        ([photo("http://h/1", "PT01"), photo(None)], "http://h/1"),
        ([photo(None, "PT01"), photo("http://h/2", "PT02"), photo("http://h/3", "PT03")], "http://h/2"),
        ([photo("http://h/l", hi_res="http://h/h", thumb="http://h/t")], "http://h/l"),
        ([photo(None, hi_res="http://h/h", thumb="http://h/t")], "http://h/h"),
        ([photo("", thumb="https://h/t")], "https://h/t"),
        ([photo("http://127.0.0.1:PORT/images/1.jpg")], "http://127.0.0.1:PORT/images/1.jpg"),
        ([photo("ftp://h/1")], None), ([photo("file:///etc/passwd")], None), ([photo("http://h/a b")], "http://h/a%20b"),
        ([photo(5)], None), ([7, None, "http://h/1"], "http://h/1"), ([], None), (None, None),
        ("http://h/1, http://h/2", "http://h/1"), ('["http://h/1"]', "http://h/1"), (["//h/1"], "https://h/1"),
        ([{"url": "http://h/1"}], "http://h/1"), ([{"src": "http://h/1"}], "http://h/1"), ([["http://h/1"]], "http://h/1"),
        ({"url": "http://h/1"}, "http://h/1"), (["http://h/1", {"large": "http://h/2"}], "http://h/2"),
        (["http://h/1", "http://h/2"], "http://h/1"),
        ({"variant": ["PT01", "MAIN"], "large": ["http://h/1", "http://h/2"], "hi_res": [None, None],
          "thumb": ["http://h/t", "http://h/t"]}, "http://h/2"),
    ],
)  # fmt: skip
def test_chooses_the_photo(tmp_path, images, url):
    assert only(tmp_path, item(images=images))["image_url"] == url


def test_the_other_photos_are_kept_in_order(tmp_path):
    images = [photo("http://h/1", variant="PT01"), photo("http://h/2"), photo("http://h/3", variant="PT02")]
    row = only(tmp_path, item(images=images))
    assert (row["image_url"], row["other_image_urls"]) == ("http://h/2", ["http://h/1", "http://h/3"])


def test_a_photo_that_one_row_names_twice_is_kept_once(tmp_path):
    row = only(tmp_path, item(images=["http://h/1", "http://h/2", "http://h/1", "http://h/2"]))
    assert (row["image_url"], row["other_image_urls"]) == ("http://h/1", ["http://h/2"])


def test_thousands_of_rows_with_one_id_keep_the_first_hundred_photos(tmp_path):
    urls = [f"http://h/{n % 8_000}" for n in range(24_000)]
    paths = raw_shop.of(tmp_path, b"".join(item(images=[url]) for url in urls))
    (row,) = built(paths)[1].to_dicts()
    assert [row["image_url"], *row["other_image_urls"]] == urls[:100]


def test_nested_categories_are_flattened(tmp_path):
    for categories in (
        [["Home", "Lamps"], ["Sale"]],
        [{"id": 1, "name": "Home"}, "Lamps", ["Sale"]],
        '["Home", "Lamps", "Sale"]',
    ):
        assert only(tmp_path, item(categories=categories))["categories"] == ["Home", "Lamps", "Sale"]


@pytest.mark.parametrize(
    ("images", "path"),
    [
        ([photo("images/1.jpg")], "images/1.jpg"),
        ([photo(" a b/\u00e9+c.jpg ")], "a b/\u00e9+c.jpg"),
        ([photo("../1.jpg")], "../1.jpg"),  # refused by name at the images stage
        ([photo("", thumb="t.jpg")], "t.jpg"),
        ([photo("https://h/1", "PT01"), photo("2.jpg")], "2.jpg"),
        ([photo("file:///etc/passwd")], None),
        ([photo("a\nb.jpg")], None),
    ],
)
def test_a_photo_may_be_a_path_if_the_dataset_has_a_photo_folder(tmp_path, images, path):
    raw = tmp_path / "raw.jsonl"
    raw.write_bytes(item(images=images))
    assert built(raw_shop.at(tmp_path, raw, raw, tmp_path))[1]["image_url"].item() == path
    if path is not None and not path.startswith("http"):
        without = built(raw_shop.at(tmp_path, raw, raw))[1]["image_url"].item()
        assert without is None or without.startswith("http")


def test_markup_is_removed_and_empty_texts_are_dropped_from_lists(tmp_path):
    row = only(
        tmp_path,
        item(
            title='<span class="a-size-medium"', store="Zo\u00eb &amp; Co\u0000", main_category="  A  B ",
            features=["<b>Red</b>", "<br>", "", "\u00a0", None, 5, ["x"], 'say "hi"\n'], description="one text",
            categories=["A &gt; B"],
        ),
    )  # fmt: skip
    assert row["title"] == ""
    assert (row["store"], row["main_category"]) == ("Zo\u00eb & Co", "A B")
    assert row["features"] == ["Red", "5", "x", 'say "hi"']
    assert (row["description"], row["categories"]) == (["one text"], ["A > B"])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (item(parent_asin=None), "parent_asin is missing"),
        (item(parent_asin=""), "item is empty"),
        (item(parent_asin=[5]), "parent_asin is neither text nor a whole number: [5]"),
        (item(title=["Lamp"]), "title is not text"),
        (item(store={"a": 3}), "store is not text"),
        (item(features={"a": 1}), "features is not a list"),
        (item(images=5), "images is not a list"),
        (b"[]\n", "not a JSON object"),
        (b'{"parent_asin": "p"\n', "not JSON: "),
    ],
)
def test_quarantines_wrong_types(tmp_path, line, reason):
    stats, rows, bad = built(raw_shop.of(tmp_path, item(parent_asin="a") + line + item(parent_asin="z")))
    assert rows["item"].to_list() == ["a", "z"]
    assert bad["line"].to_list() == [2]
    assert bad["reason"][0].startswith(reason)
    assert stats["bad_lines"] == 1


def test_too_many_rejected_lines_are_an_error(tmp_path):
    with pytest.raises(SourceError, match=r"1 of 2 lines are rejected, 50\.00%; max_bad_share allows 1\.00%"):
        items.build_items(IngestSettings(), raw_shop.of(tmp_path, item() + b"bad\n"))


def test_the_real_lines_of_2023_parse(shared_data, tmp_path):
    folder = shared_data / "amazon-2023-lines"
    stats, rows, _ = built(raw_shop.at(tmp_path, folder / "reviews.jsonl", folder / "meta.jsonl"), IngestSettings())
    assert (stats["rows"], stats["with_image"], stats["with_price"]) == (6, 6, 2)
    baleaf = rows.filter(item="B09X1MRDN6").row(0, named=True)
    assert baleaf["price"] == 31.99
    assert baleaf["image_url"] == "https://m.media-amazon.com/images/I/31zPYU+UkVL._AC_.jpg"
    assert baleaf["categories"][-1] == "Cover-Ups"
    assert rows.filter(item="B08W5BSH6V")["categories"].to_list() == [[]]


def test_the_real_metadata_of_2018_parses(shared_data, tmp_path):
    path = shared_data / "amazon-2018-magazine-meta" / "meta_Magazine_Subscriptions.json.gz"
    first = {}
    for line in gzip.decompress(path.read_bytes()).splitlines():
        fields = json.loads(line)
        first.setdefault(fields["asin"], fields)
    stats, rows, _ = built(raw_shop.at(tmp_path, path, path), IngestSettings())
    assert (stats["rows"], stats["duplicates"]) == (len(first), 1065)
    assert rows["item"].to_list() == sorted(first)
    urls = {key: (fields["imageURLHighRes"] or fields["imageURL"] or [None])[0] for key, fields in first.items()}
    assert dict(rows.select("item", "image_url").iter_rows()) == urls
    assert not rows["title"].str.contains("a-size-medium|/>").any()
    assert not rows["categories"].explode().str.contains("&amp;").any()
    assert rows.filter(item="B00005N7OC")["store"].item() == "String Letter Publishers"


@pytest.mark.parametrize("name", ["hm", "movielens-100k"])
def test_real_sets_agree_with_the_json_module(shared_data, tmp_path, name):
    folder = shared_data / name
    stats, rows, _ = built(
        raw_shop.at(tmp_path, folder / "reviews.jsonl.gz", folder / "meta.jsonl.gz"), IngestSettings()
    )
    lines = [json.loads(line) for line in gzip.decompress((folder / "meta.jsonl.gz").read_bytes()).splitlines()]
    lines.sort(key=lambda fields: fields["parent_asin"])
    assert stats["rows"] == len(lines)
    assert rows["categories"].to_list() == [fields["categories"] for fields in lines]
    assert rows["image_url"].to_list() == [
        fields["images"][0]["large"] if fields["images"] else None for fields in lines
    ]
