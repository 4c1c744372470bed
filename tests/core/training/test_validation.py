"""Validation during training, by hand."""

import numpy as np
import pytest

from pixrec_core.paths import DatasetPaths
from pixrec_core.training.validation import SEEN_OFFSETS, Validation
from tests.core import sequences_file

VECTORS = {"a": 0.9, "b": 0.8, "c": 0.65, "d": 0.1}  # on a line; the user's vector is 1


class Line:
    """Encodes items as numbers and every user as 1."""

    def item_vectors(self, engine):
        return np.array(list(VECTORS.values()), np.float32)[:, None]

    def user_vectors(self, histories, engine, times):
        return np.ones((len(histories), 1), np.float32)


@pytest.mark.parametrize(
    ("sequence", "offset", "rank"),
    [
        ("abc", -0.4, 1),  # the first offset that lowers both of the history below the target
        ("bca", 0.0, 1),  # lowering others than the target changes nothing
        ("abb", 0.0, 2),  # the target is itself in the history: lowering the two together changes nothing
    ],
)
def test_the_offset_of_seen_items_is_the_one_with_the_highest_ndcg(tmp_path, sequence, offset, rank):
    paths = DatasetPaths.of(tmp_path, "tiny")
    table = sequences_file.sequences({f"user{n}": [*sequence, "d"] for n in range(4)})
    sequences_file.write(paths, sequences_file.catalogue([["a", "b"]], list(VECTORS)), table)
    found = Validation(paths, lambda _: Line(), max_history_len=1)(None)
    assert found["seen_offset"] == offset
    assert found["ndcg@10"] == pytest.approx(1 / np.log2(1 + rank))
    assert offset in SEEN_OFFSETS
