"""Vectors, index and ranking of a small trained shop, against brute force."""

import numpy as np
import polars as pl
import pytest
import torch

from pixrec_core import pipeline, schemas
from pixrec_core.data.sequences import read_sequences
from pixrec_core.models import checkpoint
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.retrieval import encode
from pixrec_core.stages import Work
from tests.core.shop import open_shop

STAGES = (pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Work:
    torch.set_num_threads(1)
    work = open_shop(tmp_path_factory.mktemp("ranked"), training={"epochs": 1})
    for stage in STAGES:
        stage.materialise(work)
    return work


def test_item_vectors_are_unit_and_in_the_catalogues_order(ranked: Work) -> None:
    items, vectors = encode.read_item_vectors(ranked.variant_paths.item_vectors)
    assert items == sorted(items)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@torch.no_grad()
def test_the_ranking_is_brute_forces(ranked: Work) -> None:
    paths = ranked.variant_paths
    items, vectors = encode.read_item_vectors(paths.item_vectors)
    model, processor = checkpoint.load(paths.checkpoint)
    inputs = TowerInputs.load(paths, model.backbone, processor, 8)
    collator = inputs.collator()  # from pixels: no stored feature is used on this side
    test = read_sequences(ranked.paths, schemas.TEST)
    ranking = pl.read_parquet(paths.ranking)
    for user, sequence in test.select(schemas.USER, schemas.ITEMS).rows()[:10]:
        history = inputs.numbers([sequence[:-1]])[0]
        batch = collator.histories([history[-4:]])
        vector = model.user_vectors(batch, model.photo_features(batch["photos"]))[0]
        scores = vectors @ vector.numpy()
        best = [items[n] for n in np.argsort(-scores)[: 100 + len(set(history))]]
        own = ranking.filter(pl.col(schemas.USER) == user).sort(schemas.RANK)
        assert len(own) == min(100 + len(set(history)), len(items))
        np.testing.assert_allclose(own[schemas.SCORE], np.sort(scores)[::-1][: len(own)], atol=2e-3)
        assert len(set(best[:10]) & set(own[schemas.ITEM][:10])) >= 9  # features are kept in half precision


def test_batches_hold_everything_once_and_in_order() -> None:
    seen = []

    def encoded(numbers: list[int]) -> torch.Tensor:
        seen.append(numbers)
        return torch.tensor([[float(n)] for n in numbers])

    lengths = [5000, 3, 9000, 20000, 7]
    vectors = encode._in_batches(lengths, encoded, "things", 1)
    assert vectors[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert seen == [[1, 4, 0], [2], [3]]
