"""Item texts: which fields they contain, and in which order."""

from pixrec_core import prompts

ITEM = {
    "title": "Wool cushion",
    "main_category": "Home",
    "categories": ["Home", "Living", "Living", "Cushions", ""],
    "store": "Arlen",
    "features": ["Soft", "Warm", "Soft", "Washable"],
    "details": ["Colour: Red", "Material: Wool"],
    "description": ["A cushion.", "", "For sofas."],
    "price": 12.5,
    "average_rating": 4.9,
}


def test_every_field_once_with_the_most_specific_category_first() -> None:
    expected = (
        "Title: Wool cushion Category: Cushions, Living, Home Brand: Arlen Price: 12.50 Features: Soft, Warm, Washable "
        "Details: Colour: Red, Material: Wool Description: A cushion. For sofas."
    )
    assert prompts.item_text(ITEM) == expected


def test_empty_fields_are_left_out() -> None:
    bare = dict.fromkeys(ITEM) | {"title": "Wool cushion", "store": "", "features": []}
    assert prompts.item_text(bare) == "Title: Wool cushion"


def test_an_item_without_anything_has_no_text() -> None:
    assert prompts.item_text(dict.fromkeys(ITEM)) == ""


def test_ratings_counted_after_the_split_never_enter() -> None:
    assert "4.9" not in prompts.item_text(ITEM)
