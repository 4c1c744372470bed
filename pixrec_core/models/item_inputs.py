"""What the towers read of each item, made once: token ids, and the row of its photo.

A variant is a way of making these inputs; everything after is the same code for all of them.
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
    """One item as it stands in a prompt: text, image, end.

    Attributes:
        ids: (L,) token ids.
        image_feature_index: (L,) for the placeholder of an image feature, which of the K features of the item's
            photo it takes; -1 for a text token.
        text_length: number of leading tokens that are the item's text, which generation must predict.
    """

    ids: Ids
    image_feature_index: Ids
    text_length: int


@dataclass(frozen=True)
class LazyItemBlocks(Sequence[ItemBlock]):
    """Blocks of many items, each put together when it is asked for.

    Only texts are kept, since all else is alike: of 32 text and 64 image tokens an item, a twelfth of the memory.

    Attributes:
        tokens: (T,) int32, the texts of all items one after the other.
        ends: (N,) past the last token of each item's text.
        has_photo: (N,) whether an image follows.
        image: ids and image_feature_index of an image, which are the same for all.
        end: (E,) ids that end an item.
    """

    tokens: NDArray[np.int32]
    ends: Ids
    has_photo: NDArray[np.bool_]
    image: tuple[Ids, Ids]
    end: Ids

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: int) -> ItemBlock:  # type: ignore[override]  # no slices
        text = self.tokens[self.ends[number - 1] if number else 0 : self.ends[number]]
        ids, image_feature_index = self.image if self.has_photo[number] else (self.image[0][:0], self.image[1][:0])
        return ItemBlock(
            np.concatenate([text, ids, self.end]),
            np.concatenate([np.full(len(text), -1), image_feature_index, np.full(len(self.end), -1)]),
            len(text),
        )


@dataclass(frozen=True)
class ItemInputs:
    """Blocks of all items of a catalogue, in its order.

    Attributes:
        blocks: one an item.
        photo_rows: (N,) row of the item's photo among all photos; -1 without one.
        image_tokens: K, features of one photo.
    """

    blocks: Sequence[ItemBlock]
    photo_rows: Ids
    image_tokens: int

    def __len__(self) -> int:
        return len(self.blocks)


def item_inputs(
    items: Iterable[dict[str, Any]],
    photo_rows: Ids,
    processor: Processor,
    image_tokens: int,
    variant: str,
    text_tokens: int,
) -> ItemInputs:
    """Read every item as a variant does.

    multimodal and collaborative: text and photo. text_only: no photo. image_only: no text. shuffled_images: the text
    with the photo of another item, the same one always, so that only the tie between the two is lost.

    Args:
        items: rows of the catalogue.
        photo_rows: (N,) as in `ItemInputs`.
        processor: of the backbone.
        image_tokens: K.
        variant: name of the variant.
        text_tokens: longest text of an item, tokens.
    """
    rows = _photo_rows(photo_rows, variant)
    tokens, ends = array("i"), array("q")
    for item in items:
        text = "" if variant == "image_only" else prompts.item_text(item)
        tokens.extend(processor.text_ids(text)[:text_tokens] if text else [])
        ends.append(len(tokens))
    before, after = processor.around_image()
    image_ids = [*before, *[processor.image_token_id] * image_tokens, *after]
    image_slots = [*[-1] * len(before), *range(image_tokens), *[-1] * len(after)]
    blocks = LazyItemBlocks(
        np.array(tokens, dtype=np.int32),
        np.array(ends, dtype=np.int64),
        rows != NO_PHOTO,
        (np.array(image_ids, dtype=np.int64), np.array(image_slots, dtype=np.int64)),
        np.array(processor.text_ids(prompts.END), dtype=np.int64),
    )
    return ItemInputs(blocks, rows, image_tokens)


def _photo_rows(rows: Ids, variant: str) -> Ids:
    if variant == "text_only":
        return np.full_like(rows, NO_PHOTO)
    if variant == "shuffled_images":
        shuffled = rows.copy()
        with_photo = rows != NO_PHOTO
        order = np.random.default_rng(0).permutation(np.flatnonzero(with_photo))
        shuffled[order] = rows[np.roll(order, 1)]  # along one ring: nobody keeps the own photo
        return shuffled
    return rows
