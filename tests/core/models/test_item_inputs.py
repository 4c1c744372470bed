"""Inputs of an item under each variant, token by token."""

import numpy as np
import pytest

from pixrec_core import prompts, schemas
from pixrec_core.models.backbones import tiny
from pixrec_core.models.item_inputs import NO_PHOTO, ItemBlock, ItemInputs, item_inputs

K = 4
TEXT_TOKENS = 12


def item(title: str) -> dict:
    return dict.fromkeys(schemas.ITEM_SCHEMA) | {"title": title}


SPECIAL_TOKENS = "".join(tiny.SPECIAL)
#: Text and photo, no text, no photo, neither, a text too long, special tokens with and without a photo.
ITEMS = [
    item(title)
    for title in ("Wool cushion", "", "Desk lamp", "", "very " * 50 + "long", SPECIAL_TOKENS, SPECIAL_TOKENS)
]
PHOTO_ROWS = np.array([0, 1, NO_PHOTO, NO_PHOTO, 2, 3, NO_PHOTO])
TEXT_AND_PHOTO, NO_TEXT, TEXT, NOTHING, LONG, SPECIAL, SPECIAL_WITHOUT_PHOTO = range(7)


@pytest.fixture(scope="module")
def processor():
    return tiny.create([prompts.item_text(each) for each in ITEMS])[1]


@pytest.fixture
def inputs_of(processor):
    return lambda variant, tokens=TEXT_TOKENS: item_inputs(ITEMS, PHOTO_ROWS, processor, K, variant, tokens)


def decoded_text(processor, block: ItemBlock) -> str:
    return processor.tokenizer.decode(block.ids[: block.text_length])


def image_tokens(inputs: ItemInputs) -> list[int]:
    """Number of image placeholders per item."""
    return [int((block.image_feature_index >= 0).sum()) for block in inputs]


def have_text(inputs: ItemInputs) -> list[bool]:
    return [block.text_length > 0 for block in inputs]


HAVE_TEXT = [bool(each["title"]) for each in ITEMS]


def test_multimodal_has_text_then_photo_then_end(inputs_of, processor) -> None:
    inputs = inputs_of("multimodal", 100)
    text, end = processor.text_ids("Title: Wool cushion"), processor.text_ids(prompts.END)
    before, after = processor.around_image()
    block = inputs[TEXT_AND_PHOTO]
    assert block.ids.tolist() == [*text, *before, *[processor.image_token_id] * K, *after, *end]
    assert block.image_feature_index[block.image_feature_index >= 0].tolist() == list(range(K))
    assert block.text_length == len(text)
    assert inputs.photo_rows.tolist() == PHOTO_ROWS.tolist()
    assert image_tokens(inputs) == [K, K, 0, 0, K, K, 0]
    assert have_text(inputs) == HAVE_TEXT
    assert (len(inputs), inputs.image_tokens) == (len(ITEMS), K)


def test_text_only_has_no_photo(inputs_of) -> None:
    inputs = inputs_of("text_only")
    assert image_tokens(inputs) == [0] * len(ITEMS)
    assert set(inputs.photo_rows.tolist()) == {NO_PHOTO}
    assert have_text(inputs) == HAVE_TEXT


def test_image_only_has_no_text(inputs_of) -> None:
    inputs = inputs_of("image_only")
    assert not any(have_text(inputs))
    assert image_tokens(inputs) == [K, K, 0, 0, K, K, 0]
    assert inputs.photo_rows.tolist() == PHOTO_ROWS.tolist()


@pytest.mark.parametrize("count", [3, 4, 7, 40])
def test_shuffled_images_give_every_photo_to_another_item(processor, count) -> None:
    rows = np.array([NO_PHOTO if n % 4 == 0 else n for n in range(count)])
    items = [item(f"Lamp {n}") for n in range(count)]
    original, shuffled, again = (
        item_inputs(items, rows, processor, K, variant, TEXT_TOKENS)
        for variant in ("multimodal", "shuffled_images", "shuffled_images")
    )
    assert sorted(shuffled.photo_rows) == sorted(rows)
    assert ((shuffled.photo_rows == NO_PHOTO) == (rows == NO_PHOTO)).all()
    assert not (shuffled.photo_rows == rows)[rows != NO_PHOTO].any(), "no item keeps its photo"
    assert (shuffled.photo_rows == again.photo_rows).all()
    assert all((a.ids == b.ids).all() for a, b in zip(original, shuffled, strict=True))


@pytest.mark.parametrize("tokens", [1, 5, TEXT_TOKENS])
def test_texts_are_truncated_and_photos_are_not(inputs_of, processor, tokens) -> None:
    block = inputs_of("multimodal", tokens)[LONG]
    assert block.text_length == tokens
    assert block.ids[:tokens].tolist() == processor.text_ids(prompts.item_text(ITEMS[LONG]))[:tokens]
    assert (block.image_feature_index >= 0).sum() == K


@pytest.mark.parametrize("variant", ["multimodal", "text_only", "image_only", "shuffled_images"])
def test_texts_contain_no_image_token_and_every_item_has_its_end(inputs_of, processor, variant) -> None:
    end = processor.text_ids(prompts.END)
    for block in inputs_of(variant, 100):
        assert ((block.ids == processor.image_token_id) == (block.image_feature_index >= 0)).all()
        assert (block.image_feature_index[: block.text_length] == -1).all()
        assert block.ids[-len(end) :].tolist() == end


def test_names_of_special_tokens_in_a_title_are_text(inputs_of, processor) -> None:
    special = set(processor.tokenizer.convert_tokens_to_ids(tiny.SPECIAL))
    for number in (SPECIAL, SPECIAL_WITHOUT_PHOTO):
        block = inputs_of("multimodal", 100)[number]
        assert not special & set(block.ids[: block.text_length].tolist())
        assert decoded_text(processor, block) == f"Title: {SPECIAL_TOKENS}"


@pytest.mark.parametrize(
    ("variant", "number"),
    [("multimodal", NOTHING), ("text_only", NO_TEXT), ("image_only", TEXT), ("text_only", NOTHING)],
)
def test_an_item_without_inputs_has_its_end_token(inputs_of, processor, variant, number) -> None:
    block = inputs_of(variant)[number]
    assert block.ids.tolist() == processor.text_ids(prompts.END)
    assert len(block.ids) == 1
    assert block.text_length == 0
