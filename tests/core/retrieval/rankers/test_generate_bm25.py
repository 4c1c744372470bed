import numpy as np
import pytest
import torch

from pixrec_core import prompts
from pixrec_core.data.text_search import TextSearch
from pixrec_core.retrieval.rankers import generate_bm25
from pixrec_core.retrieval.rankers._beams import Beams
from pixrec_core.retrieval.rankers.generate_bm25 import Writer, round_robin, search_texts
from pixrec_core.settings import GenerativeSettings
from tests.core.models.native_forward import native_logits, prompt
from tests.core.models.small import Small, small
from tests.core.retrieval.rankers.reference import HISTORIES, example_catalogue, users_of


def test_round_robin_merges_lists_without_duplicates() -> None:
    lists = [np.array(each, np.int64) for each in ([1, 2, 3, 4], [1, 2, 5], [], [6])]
    # First round: 1; 2, as 1 is in already; 6. Second round: 3; 5. Third round: 4, the other lists have ended.
    assert round_robin(lists).tolist() == [1, 2, 6, 3, 5, 4]
    assert round_robin([]).tolist() == []


def test_hits_share_a_word_and_ties_follow_the_given_order() -> None:
    search = TextSearch(["red shoe", "blue shoe", "green hat", "blue shoe", ""])
    texts = ["blue shoe", "green", "no such word", ""]
    found = search_texts(search, texts, np.array([3, 4, 0, 1, 2]), depth=5)
    assert [items.tolist() for items in found] == [[3, 1, 0], [2], [], []]
    assert [len(items) for items in search_texts(search, texts, np.arange(5), depth=2)] == [2, 1, 0, 0]


@pytest.fixture(scope="module")
def tiny() -> Small:
    return small()


def written(tiny: Small, tokens: int, banned: tuple[int, ...] = (), **settings) -> list[np.ndarray]:
    with torch.no_grad():
        writer = Writer(GenerativeSettings(**settings), tokens, banned)
        return writer.write(Beams(example_catalogue(tiny).read(HISTORIES[:2])))


@torch.no_grad()
def test_wide_beams_write_the_likeliest_of_all_texts(tiny: Small) -> None:
    lead = prompt(tiny, HISTORIES[0])[0] + tiny.processor.text_ids(prompts.NEXT)  # of an item without a photo
    words = native_logits(tiny, HISTORIES[0], []).shape[1]
    ids = torch.cat([torch.tensor(lead).expand(words, -1), torch.arange(words)[:, None]], dim=1)
    one, two = tiny.model.backbone(input_ids=ids).logits[:, -2:].log_softmax(-1).unbind(1)
    scores = one[0][:, None] + two  # of first and second token
    scores[0], scores[:, 0] = -torch.inf, -torch.inf
    expected = scores.flatten().topk(20)
    texts = written(tiny, 2, banned=(0,), beams=words)[0][:20]
    np.testing.assert_allclose(scores[texts[:, 0], texts[:, 1]], expected.values, atol=1e-4)
    assert len({tuple(text) for text in texts.tolist()}) == 20


def test_sampled_texts_follow_their_probabilities(tiny: Small) -> None:
    drawn = written(tiny, 1, beams=20_000, sample=True)
    for history, texts in zip(HISTORIES[:2], drawn, strict=True):
        with torch.no_grad():
            expected = native_logits(tiny, history, [])[0].softmax(-1).numpy()
        shares = np.bincount(texts[:, 0], minlength=len(expected)) / len(texts)
        np.testing.assert_allclose(shares, expected, atol=5 * np.sqrt(expected.max() / len(texts)))


def test_sampled_texts_are_deterministic_and_sorted_by_likelihood(tiny: Small) -> None:
    one, other = (written(tiny, 4, beams=6, sample=True) for _ in range(2))
    assert [texts.tolist() for texts in one] == [texts.tolist() for texts in other]
    assert one[0].shape == (6, 4)
    with torch.no_grad():
        for history, texts in zip(HISTORIES[:2], one, strict=True):
            logs = [native_logits(tiny, history, text.tolist()).log_softmax(-1)[range(4), text].sum() for text in texts]
            assert logs == sorted(logs, reverse=True), "the likeliest text is not first"


@torch.no_grad()
def test_texts_of_the_catalogue_find_their_items(tiny: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """BM25 searches for the written texts, here those of three items."""
    ranked_catalogue = example_catalogue(tiny)
    ids = [ranked_catalogue.token_texts()[item] for item in (13, 17, 11)]
    texts = np.stack([np.resize(text, max(map(len, ids))) for text in ids])
    monkeypatch.setattr(Writer, "write", lambda self, beams: [texts] * len(HISTORIES))
    found = generate_bm25.create_ranker(ranked_catalogue, GenerativeSettings())(users_of(ranked_catalogue))
    assert [items[:3].tolist() for items, _ in found] == [[13, 17, 11]] * 3
    assert all(scores.tolist() == sorted(scores, reverse=True) for _, scores in found)
