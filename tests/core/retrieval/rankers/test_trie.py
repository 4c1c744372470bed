"""The token trie of a catalogue, compared with plain dictionaries."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pixrec_core.retrieval.rankers._trie import ROOT, Trie

TEXTS = st.lists(st.lists(st.integers(0, 3), max_size=5).map(tuple), min_size=1, max_size=30)


def trie_of(texts) -> Trie:
    return Trie.from_texts([np.array(text, np.int64) for text in texts])


def prefixes(trie: Trie) -> dict[tuple[int, ...], int]:
    """Every prefix that is reachable from the root, and the number of the text that ends there (-1 for none)."""
    found, pending = {}, [((), ROOT)]
    while pending:
        text, node = pending.pop()
        found[text] = int(trie.ends_here[node])
        children = range(trie.first[node], trie.past[node])
        pending += [((*text, int(trie.tokens[child])), child) for child in children]
    return found


@given(TEXTS)
def test_it_holds_exactly_the_prefixes_of_the_texts(texts):
    trie, found = trie_of(texts), None
    found = prefixes(trie)
    assert set(found) == {text[:length] for text in texts for length in range(len(text) + 1)} | {()}
    assert len(found) == len(trie.tokens), "a node is unreachable or duplicated"
    assert {text for text, number in found.items() if number >= 0} == set(texts)
    assert [found[text] for text in texts] == trie.text_of.tolist()


@given(TEXTS)
def test_paths_from_the_end_of_a_text_spell_it(texts):
    trie = trie_of(texts)
    assert trie.lengths[trie.text_of].tolist() == [len(text) for text in texts]
    for text, path in zip(texts, trie.paths(trie.ends[trie.text_of]), strict=True):
        nodes = path[path != ROOT][::-1]
        assert tuple(trie.tokens[nodes].tolist()) == text
    items = trie.items_of()
    assert sorted(np.concatenate(items).tolist()) == list(range(len(texts)))
    for number, rows in enumerate(items):
        assert trie.text_of[rows].tolist() == [number] * len(rows) != []


def test_by_hand():
    trie = trie_of([(5, 7), (5,), (), (5, 7), (5, 6, 9)])
    assert trie.tokens.tolist()[1:] == [5, 6, 7, 9]
    assert trie.parents.tolist() == [0, 0, 1, 1, 2]
    assert [trie.first[1], trie.past[1]] == [2, 4]
    assert trie.text_of.tolist() == [3, 1, 0, 3, 2]
