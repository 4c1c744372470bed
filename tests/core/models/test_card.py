"""The model card contains the training record, for every kind of backbone, and no path of the machine."""

import pytest
from huggingface_hub import ModelCard

from pixrec_core.models.card import model_card
from pixrec_core.settings import ModelSettings, TrainingSettings

COUNTS = {"users": 1200, "examples": 5400, "items": 300, "items_with_photo": 290, "validation_users": 1000}
EPOCHS = [
    {"epoch": 1, "loss": 2.5, "recall@10": 0.125, "ndcg@10": 0.0625, "seconds": 9.0},
    {"epoch": 2, "loss": 2.25, "recall@10": 0.25, "ndcg@10": 0.03125, "seconds": 9.0},
]


def card(variant: str = "multimodal", kind: str = "embedded", name: str = "tiny", **changes) -> str:
    frozen = kind == "frozen"
    model = ModelSettings(user_encoder="items") if frozen else ModelSettings(user_encoder="tokens", backbone=name)
    settings = {
        "variant": variant,
        "model": model.model_dump(mode="json"),
        "training": TrainingSettings(metric_for_best_model="recall@10").model_dump(mode="json"),
    }
    record = {
        "data": {"hats": COUNTS},
        "epochs": EPOCHS,
        "best_epoch": 2,
        "parameters": 700_000,
        "trained_parameters": 600_000,
        "backbone": {"kind": kind, "name": "a local folder" if kind == "folder" else name, "revision": "abc123"},
        "started_from": None,
    }
    return model_card(settings, record | changes)


def test_it_contains_data_metrics_and_settings():
    text = card()
    assert "| hats | 1,200 | 5,400 | 300 | 290 | 1,000 |" in text
    assert "| epoch | loss | ndcg@10 | recall@10 |\n| --- | --- | --- | --- |\n| 1 | 2.5 | 0.0625 | 0.125 |" in text
    assert "epoch 2, which has the best recall@10 on validation users" in text
    assert "700,000 parameters, of which 600,000 were trained" in text
    assert "| training.metric_for_best_model | `recall@10` |" in text
    assert f"| training.learning_rate | `{TrainingSettings().learning_rate}` |" in text
    assert "means over" not in text


def test_its_metadata_is_that_of_the_hub():
    metadata = ModelCard(card("text_only", "hub", "some/model")).data
    assert (metadata.library_name, metadata.base_model) == ("pixrec", "some/model")
    assert {"text_only", "hats"} <= set(metadata.tags)
    assert ModelCard(card()).data.base_model is None


def test_a_backbone_from_the_hub_has_its_commit_and_a_folder_no_path():
    assert "`some/model`, revision abc123" in card(kind="hub", name="some/model")
    folder = card(kind="folder", name="/home/somebody/weights")
    assert "somebody" not in folder
    assert "a backbone from a local folder" in folder


def test_it_names_a_joint_checkpoint_and_all_datasets():
    text = card(data={"hats": COUNTS, "lamps": COUNTS}, started_from={"datasets": ["a", "b"], "weights_sha256": "0"})
    assert "started from a joint checkpoint of a, b" in text
    assert "metrics are means over them" in text
    assert text.count("| 1,200 | 5,400 |") == 2


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        ("multimodal", "Its inputs are the texts and photos of items."),
        ("text_only", "the texts of items, without photos"),
        ("image_only", "the photos of items, without texts"),
        ("shuffled_images", "do not serve it"),
    ],
)
def test_it_names_the_inputs_of_the_variant(variant: str, sentence: str):
    assert sentence in card(variant)


def test_it_names_frozen_encoders():
    text = card(kind="frozen", name="lsa and histogram")
    assert "It uses frozen encoders of texts and photos (lsa and histogram)." in text
    assert "each item is encoded once" in text
    assert "checkpoint.load(folder)" in text
