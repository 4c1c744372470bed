"""Nearest items of a history or of a new item: the encoder and the index over the catalogue together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixrec_core import prompts
from pixrec_core.data.sequences import read_items
from pixrec_core.models import checkpoint
from pixrec_core.models.backbones import Processor
from pixrec_core.models.collate import Collator
from pixrec_core.models.frozen_features import FrozenEncoders
from pixrec_core.models.item_inputs import NO_PHOTO, item_inputs
from pixrec_core.paths import VariantPaths
from pixrec_core.ranking_table import popularity_ranks
from pixrec_core.retrieval.encode import ItemsEncoder, Vectors, load_encoder, newest
from pixrec_core.retrieval.index import ItemIndex, ListsRequest, load_index
from pixrec_core.schemas import ITEM_SCHEMA, TRAIN_COUNT

if TYPE_CHECKING:
    from pixrec_core.retrieval.rankers import Catalogue, UserBatch
    from pixrec_core.retrieval.token_encoder import Encoder


@dataclass(frozen=True)
class Retriever:
    """A trained dual tower and the index over its items.

    `processor`, of the backbone or of frozen encoders, makes the inputs of items outside the catalogue. Item texts are
    cut to `text_tokens` tokens. `popularity_ranks` (N,) orders items with equal scores.
    """

    encoder: "Encoder | ItemsEncoder"
    item_index: ItemIndex
    processor: Processor | FrozenEncoders
    text_tokens: int
    popularity_ranks: NDArray[np.int64]

    @classmethod
    def load(cls, paths: VariantPaths) -> Self:
        """From a variant's artefacts.

        Raises:
            MissingArtefactError: there is no checkpoint or no index.
            ArtefactError: the index is damaged, or belongs to other vectors or another checkpoint.
        """
        item_index = load_index(paths)
        settings, _ = checkpoint.load_settings(paths.checkpoint)
        encoder, processor = load_encoder(paths)
        ranks = popularity_ranks(read_items(paths.dataset)[TRAIN_COUNT].to_numpy())
        return cls(encoder, item_index, processor, settings.item_tokens, ranks)

    @property
    def seen_offset(self) -> float:
        """Added to the cosines of items that are in the history."""
        return float(self.encoder.model.config.seen_offset)

    @property
    def reads_photos(self) -> bool:
        """Whether the towers read photos: not in text_only, and not of a dataset without photos."""
        return self.encoder.reads_photos

    def user_batch(
        self, histories: Sequence[Sequence[int]], vectors: Vectors, lengths: NDArray[np.int64]
    ) -> "UserBatch":
        """Users with their vectors (B, D) and nearest items, `lengths` (B,) of them each or the whole catalogue."""
        from pixrec_core.retrieval.rankers import UserBatch

        read = newest(histories, self.encoder.max_history_len)
        return UserBatch(read, vectors, *self.nearest_lists(vectors, lengths, histories))

    def nearest_lists(
        self, vectors: Vectors, lengths: NDArray[np.int64], histories: Sequence[Sequence[int]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Items nearest to each user's vector (B, D) and their scores, `lengths` (B,) of them; -1 pads shorter lists.

        A score is the cosine, with `seen_offset` for items of the history.
        """
        request = ListsRequest(vectors, lengths, histories, self.seen_offset, self.popularity_ranks)
        return self.item_index.nearest_lists(request)

    def ranker_catalogue(self, paths: VariantPaths) -> "Catalogue":
        """The catalogue in the form that generative rankers need: they read with `user_encoder = "tokens"`."""
        from pixrec_core.retrieval.rankers import Catalogue

        assert not isinstance(self.encoder, ItemsEncoder), "settings allow generative rankers for tokens only"
        texts = [prompts.item_text(item) for item in read_items(paths.dataset).iter_rows(named=True)]
        collator = self.encoder.inputs.collator(self.encoder.photos)
        return Catalogue(self.item_index.items, self.encoder.model, collator, self.item_index.vectors, texts)

    def new_item_vector(self, fields: Mapping[str, Any], photo: Image.Image | None, variant: str) -> Vectors:
        """v_T of an item outside the catalogue, (1, D), from fields of `ITEM_SCHEMA` and an RGB photo.

        The tower of a variant reads the text, the photo, or both.
        """
        item = {**dict.fromkeys(ITEM_SCHEMA), **fields}
        if isinstance(self.processor, FrozenEncoders):
            contents = self.processor.contents(self.encoder.model, item, photo)
            return self.encoder.encode_new_item({"contents": contents, "numbers": torch.zeros(1, dtype=torch.long)})
        rows = np.array([NO_PHOTO if photo is None else 0])
        inputs = item_inputs([item], rows, self.processor, self.image_tokens, variant, self.text_tokens)
        pixels = self.processor.image_inputs(self.processor.pixels(photo), 1) if photo else {}
        return self.encoder.encode_new_item(Collator(inputs, self.processor, lambda _: pixels).item_batch([0]))

    @cached_property
    def image_tokens(self) -> int:
        """Features per photo of the backbone."""
        from pixrec_core.models.tower_inputs import image_tokens

        assert isinstance(self.processor, Processor), "frozen encoders have one vector per photo"
        return image_tokens(self.encoder.model.backbone, self.processor)
