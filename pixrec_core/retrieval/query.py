"""An item that no catalogue has, as the item tower reads it."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from pixrec_core.models.collate import Collator
from pixrec_core.models.item_inputs import NO_PHOTO, item_inputs
from pixrec_core.models.photo_store import pixel_inputs
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.schemas import ITEM_SCHEMA


def lone_item(
    inputs: TowerInputs, known: Mapping[str, Any], photo: Image.Image | None, variant: str, text_tokens: int
) -> Collator:
    """A collator of one item only, number 0.

    Args:
        inputs: of the catalogue whose items it is to be compared with.
        known: fields of `ITEM_SCHEMA`; those that are not there are empty.
        photo: in RGB, or None.
        variant: how items are read.
        text_tokens: longest text, tokens.
    """
    processor, item = inputs.processor, {**dict.fromkeys(ITEM_SCHEMA), **known}
    rows = np.array([NO_PHOTO if photo is None else 0])
    read = item_inputs([item], rows, processor, inputs.inputs.image_tokens, variant, text_tokens)
    return Collator(read, processor, lambda _: pixel_inputs(processor, processor.pixels(photo), 1) if photo else {})
