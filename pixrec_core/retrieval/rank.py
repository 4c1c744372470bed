"""Each test user's nearest items."""

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core.data.sequences import read_sequences
from pixrec_core.models import checkpoint
from pixrec_core.models.photo_store import PhotoStore
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.retrieval import encode, index
from pixrec_core.schemas import ITEMS, TEST, USER
from pixrec_core.settings import RetrievalSettings
from pixrec_core.stages import Stats

USERS_AT_A_TIME = 1024  # with 512, exact search takes several times as long for each


def rank_test_users(settings: RetrievalSettings, paths: VariantPaths) -> Stats:
    """Write each test user's ranking: `depth` items, and one more for each different item of the history.

    Raises:
        MissingArtefactError: no checkpoint or no index.
        ArtefactError: the index is damaged, or belongs to other vectors or another checkpoint.
    """
    item_index = index.load(paths)
    model, processor = checkpoint.load(paths.checkpoint)
    model_settings, training = checkpoint.load_settings(paths.checkpoint)
    inputs = TowerInputs.load(paths, model.backbone, processor, model_settings.item_tokens)
    photos: PhotoStore | None = encode.history_features(model_settings, paths, model, inputs)
    test = read_sequences(paths.dataset, TEST)
    histories = [sequence[:-1] for sequence in inputs.numbers(test[ITEMS].to_list())]
    newest = [history[-training.window :] for history in histories]
    vectors = encode.user_vectors(model, inputs, photos, newest)
    lengths = np.array([settings.depth + len(set(history)) for history in histories])
    ids = pl.Series(item_index.items)
    frames = (
        to_ranking(test[USER][part], ids, *_nearest(item_index, vectors[part], lengths[part]))
        for part in (slice(start, start + USERS_AT_A_TIME) for start in range(0, len(histories), USERS_AT_A_TIME))
    )
    return {"users": len(histories), "rows": write_ranking(paths.ranking, frames)}


def _nearest(
    item_index: index.ItemIndex, vectors: encode.Vectors, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Rows of the nearest items and their cosines, both (B, k); -1 past a user's length."""
    k = min(int(lengths.max()), len(item_index.items))
    rows, cosines = item_index.nearest(vectors, k)
    return np.where(np.arange(k) < lengths[:, None], rows, -1), cosines
