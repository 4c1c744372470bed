"""TrainingWindows: every item but the first of a user is a target exactly once per epoch."""

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pixrec_core.models.windows import TrainingWindows

LISTS = pl.List(pl.Int64)
APART = 1000  # distance between the items of two users: user and index follow from the item


def users(lengths):
    """One sequence per length; no item occurs twice."""
    return column([list(range(APART * user, APART * user + length)) for user, length in enumerate(lengths)])


def column(lists):
    return pl.Series(lists, dtype=LISTS)


LENGTHS = st.lists(st.integers(0, 40), max_size=6)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 3), st.lists(st.integers(0, 50), min_size=1, max_size=3))
def test_windows_cover_every_target_once_in_every_epoch(lengths, length, seed, epochs):
    sequences = users(lengths)
    windows = TrainingWindows(sequences, length, seed)
    count = len(windows)
    for epoch in epochs:
        windows.set_epoch(epoch)
        cut = [list(windows[n].items) for n in range(len(windows))]
        assert sorted(target for window in cut for target in window[1:]) == sorted(i for s in sequences for i in s[1:])
        assert all(window == list(range(window[0], window[-1] + 1)) for window in cut), "consecutive items of one user"
        assert all(2 <= len(window) <= length + 1 for window in cut)
        assert windows.lengths == [len(window) for window in cut]
        min_windows = [-(-(items - 1) // length) for items in lengths if items > 1]
        assert len(windows) == count, "the same number in every epoch"
        assert sum(min_windows) <= count <= sum(n + (n > 1) for n in min_windows)


@given(LENGTHS, st.integers(1, 12), st.integers(0, 50))
def test_repeating_an_epoch_repeats_its_windows(lengths, length, epoch):
    first, second = TrainingWindows(users(lengths), length, 7), TrainingWindows(users(lengths), length, 7)
    first.set_epoch(epoch)
    second.set_epoch(epoch + 1)
    second.set_epoch(epoch)
    assert [first[n] for n in range(len(first))] == [second[n] for n in range(len(second))]


def test_cuts_differ_by_epoch_and_seed():
    def cuts(seed):
        windows = TrainingWindows(users([96]), 10, seed)
        for epoch in range(40):
            windows.set_epoch(epoch)
            yield windows[0].items[-1]

    assert set(cuts(0)) == {5, 6, 7, 8, 9, 10}, "95 targets in 10 windows leave 5 to 10 for the first"
    assert list(cuts(0)) != list(cuts(1))


@pytest.mark.parametrize("windows", [2, 3, 10])
@pytest.mark.parametrize("length", [3, 4, 10])
@pytest.mark.parametrize("short_of_full", [0, 1])
def test_cuts_of_a_sequence_that_fills_its_windows_differ_by_epoch(windows, length, short_of_full):
    """20 targets in two windows of 10 have one possible cut; a third window allows others."""
    cut = TrainingWindows(users([1 + windows * length - short_of_full]), length, 0)
    firsts = set()
    for epoch in range(60):
        cut.set_epoch(epoch)
        firsts.add(cut[0].items[-1])
    assert len(firsts) >= length / 2


def test_a_short_sequence_is_one_window_in_every_epoch():
    windows = TrainingWindows(column([[4, 5, 6], [], [9]]), 2, 0)
    for epoch in range(5):
        windows.set_epoch(epoch)
        assert [list(windows[n].items) for n in range(len(windows))] == [[4, 5, 6]]


@given(LENGTHS, st.integers(1, 12), st.integers(0, 50))
def test_later_items_are_the_rest_of_the_users_sequence(lengths, length, epoch):
    windows = TrainingWindows(users(lengths), length, 7)
    windows.set_epoch(epoch)
    for n in range(len(windows)):
        items, later, _ = windows[n]
        user = items[-1] // APART
        assert later == list(range(items[-1] + 1, APART * user + lengths[user]))


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=12), max_size=5), st.integers(0, 20))
def test_only_items_with_equal_timestamps_are_shuffled(timestamps, epoch):
    timestamps = [sorted(each) for each in timestamps]
    sequences = users([len(each) for each in timestamps])
    windows = TrainingWindows(sequences, 50, 3, column(timestamps))
    windows.set_epoch(epoch)
    assert [windows[n].times for n in range(len(windows))] == timestamps
    seen = [windows[n].items for n in range(len(windows))]
    assert [sorted(items) for items in seen] == sequences.to_list()
    for items, times in zip(seen, timestamps, strict=True):
        assert [times[item % APART] for item in items] == times


def test_baskets_are_shuffled_in_every_epoch_and_not_without_timestamps():
    def orders(timestamps):
        windows = TrainingWindows(column([[0, 1, 2, 3, 4]]), 50, 3, timestamps)
        for epoch in range(30):
            windows.set_epoch(epoch)
            yield tuple(windows[0].items)

    assert set(orders(None)) == {(0, 1, 2, 3, 4)}
    baskets = set(orders(column([[7, 7, 8, 8, 9]])))
    assert baskets == {(*a, *b, 4) for a in ((0, 1), (1, 0)) for b in ((2, 3), (3, 2))}
