"""`TrainData` from Python lists."""

import numpy as np

from pixrec_core.data.item_features import ItemFeatures
from pixrec_core.recommenders.base import ItemLists, TrainData


def make_train_data(train, n_items, *, validation=(), times=None, texts=None, text_vectors=None, photos=None):
    """Training data; empty texts, no photos and no validation where a test leaves them out.

    Args:
        validation: pairs of a history and its target.
        times: lists like `train`; without them, no two interactions have the same time.
        text_vectors: (n_items, F) features of the texts; 0 without them.
        photos: (n_items, F) features.
    """
    lists = ItemLists.from_lists(train)
    return TrainData(
        n_items=n_items,
        train=lists,
        times=ItemLists.from_lists(times).values if times else np.arange(len(lists.values)),
        validation=ItemLists.from_lists([history for history, _ in validation]),
        targets=np.array([target for _, target in validation], np.int64),
        texts=texts or [""] * n_items,
        text_features=lambda: features(np.zeros((n_items, 2)) if text_vectors is None else text_vectors),
        photo_features=lambda: features(np.zeros((n_items, 2)) if photos is None else photos),
    )


def features(vectors):
    vectors = np.float32(vectors)
    return ItemFeatures(vectors, vectors.any(axis=1))
