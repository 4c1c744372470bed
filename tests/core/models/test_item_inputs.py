"""What the towers read of an item under each variant, token by token."""

import numpy as np
import pytest

from pixrec_core import prompts
from pixrec_core.models.backbones import tiny
from pixrec_core.models.item_inputs import NO_PHOTO, ItemBlock, ItemInputs, item_inputs

K = 4
TEXT_TOKENS = 12


def item(title: str) -> dict:
    return {"title": title, "categories": [], "store": None, "features": [], "price": None}


SPELLED = "".join(tiny.SPECIAL)
#: Text and photo, no text, no photo, neither, a text too long, special tokens with and without a photo.
ITEMS = [item(title) for title in ("Wool cushion", "", "Desk lamp", "", "very " * 50 + "long", SPELLED, SPELLED)]
PHOTO_ROWS = np.array([0, 1, NO_PHOTO, NO_PHOTO, 2, 3, NO_PHOTO])
TEXT, PHOTO, BARE, NOTHING, LONG, SPECIAL, SPECIAL_BARE = range(7)


@pytest.fixture(scope="module")
def processor():
    return tiny.create([prompts.item_text(each) for each in ITEMS])[1]


@pytest.fixture
def read(processor):
    return lambda variant, tokens=TEXT_TOKENS: item_inputs(ITEMS, PHOTO_ROWS, processor, K, variant, tokens)


def spelled(processor, block: ItemBlock) -> str:
    return processor.tokenizer.decode(block.ids[: block.text_length])


def images(inputs: ItemInputs) -> list[int]:
    """Placeholders of image features in each block."""
    return [int((block.image_feature_index >= 0).sum()) for block in inputs.blocks]


def text_lengths(inputs: ItemInputs) -> list[bool]:
    return [block.text_length > 0 for block in inputs.blocks]


HAVE_TEXT = [bool(each["title"]) for each in ITEMS]


def test_multimodal_reads_text_then_photo_then_end(read, processor) -> None:
    inputs = read("multimodal", 100)
    text, end = processor.text_ids("Title: Wool cushion"), processor.text_ids(prompts.END)
    before, after = processor.around_image()
    block = inputs.blocks[TEXT]
    assert block.ids.tolist() == [*text, *before, *[processor.image_token_id] * K, *after, *end]
    assert block.image_feature_index[block.image_feature_index >= 0].tolist() == list(range(K))
    assert block.text_length == len(text)
    assert inputs.photo_rows.tolist() == PHOTO_ROWS.tolist()
    assert images(inputs) == [K, K, 0, 0, K, K, 0]
    assert text_lengths(inputs) == HAVE_TEXT
    assert (len(inputs), inputs.image_tokens) == (len(ITEMS), K)


def test_text_only_reads_no_photo(read) -> None:
    inputs = read("text_only")
    assert images(inputs) == [0] * len(ITEMS)
    assert set(inputs.photo_rows.tolist()) == {NO_PHOTO}
    assert text_lengths(inputs) == HAVE_TEXT


def test_image_only_reads_no_text(read) -> None:
    inputs = read("image_only")
    assert not any(text_lengths(inputs))
    assert images(inputs) == [K, K, 0, 0, K, K, 0]
    assert inputs.photo_rows.tolist() == PHOTO_ROWS.tolist()


@pytest.mark.parametrize("count", [3, 4, 7, 40])
def test_shuffled_images_keep_texts_and_photos_but_not_the_tie_between_them(processor, count) -> None:
    rows = np.array([NO_PHOTO if n % 4 == 0 else n for n in range(count)])
    items = [item(f"Lamp {n}") for n in range(count)]
    tied, shuffled, again = (
        item_inputs(items, rows, processor, K, variant, TEXT_TOKENS)
        for variant in ("multimodal", "shuffled_images", "shuffled_images")
    )
    assert sorted(shuffled.photo_rows) == sorted(rows)
    assert ((shuffled.photo_rows == NO_PHOTO) == (rows == NO_PHOTO)).all()
    assert not (shuffled.photo_rows == rows)[rows != NO_PHOTO].any(), "nobody keeps the own photo"
    assert (shuffled.photo_rows == again.photo_rows).all()
    assert all((a.ids == b.ids).all() for a, b in zip(tied.blocks, shuffled.blocks, strict=True))


@pytest.mark.parametrize("tokens", [1, 5, TEXT_TOKENS])
def test_text_is_cut_and_the_photo_is_not(read, processor, tokens) -> None:
    block = read("multimodal", tokens).blocks[LONG]
    assert block.text_length == tokens
    assert block.ids[:tokens].tolist() == processor.text_ids(prompts.item_text(ITEMS[LONG]))[:tokens]
    assert (block.image_feature_index >= 0).sum() == K


@pytest.mark.parametrize("variant", ["multimodal", "text_only", "image_only", "shuffled_images"])
def test_no_text_can_spell_the_image_token_and_every_item_ends(read, processor, variant) -> None:
    end = processor.text_ids(prompts.END)
    for block in read(variant, 100).blocks:
        assert ((block.ids == processor.image_token_id) == (block.image_feature_index >= 0)).all()
        assert (block.image_feature_index[: block.text_length] == -1).all()
        assert block.ids[-len(end) :].tolist() == end


def test_special_tokens_in_a_title_stay_its_text(read, processor) -> None:
    special = set(processor.tokenizer.convert_tokens_to_ids(tiny.SPECIAL))
    for number in (SPECIAL, SPECIAL_BARE):
        block = read("multimodal", 100).blocks[number]
        assert not special & set(block.ids[: block.text_length].tolist())
        assert spelled(processor, block) == f"Title: {SPELLED}"


@pytest.mark.parametrize(
    ("variant", "number"), [("multimodal", NOTHING), ("text_only", PHOTO), ("image_only", BARE), ("text_only", NOTHING)]
)
def test_an_item_of_which_nothing_is_read_still_has_a_token(read, processor, variant, number) -> None:
    block = read(variant).blocks[number]
    assert block.ids.tolist() == processor.text_ids(prompts.END)
    assert len(block.ids) == 1
    assert block.text_length == 0
