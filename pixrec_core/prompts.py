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

LABELS: Final = ("Title:", "Category:", "Brand:", "Price:", "Features:", "Details:", "Description:")


def item_text(item: Mapping[str, Any]) -> str:
    """Return the text of one item: all fields that say something about it, the most useful and shortest ones first.

    A model that reads a limited number of tokens so loses the end of a long description first. The most specific
    category comes first: the general ones are the same for most items. Empty fields are left out: a word such as
    "Unknown" would make all items without a brand similar. Average rating and rating count are left out because they
    include interactions after the split.

    `item` is a row of `schemas.ITEM_SCHEMA`.
    """
    price = item[schemas.PRICE]
    values = (
        item[schemas.TITLE],
        ", ".join(_distinct([*reversed(item[schemas.CATEGORIES] or ()), item[schemas.MAIN_CATEGORY]])),
        item[schemas.STORE],
        f"{price:.2f}" if price is not None else None,
        *(", ".join(_distinct(item[name] or ())) for name in (schemas.FEATURES, schemas.DETAILS)),
        " ".join(_distinct(item[schemas.DESCRIPTION] or ())),
    )
    return " ".join(f"{label} {value}" for label, value in zip(LABELS, values, strict=True) if value)


def _distinct(values: Sequence[str | None]) -> list[str]:
    """Non-empty values in their order, each once."""
    return list(dict.fromkeys(value for value in values if value))
