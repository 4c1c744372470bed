"""Vectors, index and ranking of a small trained dataset, compared with brute force."""

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from pixrec_core import files, pipeline, schemas
from pixrec_core.data.sequences import read_sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.evaluation.rankings import read_ranking
from pixrec_core.evaluation.targets import Targets
from pixrec_core.evaluation.validation import stacking_users
from pixrec_core.models import checkpoint, length_batches
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import DatasetPaths
from pixrec_core.retrieval import encode, index, ranking
from pixrec_core.retrieval.rankers import RankedItems
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.settings import GenerativeSettings, IndexSettings
from pixrec_core.stages import Work
from tests.core.shop import open_shop, settings

STAGES = (pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> Work:
    generative = {"rankers": ["beams", "generate_bm25", "hybrid"], "users": 10, "beams": 4, "candidates": 12}
    work = open_shop(tmp_path_factory.mktemp("ranked"), training={"epochs": 1}, generative=generative)
    for stage in STAGES:
        stage.materialise(work)
    return work


def test_item_vectors_are_unit_and_in_the_catalogues_order(ranked: Work) -> None:
    items, vectors = encode.read_item_vectors(ranked.variant_paths.item_vectors)
    assert items == sorted(items)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


def test_a_checkpoint_with_vectors_of_other_items_is_refused(ranked: Work, tmp_path: Path) -> None:
    shutil.copytree(ranked.paths.root, tmp_path / "shop")
    paths = DatasetPaths(tmp_path / "shop").variant(ranked.variant)
    config = paths.checkpoint / "config.json"
    files.write_json(config, files.read_json(config) | {"catalogue": "of other items"})
    before = files.sha256_file(paths.item_vectors / encode.VECTORS)
    with pytest.raises(ArtefactError, match=r"has vectors of other items than .*train again"):
        encode.encode_items(paths, ranked.engine)
    assert files.sha256_file(paths.item_vectors / encode.VECTORS) == before


@torch.no_grad()
@pytest.mark.parametrize("split", [schemas.VALIDATION, schemas.TEST])
def test_the_ranking_equals_brute_force(ranked: Work, split: str) -> None:
    paths = ranked.variant_paths
    items, vectors = encode.read_item_vectors(paths.item_vectors)
    model, processor = checkpoint.load(paths.checkpoint)
    inputs = TowerInputs.load(paths, model.backbone, processor, 8)
    collator = inputs.collator()  # computed from pixels, without stored features
    sequences, path = read_sequences(ranked.paths, split), paths.ranking
    if split == schemas.VALIDATION:
        sequences, path = sequences.filter(stacking_users(sequences.height)), paths.validation_ranking
    table = pl.read_parquet(path)
    assert table[schemas.USER].unique().sort().equals(sequences[schemas.USER])
    for user, sequence in sequences.select(schemas.USER, schemas.ITEMS).rows()[:10]:
        history = inputs.numbers(pl.Series([sequence[:-1]]))[0].to_list()
        batch = collator.history_batch([history[-4:]])
        vector = model.user_vectors(batch, model.photo_features(batch["photos"]))[0]
        scores = vectors @ vector.numpy()
        scores[history] += model.config.seen_offset
        best = [items[n] for n in np.argsort(-scores)[: 100 + len(set(history))]]
        ranked_items = table.filter(pl.col(schemas.USER) == user).sort(schemas.RANK)
        assert len(ranked_items) == min(100 + len(set(history)), len(items))
        np.testing.assert_allclose(ranked_items[schemas.SCORE], np.sort(scores)[::-1][: len(ranked_items)], atol=2e-3)
        assert len(set(best[:10]) & set(ranked_items[schemas.ITEM][:10])) >= 9  # stored features have half precision


def test_vectors_do_not_depend_on_the_batch(ranked: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Retriever.load(ranked.variant_paths).encoder
    test = encoder.inputs.numbers(read_sequences(ranked.paths, schemas.TEST)[schemas.ITEMS])
    histories = [sequence[:n] for n, sequence in enumerate(test.to_list(), 1)]
    found = []
    for tokens in (length_batches.CPU_TOKENS, length_batches.GPU_TOKENS, 1):
        monkeypatch.setattr(length_batches, "CPU_TOKENS", tokens)
        found.append((encoder.user_vectors(histories), encoder.item_vectors()))
    for users, items in found[1:]:
        np.testing.assert_allclose(users, found[0][0], atol=1e-5)
        np.testing.assert_allclose(items, found[0][1], atol=1e-5)


def test_index_recall_is_measured_with_vectors_of_validation_users(ranked: Work) -> None:
    users = len(read_sequences(ranked.paths, schemas.VALIDATION))
    stats = index.build_index(IndexSettings(kind="hnsw"), ranked.variant_paths)
    assert stats["recall_queries"] == f"{users} validation users"
    assert 0.99 <= stats["recall@10"] <= 1
    index.build_index(IndexSettings(kind="flat"), ranked.variant_paths)


@pytest.mark.parametrize("ranker", ["dense", "beams", "generate_bm25", "hybrid"])
def test_generative_rankers_fill_complete_lists_for_the_sampled_users(ranked: Work, ranker: str) -> None:
    targets = Targets.read(ranked.paths)
    dense = pl.read_parquet(ranked.variant_paths.ranking)
    generative = pl.read_parquet(ranked.variant_paths.generative / f"{ranker}.parquet")
    users = generative[schemas.USER].unique().sort()
    assert len(users) == 10
    read_ranking(ranked.variant_paths.generative / f"{ranker}.parquet", ranker, targets.of_users(users), 100)
    assert (
        generative.group_by(schemas.USER)
        .len()
        .sort(schemas.USER)
        .equals(
            dense.filter(pl.col(schemas.USER).is_in(users.implode())).group_by(schemas.USER).len().sort(schemas.USER)
        )
    )
    for user in users:
        order = dense.filter(pl.col(schemas.USER) == user).sort(schemas.RANK)[schemas.ITEM].to_list()
        listed = generative.filter(pl.col(schemas.USER) == user).sort(schemas.RANK)
        scores = listed[schemas.SCORE].drop_nulls()
        assert scores.equals(scores.sort(descending=True))
        rest = listed[schemas.ITEM].to_list()[len(scores) :]
        assert listed[schemas.SCORE].to_list()[: len(scores)] == scores.to_list(), (
            "only the completed rest has no score"
        )
        assert rest == [item for item in order if item in rest]
        assert len(scores) >= {"dense": len(order), "beams": 4, "generate_bm25": 1, "hybrid": 12}[ranker]
        assert (listed[schemas.ITEM].to_list() == order) is (ranker == "dense")


def test_the_stage_reports_the_speed_of_each_ranker(ranked: Work) -> None:
    speeds = files.read_json(ranked.variant_paths.generative / "speeds.json")
    assert list(speeds) == ["beams", "dense", "generate_bm25", "hybrid"]
    assert all(0 < speed < speeds["dense"] for name, speed in speeds.items() if name != "dense")
    stamp = pipeline.RANKING.stamp(ranked)
    assert stamp["stats"]["users_per_second"] == speeds


def test_without_the_setting_earlier_generative_rankings_are_removed(ranked: Work) -> None:
    plain = Work(settings(ranked.settings.root, training={"epochs": 1}), ranked.dataset, ranked.variant)
    assert pipeline.ITEM_INDEX.is_current(plain)
    assert not pipeline.RANKING.is_current(plain)
    before = pl.read_parquet(ranked.variant_paths.ranking)
    pipeline.RANKING.materialise(plain)
    assert not ranked.variant_paths.generative.exists()
    assert pl.read_parquet(ranked.variant_paths.ranking).equals(before)


def test_the_nearest_other_items_complete_a_list() -> None:
    ranked_items = RankedItems(np.array([5, 2]), np.array([-0.5, -1.5], np.float32))
    items, scores = ranking.complete_list(ranked_items, np.array([2, 7, 5, 1, 3, -1]), 4)
    assert items.tolist() == [5, 2, 7, 1]
    np.testing.assert_array_equal(scores, [-0.5, -1.5, np.nan, np.nan])
    assert ranking.complete_list(ranked_items, np.array([2, 7, 5, -1]), 1).items.tolist() == [5]


def test_the_sample_of_users_is_deterministic() -> None:
    some = ranking.sample_users(GenerativeSettings(users=5), 50)
    assert some.tolist() == sorted(set(some.tolist()))
    assert len(some) == 5
    assert some.tolist() == ranking.sample_users(GenerativeSettings(users=5), 50).tolist()
    for everybody in (0, 50, 99):
        assert ranking.sample_users(GenerativeSettings(users=everybody), 50).tolist() == list(range(50))


def test_batches_go_by_length_and_hold_every_input_once() -> None:
    assert length_batches.length_batches([5000, 3, 9000, 20000, 7], 16_384) == [[1, 4, 0], [2], [3]]
    assert length_batches.length_batches([], 16_384) == []
