"""Exported encoders, run by onnxruntime without PixRec's code."""

import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import polars as pl
import pytest
import torch

from pixrec_core import files, prompts
from pixrec_core.errors import ArtefactError, QueryError, SettingsError
from pixrec_core.models.encoders import load_encoder
from pixrec_core.models.frozen_features import variant_features
from pixrec_core.models.items_tower import ItemsTower, ItemsTowerConfig
from pixrec_core.schemas import DAY_MS, ITEM_SCHEMA, TITLE
from pixrec_core.serving import Recommender
from pixrec_core.serving import export as onnx
from pixrec_core.stages import Work

METHOD = "collaborative"  # text, photo and item-id embeddings
TOLERANCE = 1e-4
of_items = pytest.mark.parametrize("served", ["items"], indirect=True)


@pytest.fixture(scope="module")
def exported(served: Work, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "export"
    manifest = onnx.export_onnx(served.paths.promoted, folder, METHOD)
    assert max(manifest["max_difference"].values()) <= TOLERANCE
    return folder


def run(folder: Path, name: str, **inputs) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(folder / name).run(None, inputs)


def features(served: Work) -> dict[str, np.ndarray]:
    found = variant_features(served.paths.variant(METHOD))
    return {name: np.array(each.values) for name, each in found.items()}


@of_items
def test_items_have_the_vectors_of_the_index(exported: Path, served: Work, recommender: Recommender) -> None:
    raw = features(served)
    numbers = np.arange(len(recommender.catalogue))
    vectors, history = run(exported, "item_encoder.onnx", **raw, numbers=numbers)
    tower = recommender.tower(METHOD).retriever
    np.testing.assert_allclose(vectors, tower.item_index.vectors, atol=TOLERANCE)
    np.testing.assert_allclose(history, tower.encoder.history_vectors, atol=TOLERANCE)
    table = pl.read_parquet(exported / "items.parquet")
    assert table["item"].to_list() == tower.item_index.items
    np.testing.assert_array_equal(table["vector"].to_numpy(), tower.item_index.vectors)
    np.testing.assert_array_equal(table["history_vector"].to_numpy(), tower.encoder.history_vectors)


@of_items
def test_a_new_item_has_no_id_embedding(exported: Path, served: Work, recommender: Recommender) -> None:
    retriever = recommender.tower(METHOD).retriever
    text = prompts.item_text({**dict.fromkeys(ITEM_SCHEMA), TITLE: "Red wool hat"})
    raw = {
        "text": load_encoder(retriever.processor.folders["text"]).encode_texts([text]),
        "photo": np.zeros((1, features(served)["photo"].shape[1]), np.float32),
    }
    vector, _ = run(exported, "item_encoder.onnx", **raw, numbers=np.array([-1]))
    expected = retriever.new_item_vector({TITLE: "Red wool hat"}, None, METHOD)
    np.testing.assert_allclose(vector, expected, atol=TOLERANCE)


@of_items
def test_users_get_the_same_items_in_the_same_order(exported: Path, recommender: Recommender) -> None:
    table = pl.read_parquet(exported / "items.parquet")
    items, history_vectors = table["item"].to_list(), table["history_vector"].to_numpy()
    histories, times = [[3, 8, 1], [5]], [[0, DAY_MS, 9 * DAY_MS], [7]]
    padded, padded_times = np.zeros((2, 3, history_vectors.shape[1]), np.float32), np.zeros((2, 3), np.int64)
    for row, (history, days) in enumerate(zip(histories, times, strict=True)):
        padded[row, : len(history)], padded_times[row, : len(days)] = history_vectors[history], days
    inputs = {"history_vectors": padded, "times": padded_times, "lengths": np.array([3, 1])}
    (users,) = run(exported, "user_encoder.onnx", **inputs)
    found = recommender.for_histories(
        [[items[number] for number in history] for history in histories], 10, times=times, method=METHOD
    )
    scores = users @ table["vector"].to_numpy().T
    for row, history in enumerate(histories):
        scores[row, history] += files.read_json(exported / "export.json")["seen_offset"]
    for row, expected in enumerate(found):
        assert [items[number] for number in np.argsort(-scores[row])[:10]] == [each.item for each in expected]
        np.testing.assert_allclose(np.sort(scores[row])[::-1][:10], [each.score for each in expected], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["gru", "transformer"])
def test_networks_over_histories_are_exported_too(pooling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"modalities": ["text"], "feature_dims": {"text": 8}, "raw_dims": {"text": 12}, "embedding_dim": 8}
    model = ItemsTower(ItemsTowerConfig(**sizes, user_pooling=pooling, max_history_len=6)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    known = torch.nn.functional.normalize(torch.randn(20, 8), dim=-1).numpy()
    assert onnx._export_user_encoder(model, tmp_path / "user.onnx", known) <= TOLERANCE


@pytest.mark.parametrize("served", ["tokens"], indirect=True)
def test_a_tower_of_tokens_is_refused(served: Work, tmp_path: Path) -> None:
    with pytest.raises(QueryError, match="collaborative of shop reads tokens with a backbone"):
        onnx.export_onnx(served.paths.promoted, tmp_path / "export")
    assert not (tmp_path / "export").exists()


@of_items
def test_a_graph_that_differs_is_not_written(served: Work, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(onnx, "TOLERANCE", -1.0)
    with pytest.raises(ArtefactError, match=r"item_encoder.onnx differs from PyTorch by"):
        onnx.export_onnx(served.paths.promoted, tmp_path / "export", "text_only")
    assert not (tmp_path / "export").exists()


@of_items
def test_the_missing_extra_is_named(served: Work, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(SettingsError, match=r"needs onnxruntime; install the extra: pip install '\.\[onnx\]'"):
        onnx.export_onnx(served.paths.promoted, tmp_path / "export")


@of_items
def test_other_files_are_never_replaced(served: Work, tmp_path: Path) -> None:
    files.write_json(tmp_path / "export" / "mine.json", {})
    with pytest.raises(SettingsError, match="is no earlier export"):
        onnx.export_onnx(served.paths.promoted, tmp_path / "export")


@of_items
def test_the_example_of_the_docs_runs(exported: Path, recommender: Recommender, tmp_path: Path, monkeypatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "serving.md").read_text(encoding="utf-8")
    example = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[2]
    (tmp_path / "shop-onnx").symlink_to(exported)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(example, "serving.md", "exec"), names)
    history = recommender.catalogue["item"].to_list()[:2]
    found = recommender.for_histories([history], 5, times=[[0, 0]], method=METHOD)
    assert names["best"] == [each.item for each in found[0]]
