"""Inputs of the towers for each item: token ids, and the row of its photo.

A variant determines these inputs; all later code is the same for all variants.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixrec_core import prompts
from pixrec_core.models.backbones import Processor

Ids = NDArray[np.int64]

NO_PHOTO = -1


@dataclass(frozen=True)
class ItemBlock:
    """The part of a prompt that describes one item: text, image, end token.

    Attributes:
        ids: (L,) token ids.
        image_feature_index: (L,) index of an image feature among the K of the item's photo; -1 for text.
        text_length: number of text tokens, which come first; generation predicts them.
    """

    ids: Ids
    image_feature_index: Ids
    text_length: int


@dataclass(frozen=True)
class ItemInputs(Sequence[ItemBlock]):
    """Blocks of all items of a catalogue by item number, each built on access.

    Only texts are stored, since the tokens of an image are the same for all items: with 32 text and 64 image tokens
    per item, this takes a twelfth of the memory.

    Attributes:
        tokens: (T,) int32, the texts of all items one after the other.
        ends: (N,) index in `tokens` after the last token of each text.
        photo_rows: (N,) row of each item's photo among all photos; `NO_PHOTO` for an item without one.
        image_tokens: K, features per photo.
        image: ids and image_feature_index of an image.
        end: (E,) ids that end every item.
    """

    tokens: NDArray[np.int32]
    ends: Ids
    photo_rows: Ids
    image_tokens: int
    image: tuple[Ids, Ids]
    end: Ids

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> ItemBlock:  # type: ignore[override]  # no slices
        text = self.tokens[self.ends[number - 1] if number else 0 : self.ends[number]]
        end = None if self.photo_rows[number] != NO_PHOTO else 0
        ids, image_feature_index = (part[:end] for part in self.image)
        return ItemBlock(
            np.concatenate([text, ids, self.end]),
            np.concatenate([np.full(len(text), -1), image_feature_index, np.full(len(self.end), -1)]),
            len(text),
        )


def item_inputs(
    items: Iterable[dict[str, Any]],
    photo_rows: Ids,
    processor: Processor,
    image_tokens: int,
    variant: str,
    text_tokens: int,
) -> ItemInputs:
    """Inputs of all items under a variant.

    multimodal and collaborative: text and photo. text_only: no photo. image_only: no text. shuffled_images: text and
    the photo of another item, the same one in every call, so that only their association is lost.

    `items` are rows of the catalogue, `photo_rows` (N,) and `image_tokens` those of `ItemInputs`. Texts are cut to
    `text_tokens` tokens.
    """
    tokens, ends = array("i"), array("q")
    for item in items:
        text = "" if variant == "image_only" else prompts.item_text(item)
        tokens.extend(processor.text_ids(text)[:text_tokens] if text else [])
        ends.append(len(tokens))
    before, after = processor.around_image()
    image_ids = [*before, *[processor.image_token_id] * image_tokens, *after]
    image_feature_index = [*[-1] * len(before), *range(image_tokens), *[-1] * len(after)]
    return ItemInputs(
        np.array(tokens, dtype=np.int32),
        np.array(ends, dtype=np.int64),
        variant_photo_rows(photo_rows, variant),
        image_tokens,
        (np.array(image_ids, dtype=np.int64), np.array(image_feature_index, dtype=np.int64)),
        np.array(processor.text_ids(prompts.END), dtype=np.int64),
    )


def variant_photo_rows(rows: Ids, variant: str) -> Ids:
    """Return the row of the photo that each item has under a variant, or `NO_PHOTO`; `rows` (N,) are the true ones."""
    if variant == "text_only":
        return np.full_like(rows, NO_PHOTO)
    if variant == "shuffled_images":
        shuffled = rows.copy()
        order = np.random.default_rng(0).permutation(np.flatnonzero(rows != NO_PHOTO))
        shuffled[order] = rows[np.roll(order, 1)]  # one cycle: no item keeps its photo
        return shuffled
    return rows
