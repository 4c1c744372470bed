"""Properties of every generative ranker."""

from typing import get_args

import numpy as np
import pytest
import torch

from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.retrieval import rankers
from pixrec_core.settings import GenerativeRanker, GenerativeSettings
from tests.core.models.small import small
from tests.core.retrieval.rankers.reference import HISTORIES, example_catalogue, users_of

NAMES = plugin_names(rankers.__name__)


def test_settings_know_every_ranker() -> None:
    assert sorted(get_args(GenerativeRanker)) == NAMES


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_lists_are_sorted_without_duplicates_and_deterministic(name: str) -> None:
    ranked_catalogue = example_catalogue(small())
    users = users_of(ranked_catalogue)
    one, other = (
        load_plugin(rankers.__name__, name).create_ranker(ranked_catalogue, GenerativeSettings(beams=5))(users)
        for _ in range(2)
    )
    assert len(one) == len(HISTORIES)
    for (items, scores), again in zip(one, other, strict=True):
        assert items.tolist() == again.items.tolist()
        assert scores.tolist() == again.scores.tolist()
        assert len(set(items.tolist())) == len(items) == len(scores)
        assert set(items.tolist()) <= set(range(len(ranked_catalogue.items)))
        assert (np.diff(scores) <= 0).all()
