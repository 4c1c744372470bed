"""What holds for every ranker."""

from typing import get_args

import numpy as np
import pytest
import torch

from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.retrieval import rankers
from pixrec_core.settings import GenerativeRanker, GenerativeSettings
from tests.core.models.small import small
from tests.core.retrieval.rankers.brute_force import HISTORIES, shop, users_of

NAMES = plugin_names(rankers.__name__)


def test_settings_know_every_ranker() -> None:
    assert sorted(get_args(GenerativeRanker)) == NAMES


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_lists_are_of_items_best_first_and_the_same_each_time(name: str) -> None:
    own = shop(small())
    users = users_of(own)
    one, other = (load_plugin(rankers.__name__, name).make(own, GenerativeSettings(beams=5))(users) for _ in range(2))
    assert len(one) == len(HISTORIES)
    for (items, scores), again in zip(one, other, strict=True):
        assert items.tolist() == again.items.tolist()
        assert scores.tolist() == again.scores.tolist()
        assert len(set(items.tolist())) == len(items) == len(scores)
        assert set(items.tolist()) <= set(range(len(own.items)))
        assert (np.diff(scores) <= 0).all()
