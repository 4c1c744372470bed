"""What every item encoder fulfils: members of the package, and Hugging Face models of every kind."""

import pickle
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixrec_core.errors import ArtefactError, BackboneError, SettingsError
from pixrec_core.models.encoders import ItemEncoder, create_encoder, encoder_names, load_encoder
from tests.core.models.encoders.folders import FOLDERS, TEXTS, save

MEMBERS = [name for name in encoder_names() if name != "smollm2"]  # its weights take a minute to convert
UNSEEN = ["", " ", "Umbrella ☂", "赤いスニーカー", "x" * 5000, *TEXTS]
PHOTOS = [Image.new("RGB", size, colour) for size, colour in (((9, 40), "red"), ((64, 64), "blue"), ((1, 1), "white"))]
PHOTOS.append(Image.fromarray(np.arange(64 * 48 * 3).reshape(64, 48, 3).astype(np.uint8)))

#: Loads each saved encoder and writes the vectors of the same inputs.
LOAD = """
import pickle, sys
from pathlib import Path
import numpy as np
from pixrec_core.models.encoders import load_encoder
root = Path(sys.argv[1])
texts, photos = pickle.loads((root / "inputs.pickle").read_bytes())
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    encoder = load_encoder(folder)
    for modality in encoder.modalities:
        vectors = encoder.encode_texts(texts) if modality == "text" else encoder.encode_photos(photos)
        np.save(root / f"{folder.name}-{modality}.npy", vectors)
"""


@dataclass
class Made:
    encoder: ItemEncoder
    modality: str
    vectors: np.ndarray
    loaded: np.ndarray

    def encode(self, inputs) -> np.ndarray:
        return self.encoder.encode_texts(inputs) if self.modality == "text" else self.encoder.encode_photos(inputs)

    @property
    def inputs(self) -> list:
        return UNSEEN if self.modality == "text" else PHOTOS


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, ItemEncoder]:
    models = tmp_path_factory.mktemp("models")
    found = {}
    for name in [*MEMBERS, *FOLDERS]:
        if name == "cnn" and not find_spec("efficientnet_lite_pytorch"):
            continue
        setting = str(save(name, models / name)) if name in FOLDERS else name
        modality = "photo" if name in {"histogram", "cnn", "vit", "convnext"} else "text"
        found[name] = create_encoder(setting, modality, lambda: TEXTS, 32)
    return found


@pytest.fixture(scope="module")
def loaded(encoders, tmp_path_factory) -> Path:
    """The vectors of all encoders from another process."""
    root = tmp_path_factory.mktemp("saved")
    for name, encoder in encoders.items():
        (root / name).mkdir()
        encoder.save(root / name)
        assert {path.suffix for path in (root / name).iterdir()} <= {".json", ".safetensors"}
    (root / "inputs.pickle").write_bytes(pickle.dumps((UNSEEN, PHOTOS)))
    subprocess.run([sys.executable, "-c", LOAD, str(root)], check=True)
    return root


@pytest.fixture(
    params=[(name, modality) for name in [*MEMBERS, *FOLDERS] for modality in ("text", "photo")], ids="-".join
)
def made(request, encoders, loaded) -> Made:
    name, modality = request.param
    if name not in encoders or modality not in encoders[name].modalities:
        pytest.skip("not installed" if name not in encoders else f"no {modality}s")
    encoder = encoders[name]
    inputs = UNSEEN if modality == "text" else PHOTOS
    vectors = encoder.encode_texts(inputs) if modality == "text" else encoder.encode_photos(inputs)
    return Made(encoder, modality, vectors, np.load(loaded / f"{name}-{modality}.npy"))


def test_every_encoder(made: Made) -> None:
    vectors, dimension = made.vectors, made.encoder.dimensions[made.modality]
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(made.inputs), dimension)
    assert made.encode([]).shape == (0, dimension)
    assert np.isfinite(vectors).all()
    lengths = np.linalg.norm(vectors, axis=1)
    is_unit = np.abs(lengths - 1) < 1e-4
    assert (is_unit | (lengths == 0)).all()
    assert is_unit[-len(TEXTS) :].all()
    if made.modality == "text":
        assert not vectors[:2].any(), "an empty text says nothing"
        assert abs(vectors[-4] @ vectors[-2]) < 0.9999, "texts differ"
    one_by_one = np.concatenate([made.encode([each]) for each in made.inputs])
    np.testing.assert_allclose(vectors, one_by_one, atol=1e-4)
    np.testing.assert_allclose(made.loaded, vectors, atol=1e-4)
    sent: ItemEncoder = pickle.loads(pickle.dumps(made.encoder))
    again = sent.encode_texts(made.inputs) if made.modality == "text" else sent.encode_photos(made.inputs)
    np.testing.assert_allclose(again, vectors, atol=1e-4)


def test_a_model_that_changed_is_not_loaded(tmp_path: Path) -> None:
    model = save("bert", tmp_path / "model")
    (tmp_path / "saved").mkdir()
    create_encoder(str(model), "text", list, 32).save(tmp_path / "saved")
    (model / "config.json").write_text((model / "config.json").read_text().replace('"gelu"', '"relu"'))
    with pytest.raises(ArtefactError, match="its files have changed"):
        load_encoder(tmp_path / "saved")


@pytest.mark.parametrize(
    ("name", "modality", "error", "reason"),
    [
        ("lsa", "photo", SettingsError, "does not encode photos"),
        ("histogram", "text", SettingsError, "does not encode texts"),
        ("bert", "photo", SettingsError, "does not encode photos"),
        ("pickled", "text", BackboneError, "does not read pickled weights"),
    ],
)
def test_encoders_that_cannot_be_used(name: str, modality: str, error, reason: str, tmp_path: Path) -> None:
    setting = name
    if name in {"bert", "pickled"}:
        setting = str(save("bert", tmp_path / name))
    if name == "pickled":
        (tmp_path / name / "model.safetensors").rename(tmp_path / name / "pytorch_model.bin")
    with pytest.raises(error, match=reason):
        _ = create_encoder(setting, modality, lambda: TEXTS, 32)
