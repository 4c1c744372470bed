import numpy as np
import pytest
import torch

from pixrec_core.retrieval.rankers import hybrid
from pixrec_core.settings import GenerativeSettings
from tests.core.models.small import Small, small
from tests.core.retrieval.rankers.brute_force import judged, shop, users_of, with_twins


@torch.no_grad()
def test_by_likelihood_alone_the_candidates_stand_in_brute_forces_order(
    tower: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybrid, "TEXTS_AT_A_TIME", 4)
    tower, brute_force = judged(tower)
    own = shop(tower)
    users = users_of(own)
    found = hybrid.make(own, GenerativeSettings(candidates=15, likelihood_weight=1))(users)
    for expected, nearest, (items, scores) in zip(brute_force, users.nearest, found, strict=True):
        candidates = nearest[:15]
        filled = expected[candidates]
        filled = np.where(np.isnan(filled), np.nanmin(filled), filled)
        assert sorted(items.tolist()) == sorted(candidates.tolist())
        place = {item: n for n, item in enumerate(candidates.tolist())}
        standard = (filled - filled.mean()) / filled.std()
        np.testing.assert_allclose(scores, standard[[place[item] for item in items.tolist()]], atol=2e-3)
        assert (np.diff(scores) <= 0).all()


@pytest.fixture(scope="module")
def tiny() -> Small:
    return with_twins(small())


@torch.no_grad()
def test_without_weight_of_texts_the_dense_order_stays(tiny: Small) -> None:
    own = shop(tiny)
    users = users_of(own)
    found = hybrid.make(own, GenerativeSettings(candidates=12, likelihood_weight=0))(users)
    assert [items.tolist() for items, _ in found] == users.nearest[:, :12].tolist()


@torch.no_grad()
def test_equal_texts_stay_as_near_as_they_are(tiny: Small) -> None:
    own = shop(tiny)
    users = users_of(own)
    for nearest, (items, _) in zip(
        users.nearest, hybrid.make(own, GenerativeSettings(likelihood_weight=1))(users), strict=True
    ):
        twins = [item for item in items.tolist() if item in {5, 6, 9}]
        assert twins == [item for item in nearest.tolist() if item in {5, 6, 9}]


@torch.no_grad()
def test_without_any_text_the_dense_order_stays() -> None:
    own = shop(small("image_only"))
    users = users_of(own)
    found = hybrid.make(own, GenerativeSettings(likelihood_weight=1))(users)
    assert [items.tolist() for items, _ in found] == users.nearest.tolist()


def test_the_mixture_by_hand() -> None:
    cosines = np.array([0.9, 0.5, 0.1], np.float32)  # mean 0.5, deviation sqrt(0.32 / 3) = 0.3266
    values = np.array([-4.0, -2.0, np.nan])  # the last counts as -4: mean -10/3, deviation 0.9428
    expected = [0.75 * 1.2247 - 0.25 * 0.7071, 0.25 * 1.4142, -0.75 * 1.2247 - 0.25 * 0.7071]
    np.testing.assert_allclose(hybrid.mix(cosines, values, 0.25), expected, atol=1e-4)
