import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixrec_core.ranking_table import (
    ITEMS_PER_CHUNK,
    popularity_ranks,
    row_batches,
    to_ranking,
    top_items,
    write_ranking,
)
from pixrec_core.schemas import RANKING_SCHEMA

SCORES = st.sampled_from([-np.inf, -2.5, -1.0, -0.0, 0.0, 1e-40, 0.5, 3.0, np.inf]) | st.floats(
    width=32, allow_nan=False
)


def test_popularity_ranks_count_from_the_most_popular_and_order_ties_by_index():
    assert popularity_ranks(np.array([1, 5, 0, 5])).tolist() == [2, 0, 3, 1]


@settings(deadline=None)
@given(st.data())
def test_top_items_equal_a_plain_sort(data):
    n = data.draw(st.integers(1, 12))
    scores = np.array(data.draw(st.lists(st.lists(SCORES, min_size=n, max_size=n), min_size=1, max_size=4)), np.float32)
    ranks = popularity_ranks(np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))))
    lengths = np.array([data.draw(st.integers(1, 15)) for _ in scores])
    indices, best = top_items(scores, lengths, ranks)
    for row, length, found, found_scores in zip(scores, lengths, indices, best, strict=True):
        expected = sorted(range(n), key=lambda item: (-row[item], ranks[item]))[:length]
        assert found[found >= 0].tolist() == expected
        assert found_scores[: len(expected)].tolist() == row[expected].tolist()


@pytest.mark.parametrize("n", [33, 100, 129])
def test_top_items_of_a_large_catalogue_equal_a_plain_sort(n):
    random = np.random.default_rng(0)
    few_values = random.integers(0, 3, (20, n)).astype(np.float32)
    scores = np.concatenate([few_values, random.normal(size=(20, n)).astype(np.float32), np.zeros((1, n), np.float32)])
    ranks = popularity_ranks(random.integers(0, 4, n))
    assert n > 2 * ITEMS_PER_CHUNK, "the items are cut into chunks"
    for k in (1, 3):
        indices, best = top_items(scores, np.full(len(scores), k), ranks)
        expected = np.lexsort((np.broadcast_to(ranks, scores.shape), -scores))[:, :k]
        assert (indices == expected).all()
        assert (best == np.take_along_axis(scores, expected, axis=1)).all()


def test_a_score_that_is_not_a_number_fails_an_assertion():
    with pytest.raises(AssertionError, match="not a number"):
        top_items(np.array([[np.nan]], np.float32), np.array([1]), np.array([0]))


@pytest.mark.parametrize(
    ("lengths", "ends"),
    [
        ([], []),
        ([1, 1, 1, 1, 1, 1, 1], [3, 6, 7]),  # three rows at most
        ([2, 2, 2, 5, 1, 10, 11, 1, 1, 1], [3, 5, 6, 7, 10]),  # ten cells at most, but for a row that is longer
        ([0, 0, 9, 0], [2, 3, 4]),
    ],
)
def test_batches_of_rows_are_bounded_by_their_number_and_by_the_longest(lengths, ends):
    batches = list(row_batches(np.array(lengths, np.int64), 3, 10))
    assert [each.stop for each in batches] == ends
    assert [each.start for each in batches] == [0, *ends][: len(ends)]


def test_a_ranking_has_no_rows_past_the_end_of_a_list():
    ranking = to_ranking(
        pl.Series(["u", "v"]),
        pl.Series(["a", "b", "c"]),
        np.array([[2, 0], [1, -1]]),
        np.array([[0.5, 0.25], [2, 1]], np.float32),
    )
    assert ranking.schema == RANKING_SCHEMA
    assert ranking.rows() == [("u", 1, "c", 0.5), ("u", 2, "a", 0.25), ("v", 1, "b", 2.0)]


def test_batches_are_written_to_one_file(tmp_path):
    batches = [pl.DataFrame([(user, 1, "a", 1.0)], RANKING_SCHEMA, orient="row") for user in ("u", "v")]
    assert write_ranking(tmp_path / "made" / "r.parquet", iter(batches)) == 2
    read = pl.read_parquet(tmp_path / "made" / "r.parquet")
    assert read.schema == RANKING_SCHEMA
    assert read.equals(pl.concat(batches))


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "r.parquet"
    path.write_bytes(b"old")

    def broken():
        yield RANKING_SCHEMA.to_frame()
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_ranking(path, broken())
    assert path.read_bytes() == b"old"
