"""Item texts: which fields they contain, and in which order."""

from pixrec_core import prompts

ITEM = {
    "title": "Wool cushion",
    "categories": ["Home", "Living", "Living", "Cushions", ""],
    "store": "Arlen",
    "features": ["Soft", "Warm", "Soft", "Washable", "Light"],
    "price": 12.5,
    "average_rating": 4.9,
}


def test_all_fields_in_their_order() -> None:
    expected = "Title: Wool cushion Category: Living, Cushions Brand: Arlen Features: Soft, Warm, Washable Price: 12.50"
    assert prompts.item_text(ITEM) == expected


def test_the_full_text_has_every_field_but_the_price_once() -> None:
    item = ITEM | {"main_category": "Home", "description": ["A cushion.", ""]}
    lines = ["Wool cushion", "Home", "Living", "Cushions", "Arlen", "Soft", "Warm", "Washable", "Light", "A cushion."]
    assert prompts.full_item_text(item) == "\n".join(lines)
    assert prompts.full_item_text(dict.fromkeys(item)) == ""


def test_empty_fields_are_left_out() -> None:
    bare = {"title": "Wool cushion", "categories": None, "store": "", "features": [], "price": None}
    assert prompts.item_text(bare) == "Title: Wool cushion"


def test_an_item_without_anything_has_no_text() -> None:
    assert prompts.item_text(dict.fromkeys(ITEM)) == ""


def test_ratings_counted_after_the_split_never_enter() -> None:
    assert "4.9" not in prompts.item_text(ITEM)
