"""Nearest items of a history or of a new item: the encoder and the index over the catalogue together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pixrec_core import prompts
from pixrec_core.data.sequences import read_items
from pixrec_core.models import checkpoint
from pixrec_core.models.collate import Collator
from pixrec_core.models.item_inputs import NO_PHOTO, item_inputs
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval.encode import Encoder, Vectors
from pixrec_core.retrieval.index import ItemIndex, load_index
from pixrec_core.retrieval.rankers import Catalogue, UserBatch
from pixrec_core.schemas import ITEM_SCHEMA


@dataclass(frozen=True)
class Retriever:
    """A trained dual tower and the index over its items.

    Attributes:
        encoder: the towers and their inputs.
        item_index: over the catalogue.
        text_tokens: longest item text in tokens; longer ones are cut.
    """

    encoder: Encoder
    item_index: ItemIndex
    text_tokens: int

    @classmethod
    def load(cls, paths: VariantPaths) -> Self:
        """From a variant's artefacts.

        Raises:
            MissingArtefactError: there is no checkpoint or no index.
            ArtefactError: the index is damaged, or belongs to other vectors or another checkpoint.
        """
        item_index = load_index(paths)
        settings, _ = checkpoint.load_settings(paths.checkpoint)
        return cls(Encoder.load(paths), item_index, settings.item_tokens)

    def user_batch(self, histories: Sequence[Sequence[int]], vectors: Vectors, lengths: NDArray[np.int64]) -> UserBatch:
        """Users with their vectors (B, D) and nearest items, `lengths` (B,) of them each or the whole catalogue."""
        return UserBatch(self.encoder.crop(histories), vectors, *self.item_index.nearest_lists((vectors, lengths)))

    def ranker_catalogue(self, paths: VariantPaths) -> Catalogue:
        """The catalogue in the form that generative rankers need."""
        texts = [prompts.item_text(item) for item in read_items(paths.dataset).iter_rows(named=True)]
        collator = self.encoder.inputs.collator(self.encoder.photos)
        return Catalogue(self.item_index.items, self.encoder.model, collator, self.item_index.vectors, texts)

    def new_item_vector(self, fields: Mapping[str, Any], photo: Image.Image | None, variant: str) -> Vectors:
        """v_T of an item outside the catalogue, (1, D).

        Args:
            fields: of `ITEM_SCHEMA`; missing ones are empty.
            photo: in RGB, or None.
            variant: determines which of text and photo the tower reads.
        """
        inputs = self.encoder.inputs
        processor, item = inputs.processor, {**dict.fromkeys(ITEM_SCHEMA), **fields}
        photo_rows = np.array([NO_PHOTO if photo is None else 0])
        new = item_inputs([item], photo_rows, processor, inputs.inputs.image_tokens, variant, self.text_tokens)
        pixels = processor.image_inputs(processor.pixels(photo), 1) if photo else {}
        return self.encoder.encode_new_item(Collator(new, processor, lambda _: pixels))
