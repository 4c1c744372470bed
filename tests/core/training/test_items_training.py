"""Training with `user_encoder = "items"` on a small shop."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pixrec_core import files, pipeline
from pixrec_core.data.sequences import read_items
from pixrec_core.errors import SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.models.items_tower import ItemsTower
from pixrec_core.retrieval import encode
from pixrec_core.retrieval.retriever import Retriever
from pixrec_core.schemas import DESCRIPTION, TITLE
from pixrec_core.stages import Work
from tests.core.shop import AFTER_TRAINING

FROZEN = {"user_encoder": "items"}
AGAIN = """
import sys
from pathlib import Path
import numpy as np
from pixrec_core.paths import DatasetPaths
from pixrec_core.retrieval.retriever import Retriever
encoder = Retriever.load(DatasetPaths(Path(sys.argv[1])).variant(sys.argv[2])).encoder
assert "transformers" not in sys.modules, "its import takes longer than the rest"
np.save(sys.argv[3], encoder.user_vectors([[0, 1, 2], [3]], times=[[0, 10**9, 10**10], [5]]))
"""


def trained(work: Work) -> dict:
    return pipeline.CHECKPOINT.materialise(work)["stats"]


def test_every_variant_trains_on_the_same_examples(shop) -> None:
    stats = {}
    for variant in ("multimodal", "collaborative", "text_only", "image_only", "shuffled_images"):
        work = shop(variant, model=FROZEN, training={"epochs": 1})
        stats[variant] = trained(work)
        assert not work.variant_paths.training.exists()
    assert len({(each["steps"], each["examples"]) for each in stats.values()}) == 1
    assert stats["text_only"]["data"]["shop"]["items_with_photo"] == 0
    assert stats["multimodal"]["backbone"] == {"kind": "frozen", "name": "lsa and histogram", "revision": None}


@pytest.mark.parametrize("pooling", ["mean", "gru", "transformer"])
def test_the_loss_falls(shop, pooling: str) -> None:
    reported = []
    work = shop("collaborative", model=FROZEN | {"user_pooling": pooling}, training={"epochs": 3})
    pipeline.CHECKPOINT.materialise(work, on_epoch=reported.append)
    assert reported[2]["loss"] < reported[0]["loss"]


def test_a_training_that_diverges_ends_with_an_error(shop) -> None:
    work = shop("text_only", model=FROZEN, training={"epochs": 2, "learning_rate": 1e38})
    with pytest.raises(SettingsError, match=r"a loss of epoch \d is not a number. Lower training.learning_rate"):
        trained(work)
    assert pipeline.CHECKPOINT.stamp(work) is None


def test_a_trained_backbone_gives_item_vectors(shop) -> None:
    work = shop(model=FROZEN | {"item_encoder": "backbone"}, training={"epochs": 1, "num_sampled_negatives": 8})
    assert trained(work)["backbone"]["kind"] == "embedded"
    model, _ = checkpoint.load(work.variant_paths.checkpoint)
    assert isinstance(model, ItemsTower)
    for stage in AFTER_TRAINING:
        stage.materialise(work)
    retriever = Retriever.load(work.variant_paths)
    assert retriever.reads_photos
    assert retriever.new_item_vector({TITLE: "Lamp"}, None, "multimodal").shape == (1, 16)


def test_a_checkpoint_needs_no_other_artefact_and_is_the_same_in_another_process(shop, tmp_path: Path) -> None:
    work = shop("multimodal", model=FROZEN, training={"epochs": 1})
    trained(work)
    for stage in AFTER_TRAINING:
        stage.materialise(work)
    paths = work.variant_paths
    assert {path.name for path in paths.checkpoint.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "photo_encoder",
        "settings.json",
        "text_encoder",
        "training.json",
    }
    files.remove(work.paths.item_features)
    encoder = Retriever.load(paths).encoder
    vectors = encoder.user_vectors([[0, 1, 2], [3]], times=[[0, 10**9, 10**10], [5]])
    arguments = [str(work.paths.root), work.variant, str(tmp_path / "again.npy")]
    subprocess.run([sys.executable, "-c", AGAIN, *arguments], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "again.npy"), vectors, atol=1e-6)


def test_an_item_of_the_catalogue_as_a_new_item_has_its_vector(shop) -> None:
    work = shop("text_only", model=FROZEN, training={"epochs": 1})
    trained(work)
    for stage in AFTER_TRAINING:
        stage.materialise(work)
    retriever = Retriever.load(work.variant_paths)
    rows = read_items(work.paths).to_dicts()
    _, vectors = encode.read_item_vectors(work.variant_paths.item_vectors)
    for number in (0, 7):
        new = retriever.new_item_vector(rows[number], None, "text_only")
        np.testing.assert_allclose(new[0], vectors[number], atol=1e-5)
    changed = retriever.new_item_vector(rows[0] | {TITLE: rows[7][TITLE], DESCRIPTION: None}, None, "text_only")
    assert not np.allclose(changed[0], vectors[0], atol=1e-3)
