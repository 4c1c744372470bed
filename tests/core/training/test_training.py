"""Training on a small shop: its checkpoint, early stopping, photo caches, and errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer, set_seed

from pixrec_core import pipeline, prompts
from pixrec_core.data.sequences import read_items
from pixrec_core.errors import BackboneError, CheckpointError, ContractError
from pixrec_core.models import checkpoint, photo_store
from pixrec_core.models.backbones import tiny
from pixrec_core.models.dual_tower import DualTower
from pixrec_core.models.loading import create_backbone
from pixrec_core.stages import Work
from pixrec_core.training import build_tower
from pixrec_core.training.validation import Validation
from tests.core.shop import open_shop, untrained


def curves(work: Work) -> list[dict]:
    epochs = json.loads((work.variant_paths.checkpoint / checkpoint.CURVES).read_text())["epochs"]
    return [{key: value for key, value in epoch.items() if key != "seconds"} for epoch in epochs]


@pytest.fixture(scope="module")
def trained(opened: Path, tmp_path_factory: pytest.TempPathFactory) -> Work:
    """A shop with a training of one epoch; tests must not change it."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(opened, folder, dirs_exist_ok=True)
    work = open_shop(folder, training={"epochs": 1})
    pipeline.CHECKPOINT.materialise(work)
    return work


def test_a_checkpoint_is_complete(shop) -> None:
    work = shop()
    reported = []
    stats = pipeline.CHECKPOINT.materialise(work, on_epoch=reported.append)["stats"]
    folder = work.variant_paths.checkpoint
    assert {p.name for p in folder.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "settings.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "training.json",
    }
    assert [epoch["epoch"] for epoch in reported] == [1, 2]
    assert reported[1]["loss"] < reported[0]["loss"]
    assert stats["best_epoch"] == max(reported, key=lambda epoch: epoch["ndcg@10"])["epoch"]
    model, processor = checkpoint.load(folder)
    assert isinstance(model, DualTower)
    before, _ = tiny.create([prompts.item_text(i) for i in read_items(work.paths).to_dicts()])
    assert model.config.backbone_config.vision_config.patch_size == before.config.vision_config.patch_size
    assert processor.tokenizer.decode(processor.text_ids("Title: Wool lamp <image>")) == "Title: wool lamp <image>"
    assert processor.image_token_id not in processor.text_ids("<image>")
    assert not work.variant_paths.training.exists()


def test_every_variant_trains_on_the_same_budget(shop, trained: Work) -> None:
    stats = {"multimodal": pipeline.CHECKPOINT.stats(trained)}
    assert curves(trained)[0]["generation"] > 0
    for variant in ("text_only", "image_only", "shuffled_images"):
        work = shop(variant, training={"epochs": 1})
        stats[variant] = pipeline.CHECKPOINT.materialise(work)["stats"]
        assert (curves(work)[0]["generation"] == 0) is (variant == "image_only")
    budgets = {(each["steps"], each["examples"], each["parameters"]) for each in stats.values()}
    assert len(budgets) == 1
    assert min(budgets)[0] > 0


def test_auto_classes_of_transformers_load_a_checkpoint(trained: Work) -> None:
    folder = trained.variant_paths.checkpoint
    model, processor = checkpoint.load(folder)
    for read in (AutoModel.from_pretrained(folder), DualTower.from_pretrained(folder)):
        assert isinstance(read, DualTower)
        assert all(torch.equal(read.state_dict()[name], value.cpu()) for name, value in model.state_dict().items())
    text = "Title: Wool lamp"
    tokens = AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]
    assert tokens == processor.text_ids(text)
    photo = Image.new("RGB", (tiny.EDGE, tiny.EDGE), "teal")
    pixels = AutoImageProcessor.from_pretrained(folder, backend="pil")([photo], return_tensors="pt")["pixel_values"]
    assert torch.equal(pixels, processor.pixels(photo))


def script_validation(monkeypatch, *metrics: tuple[float, float]) -> None:
    """Let validations return these (ndcg@10, recall@10) one after another, and then the last ones again and again."""
    script = iter(metrics)

    def validate(*_) -> dict[str, float]:
        return dict(zip(("ndcg@10", "recall@10"), next(script, metrics[-1]), strict=True))

    monkeypatch.setattr(Validation, "__call__", validate)


@pytest.mark.parametrize(("metric_for_best_model", "best", "epochs"), [("ndcg@10", 2, 4), ("recall@10", 1, 3)])
def test_metric_for_best_model_decides_the_best_epoch_and_early_stopping(
    shop, monkeypatch, metric_for_best_model: str, best: int, epochs: int
) -> None:
    script_validation(monkeypatch, (0.1, 0.5), (0.2, 0.4), (0.1, 0.3))
    work = shop("text_only", training={"epochs": 6, "metric_for_best_model": metric_for_best_model, "patience": 2})
    stats = pipeline.CHECKPOINT.materialise(work)["stats"]
    assert stats["best_epoch"] == best
    assert len(curves(work)) == epochs


