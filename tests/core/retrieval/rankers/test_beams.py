import numpy as np
import pytest
import torch

from pixrec_core.retrieval.rankers import beams
from pixrec_core.settings import GenerativeSettings
from tests.core.models.own_forward import own_logits
from tests.core.models.small import Small, small
from tests.core.retrieval.rankers.brute_force import (
    HISTORIES,
    LONG,
    TWINS,
    judged,
    likelihoods,
    shop,
    users_of,
    with_twins,
)


@torch.no_grad()
def test_as_many_beams_as_items_rank_them_by_the_likelihood_of_their_texts(tower: Small) -> None:
    tower, brute_force = judged(tower)
    own = shop(tower)
    users = users_of(own)
    found = beams.make(own, GenerativeSettings(beams=len(own.items)))(users)
    for expected, vector, (items, scores) in zip(brute_force, users.vectors, found, strict=True):
        assert sorted(items.tolist()) == list(range(1, len(own.items))), "item 0 has no text to be likely"
        np.testing.assert_allclose(scores, expected[items], rtol=1e-4, atol=1e-4)
        assert (np.diff(scores) <= 0).all()
        cosines = own.vectors @ vector
        for group in ({5, 6, 9}, {11, 12}):
            stand = [place for place, item in enumerate(items) if item in group]
            assert np.ptp(stand) == len(group) - 1, "side by side"
            assert [int(items[n]) for n in stand] == sorted(group, key=lambda item: -cosines[item])
    assert set(TWINS.values()) | set(TWINS) == {5, 6, 9, 11, 12}


@pytest.fixture(scope="module")
def tiny() -> Small:
    return with_twins(small())


@torch.no_grad()
def test_fifty_items_of_history(tiny: Small) -> None:
    own = shop(tiny)
    (found,) = beams.make(own, GenerativeSettings(beams=len(own.items)))(users_of(own, [LONG]))
    np.testing.assert_allclose(found.scores, likelihoods(tiny, LONG)[found.items], rtol=1e-4)


@torch.no_grad()
def test_one_beam_takes_the_likeliest_token_that_some_text_goes_on_with(tiny: Small) -> None:
    own = shop(tiny)
    texts = [tuple(text.tolist()) for text in own.token_texts()]
    found = beams.make(own, GenerativeSettings(beams=1))(users_of(own))
    for history, ranked in zip(HISTORIES, found, strict=True):
        text: tuple[int, ...] = ()
        while following := {t[len(text)] for t in texts if t[: len(text)] == text and len(t) > len(text)}:
            after = own_logits(tiny, history, list(text))[-1]
            text = (*text, max(following, key=lambda token: after[token]))
        spelt = {texts[item] for item in ranked.items}
        assert text in spelt
        assert all(text[: len(each)] == each for each in spelt), "what else is listed was spelt on the way"


@torch.no_grad()
def test_a_user_is_ranked_alike_alone_and_among_others(tiny: Small) -> None:
    own = shop(tiny)
    users, rank = users_of(own), beams.make(own, GenerativeSettings(beams=4))
    together = rank(users)
    for row in range(len(users)):
        (alone,) = rank(users.take([row]))
        assert alone.items.tolist() == together[row].items.tolist()
        np.testing.assert_allclose(alone.scores, together[row].scores, rtol=1e-4)


@torch.no_grad()
def test_without_any_text_nothing_is_found() -> None:
    own = shop(small("image_only"))
    assert [len(items) for items, _ in beams.make(own, GenerativeSettings())(users_of(own))] == [0, 0, 0]
