"""Each test user's nearest items, and what the language model makes of some users' histories."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files, prompts
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.models import checkpoint
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.photo_store import PhotoStore
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.ranking_table import DENSE, to_ranking, write_ranking
from pixrec_core.retrieval import encode, generative, index
from pixrec_core.retrieval.rankers import Catalogue, UserBatch
from pixrec_core.schemas import ITEMS, TEST, USER
from pixrec_core.settings import GenerativeSettings, RetrievalSettings
from pixrec_core.stages import Stats

USERS_AT_A_TIME = 1024  # with 512, exact search takes several times as long for each


@dataclass(frozen=True)
class Retriever:
    """All that answers a user: a trained tower, what it reads, and the index over its items.

    Attributes:
        model: the tower.
        inputs: what it reads of each item.
        photos: features of all photos; None for a variant without photos.
        max_history_len: items of a history that are read, the newest ones.
        text_tokens: of an item's text that are read.
        item_index: over the catalogue.
    """

    model: DualTower
    inputs: TowerInputs
    photos: PhotoStore | None
    max_history_len: int
    text_tokens: int
    item_index: index.ItemIndex

    @classmethod
    def read(cls, paths: VariantPaths) -> Self:
        """From a variant's artefacts.

        Raises:
            MissingArtefactError: no checkpoint or no index.
            ArtefactError: the index is damaged, or belongs to other vectors or another checkpoint.
        """
        item_index = index.load(paths)
        model, processor = checkpoint.load(paths.checkpoint)
        settings, training = checkpoint.load_settings(paths.checkpoint)
        inputs = TowerInputs.load(paths, model.backbone, processor, settings.item_tokens)
        photos = encode.history_features(settings, paths, model, inputs)
        return cls(model, inputs, photos, training.max_history_len, settings.item_tokens, item_index)

    def newest(self, histories: Sequence[Sequence[int]]) -> list[Sequence[int]]:
        """What is read of each history."""
        return [history[-self.max_history_len :] for history in histories]

    def vectors(self, histories: Sequence[Sequence[int]], engine: Engine = LOCAL) -> encode.Vectors:
        """v_U of every history, (U, D)."""
        return encode.user_vectors(self.model, self.inputs, self.photos, self.newest(histories), engine)

    def users(
        self, histories: Sequence[Sequence[int]], vectors: encode.Vectors, lengths: NDArray[np.int64]
    ) -> UserBatch:
        """Some users and their nearest items, as many as `lengths` (B,) says or as there are."""
        return UserBatch(self.newest(histories), vectors, *self.item_index.lists((vectors, lengths)))

    def catalogue(self, paths: VariantPaths) -> Catalogue:
        """What rankers by the language model use."""
        texts = [prompts.item_text(item) for item in read_items(paths.dataset).iter_rows(named=True)]
        collator = self.inputs.collator(self.photos)
        return Catalogue(self.item_index.items, self.model, collator, self.item_index.vectors, texts)


def rank_test_users(
    settings: RetrievalSettings, texts: GenerativeSettings, paths: VariantPaths, engine: Engine
) -> Stats:
    """Write each test user's ranking: `depth` items, and one more for each different item of the history.

    Those users whom `texts` draws get one of as many items by each of its rankers.

    Raises:
        MissingArtefactError: no checkpoint or no index.
        ArtefactError: the index is damaged, or belongs to other vectors or another checkpoint.
    """
    shop, test = Retriever.read(paths), read_sequences(paths.dataset, TEST)
    histories = [sequence[:-1] for sequence in shop.inputs.numbers(test[ITEMS]).to_list()]
    lengths = np.array([settings.depth + len(set(history)) for history in histories])
    start = time.monotonic()
    vectors = shop.vectors(histories, engine)
    rows = write_ranking(paths.ranking, _frames(shop.item_index, test[USER], vectors, lengths, engine))
    speed = len(histories) / (time.monotonic() - start)

    speeds = {DENSE: speed}
    files.remove(paths.generative)
    if texts.rankers:
        some = generative.drawn(texts, len(histories))
        users = shop.users(
            [histories[user] for user in some], vectors[some], np.maximum(lengths[some], texts.candidates)
        )
        wanted = generative.RankRequest(test[USER][some], lengths[some], speed)
        speeds = generative.rank(texts, shop.catalogue(paths), users, wanted, paths.generative)
    return {"users": len(histories), "rows": rows, "users_per_second": speeds}


def _frames(
    item_index: index.ItemIndex,
    ids: pl.Series,
    vectors: encode.Vectors,
    lengths: NDArray[np.int64],
    engine: Engine,
) -> Iterator[pl.DataFrame]:
    """Rankings of all users, so many of them in memory at a time."""
    items = pl.Series(item_index.items)
    parts = [slice(start, start + USERS_AT_A_TIME) for start in range(0, len(ids), USERS_AT_A_TIME)]
    found = engine.map_shards(item_index.lists, [(vectors[part], lengths[part]) for part in parts])
    for part, (rows, cosines) in zip(parts, found, strict=True):
        yield to_ranking(ids[part], items, rows, cosines)
