import numpy as np
import pytest
import torch

from pixrec_core.retrieval.rankers import hybrid
from pixrec_core.settings import GenerativeSettings
from tests.core.models.small import Small, small
from tests.core.retrieval.rankers.reference import example_catalogue, judged, users_of, with_twins


@torch.no_grad()
def test_with_weight_1_candidates_follow_the_reference_likelihoods(
    tower: Small, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hybrid, "TEXTS_PER_BATCH", 4)
    tower, brute_force = judged(tower)
    ranked_catalogue = example_catalogue(tower)
    users = users_of(ranked_catalogue)
    found = hybrid.create_ranker(ranked_catalogue, GenerativeSettings(candidates=15, likelihood_weight=1))(users)
    for expected, nearest, (items, scores) in zip(brute_force, users.nearest, found, strict=True):
        candidates = nearest[:15]
        filled = expected[candidates]
        filled = np.where(np.isnan(filled), np.nanmin(filled), filled)
        assert sorted(items.tolist()) == sorted(candidates.tolist())
        position = {item: n for n, item in enumerate(candidates.tolist())}
        standard = (filled - filled.mean()) / filled.std()
        np.testing.assert_allclose(scores, standard[[position[item] for item in items.tolist()]], atol=2e-3)
        assert (np.diff(scores) <= 0).all()


@pytest.fixture(scope="module")
def tiny() -> Small:
    return with_twins(small())


@torch.no_grad()
def test_with_weight_0_the_order_is_dense(tiny: Small) -> None:
    ranked_catalogue = example_catalogue(tiny)
    users = users_of(ranked_catalogue)
    found = hybrid.create_ranker(ranked_catalogue, GenerativeSettings(candidates=12, likelihood_weight=0))(users)
    assert [items.tolist() for items, _ in found] == users.nearest[:, :12].tolist()


@torch.no_grad()
def test_items_with_equal_texts_keep_the_dense_order(tiny: Small) -> None:
    ranked_catalogue = example_catalogue(tiny)
    users = users_of(ranked_catalogue)
    for nearest, (items, _) in zip(
        users.nearest,
        hybrid.create_ranker(ranked_catalogue, GenerativeSettings(likelihood_weight=1))(users),
        strict=True,
    ):
        twins = [item for item in items.tolist() if item in {5, 6, 9}]
        assert twins == [item for item in nearest.tolist() if item in {5, 6, 9}]


@torch.no_grad()
def test_without_any_text_the_order_is_dense() -> None:
    ranked_catalogue = example_catalogue(small("image_only"))
    users = users_of(ranked_catalogue)
    found = hybrid.create_ranker(ranked_catalogue, GenerativeSettings(likelihood_weight=1))(users)
    assert [items.tolist() for items, _ in found] == users.nearest.tolist()


def test_mixed_scores_by_hand() -> None:
    cosines = np.array([0.9, 0.5, 0.1], np.float32)  # mean 0.5, deviation sqrt(0.32 / 3) = 0.3266
    values = np.array([-4.0, -2.0, np.nan])  # the last counts as -4: mean -10/3, deviation 0.9428
    expected = [0.75 * 1.2247 - 0.25 * 0.7071, 0.25 * 1.4142, -0.75 * 1.2247 - 0.25 * 0.7071]
    np.testing.assert_allclose(hybrid.mix_scores(cosines, values, 0.25), expected, atol=1e-4)
