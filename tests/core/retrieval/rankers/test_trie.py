"""The tree of a catalogue's texts, against plain dictionaries."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pixrec_core.retrieval.rankers._trie import ROOT, Trie

TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=5).map(tuple), min_size=1, max_size=30)


def trie_of(texts) -> Trie:
    return Trie.of([np.array(text, np.int64) for text in texts])


def spelt(trie: Trie) -> dict[tuple[int, ...], int]:
    """Every beginning that can be reached from the root, and the number of the text that ends there."""
    found, under_way = {}, [((), ROOT)]
    while under_way:
        text, node = under_way.pop()
        found[text] = int(trie.ends_here[node])
        children = range(trie.first[node], trie.past[node])
        under_way += [((*text, int(trie.tokens[child])), child) for child in children]
    return found


@given(TEXTS)
def test_it_spells_the_texts_and_nothing_else(texts):
    trie, found = trie_of(texts), None
    found = spelt(trie)
    assert set(found) == {text[:length] for text in texts for length in range(len(text) + 1)} | {()}
    assert len(found) == len(trie.tokens), "no node stands apart or twice"
    assert {text for text, number in found.items() if number >= 0} == set(texts)
    assert [found[text] for text in texts] == trie.text_of.tolist()


@given(TEXTS)
def test_texts_from_their_ends(texts):
    trie = trie_of(texts)
    assert trie.lengths[trie.text_of].tolist() == [len(text) for text in texts]
    for text, path in zip(texts, trie.paths(trie.ends[trie.text_of]), strict=True):
        nodes = path[path != ROOT][::-1]
        assert tuple(trie.tokens[nodes].tolist()) == text
    items = trie.items_of()
    assert sorted(np.concatenate(items).tolist()) == list(range(len(texts)))
    for number, own in enumerate(items):
        assert trie.text_of[own].tolist() == [number] * len(own) != []


def test_by_hand():
    trie = trie_of([(5, 7), (5,), (), (5, 7), (5, 6, 9)])
    assert trie.tokens.tolist()[1:] == [5, 6, 7, 9]
    assert trie.parents.tolist() == [0, 0, 1, 1, 2]
    assert [trie.first[1], trie.past[1]] == [2, 4]
    assert trie.text_of.tolist() == [3, 1, 0, 3, 2]