def test_a_frozen_vision_tower_keeps_its_weights_and_encodes_each_photo_once(shop, monkeypatch) -> None:
    features = photo_store._features
    work = shop(model={"vision": "frozen"}, training={"epochs": 1, "seed": 5})
    encoded = []
    monkeypatch.setattr(photo_store, "_features", lambda *given: encoded.append(given) or features(*given))
    for stage in (pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING):
        stage.materialise(work)
    assert len(encoded) == 1
    assert cached(work) == {"features"}
    model, _ = checkpoint.load(work.variant_paths.checkpoint)
    set_seed(5)
    untrained, _ = build_tower(work.dataset_settings.model, work.dataset_settings.training, [work.variant_paths])
    pairs = list(zip(model.vision_parameters(), untrained.vision_parameters(), strict=True))
    assert pairs
    assert all(torch.equal(now, then) for now, then in pairs)
    trained = zip(model.backbone.get_decoder().parameters(), untrained.backbone.get_decoder().parameters(), strict=True)
    assert not all(torch.equal(now, then) for now, then in trained)
    stats = json.loads((work.variant_paths.checkpoint / checkpoint.CURVES).read_text())
    assert stats["trained_parameters"] == stats["parameters"] - sum(p.numel() for p in model.vision_parameters())


def test_a_trainable_vision_tower_reads_cached_pixels(trained: Work) -> None:
    assert cached(trained) == {"pixels"}


def cached(work: Work) -> set[str]:
    """Return the kinds of files in the cache."""
    return {path.name.partition("-")[0] for path in work.paths.cache.glob("*.npy")}


def test_the_backbone_can_be_a_folder_with_a_smolvlm(shop, tmp_path: Path) -> None:
    set_seed(1)
    model, processor = tiny.create(["Title: Wool cushion Category: Home", "Title: Oak lamp"])
    model.save_pretrained(tmp_path / "smolvlm")
    processor.save_pretrained(tmp_path / "smolvlm")
    work = shop(model={"backbone": str(tmp_path / "smolvlm")}, training={"epochs": 1, "learning_rate": 1e-9})
    pipeline.CHECKPOINT.materialise(work)
    trained, _ = checkpoint.load(work.variant_paths.checkpoint)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(trained.backbone.state_dict()[name], value, atol=1e-6, rtol=1e-4)


def test_the_error_for_a_missing_backbone_says_what_to_do(shop, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    work = shop(model={"backbone": str(tmp_path / "empty")})
    with pytest.raises(BackboneError, match=r"empty.*local folder of one with config\.json"):
        pipeline.CHECKPOINT.materialise(work)


def test_weights_saved_in_bfloat16_train_in_float32(shop, tmp_path: Path) -> None:
    model, processor = tiny.create(["Title: Wool cushion Category: Home", "Title: Oak lamp"])
    model.to(torch.bfloat16).save_pretrained(tmp_path / "half")
    processor.save_pretrained(tmp_path / "half")
    backbone, _ = create_backbone(str(tmp_path / "half"), None, list)
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_another_training_makes_later_stages_stale(trained: Work, tmp_path: Path) -> None:
    shutil.copytree(trained.settings.root, tmp_path, dirs_exist_ok=True)
    work = open_shop(tmp_path, training={"epochs": 1})
    pipeline.ITEM_VECTORS.materialise(work)
    assert pipeline.ITEM_VECTORS.is_current(work)
    another = open_shop(tmp_path, training={"epochs": 1, "seed": 7})
    replace(pipeline.CHECKPOINT, run=untrained, resumes=False).materialise(another)
    assert not pipeline.ITEM_VECTORS.is_current(work)


def test_a_broken_contract_stops_training(shop) -> None:
    import duckdb

    work = shop()
    with duckdb.connect(work.paths.sequences) as connection:
        connection.execute("UPDATE items SET train_count = train_count + 1")
    with pytest.raises(ContractError, match="train_count"):
        pipeline.CHECKPOINT.materialise(work)
    assert not work.variant_paths.checkpoint.exists()


def test_damaged_weights_are_reported(trained: Work, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.variant_paths.checkpoint, tmp_path / "checkpoint")
    path = folder / checkpoint.WEIGHTS
    body = bytearray(path.read_bytes())
    body[-1] ^= 1
    path.write_bytes(body)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        checkpoint.load(folder)
