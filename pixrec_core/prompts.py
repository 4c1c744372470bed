"""Item and history text: pure strings, CALRec's templates (arXiv 2405.02429, section 3.1) with images.

A history reads "This is the summary of a user's purchase history. The first item bought is as
follows. {item} {image}", newline, "The next item bought is as follows. {item} {image}", and so
on. The item tower reads "{item} {image}" alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from pixrec_core import schemas

FIRST: Final = "This is the summary of a user's purchase history. The first item bought is as follows. "
NEXT: Final = "The next item bought is as follows. "
END: Final = "\n"  # ends an item; its hidden state depends on all of the item's text and photo

LABELS: Final = ("Title:", "Category:", "Brand:", "Features:", "Price:")

CATEGORIES_SHOWN = 2  # the most specific ones; the general ones are the same for a whole dataset
FEATURES_SHOWN = 3


def item_text(item: Mapping[str, Any]) -> str:
    """Text of one item: title, category, brand, features, price, in that order.

    Empty fields are left out: a word such as "Unknown" would make all items without a brand similar.
    Average rating and rating count are left out because they include interactions after the split.

    Args:
        item: a row of `schemas.ITEM_SCHEMA`.
    """
    price = item[schemas.PRICE]
    values = (
        item[schemas.TITLE],
        ", ".join(_distinct(item[schemas.CATEGORIES] or ())[-CATEGORIES_SHOWN:]),
        item[schemas.STORE],
        ", ".join(_distinct(item[schemas.FEATURES] or ())[:FEATURES_SHOWN]),
        f"{price:.2f}" if price is not None else None,
    )
    return " ".join(f"{label} {value}" for label, value in zip(LABELS, values, strict=True) if value)


def full_item_text(item: Mapping[str, Any]) -> str:
    """Return all metadata fields of an item but the price, in the order of use; for methods that count words.

    Args:
        item: a row of `schemas.ITEM_SCHEMA`.
    """
    values = (
        item[schemas.TITLE],
        item[schemas.MAIN_CATEGORY],
        *(item[schemas.CATEGORIES] or ()),
        item[schemas.STORE],
        *(item[schemas.FEATURES] or ()),
        *(item[schemas.DESCRIPTION] or ()),
    )
    return "\n".join(_distinct([value for value in values if value]))


def _distinct(values: Sequence[str]) -> list[str]:
    """Non-empty values in their order, each once."""
    return list(dict.fromkeys(value for value in values if value))
