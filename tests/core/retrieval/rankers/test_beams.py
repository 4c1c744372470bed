import numpy as np
import pytest
import torch

from pixrec_core.retrieval.rankers import beams
from pixrec_core.settings import GenerativeSettings
from tests.core.models.native_forward import native_logits
from tests.core.models.small import Small, small
from tests.core.retrieval.rankers.reference import (
    HISTORIES,
    LONG,
    TWINS,
    example_catalogue,
    judged,
    likelihoods,
    users_of,
    with_twins,
)


@torch.no_grad()
def test_with_as_many_beams_as_items_the_order_is_that_of_text_likelihoods(tower: Small) -> None:
    tower, brute_force = judged(tower)
    ranked_catalogue = example_catalogue(tower)
    users = users_of(ranked_catalogue)
    found = beams.create_ranker(ranked_catalogue, GenerativeSettings(beams=len(ranked_catalogue.items)))(users)
    for expected, vector, (items, scores) in zip(brute_force, users.vectors, found, strict=True):
        assert sorted(items.tolist()) == list(range(1, len(ranked_catalogue.items))), (
            "item 0 has no text and so no likelihood"
        )
        np.testing.assert_allclose(scores, expected[items], rtol=1e-4, atol=1e-4)
        assert (np.diff(scores) <= 0).all()
        cosines = ranked_catalogue.vectors @ vector
        for group in ({5, 6, 9}, {11, 12}):
            positions = [position for position, item in enumerate(items) if item in group]
            assert np.ptp(positions) == len(group) - 1, "items with equal texts are not adjacent"
            assert [int(items[n]) for n in positions] == sorted(group, key=lambda item: -cosines[item])
    assert set(TWINS.values()) | set(TWINS) == {5, 6, 9, 11, 12}


@pytest.fixture(scope="module")
def tiny() -> Small:
    return with_twins(small())


@torch.no_grad()
def test_fifty_items_of_history(tiny: Small) -> None:
    ranked_catalogue = example_catalogue(tiny)
    (found,) = beams.create_ranker(ranked_catalogue, GenerativeSettings(beams=len(ranked_catalogue.items)))(
        users_of(ranked_catalogue, [LONG])
    )
    np.testing.assert_allclose(found.scores, likelihoods(tiny, LONG)[found.items], rtol=1e-4)


@torch.no_grad()
def test_one_beam_follows_the_likeliest_allowed_token(tiny: Small) -> None:
    ranked_catalogue = example_catalogue(tiny)
    texts = [tuple(text.tolist()) for text in ranked_catalogue.token_texts()]
    found = beams.create_ranker(ranked_catalogue, GenerativeSettings(beams=1))(users_of(ranked_catalogue))
    for history, ranked in zip(HISTORIES, found, strict=True):
        text: tuple[int, ...] = ()
        while following := {t[len(text)] for t in texts if t[: len(text)] == text and len(t) > len(text)}:
            after = native_logits(tiny, history, list(text))[-1]
            text = (*text, max(following, key=lambda token: after[token]))
        spelled = {texts[item] for item in ranked.items}
        assert text in spelled
        assert all(text[: len(each)] == each for each in spelled), "the other items are prefixes of the beam"


@torch.no_grad()
def test_a_ranking_does_not_depend_on_the_other_users_of_the_batch(tiny: Small) -> None:
    ranked_catalogue = example_catalogue(tiny)
    users, rank = users_of(ranked_catalogue), beams.create_ranker(ranked_catalogue, GenerativeSettings(beams=4))
    batch = rank(users)
    for row in range(len(users)):
        (alone,) = rank(users.take([row]))
        assert alone.items.tolist() == batch[row].items.tolist()
        np.testing.assert_allclose(alone.scores, batch[row].scores, rtol=1e-4)


@torch.no_grad()
def test_without_any_text_nothing_is_found() -> None:
    ranked_catalogue = example_catalogue(small("image_only"))
    assert [
        len(items)
        for items, _ in beams.create_ranker(ranked_catalogue, GenerativeSettings())(users_of(ranked_catalogue))
    ] == [0, 0, 0]
