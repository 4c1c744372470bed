"""The stage `item_features`: rows in the order of the catalogue, each distinct content encoded once, in any build."""

import hashlib
import json

import numpy as np
import polars as pl
import pytest
from PIL import Image

from pixrec_core import files
from pixrec_core.data.item_features import read_features, read_photo_features
from pixrec_core.engine import LOCAL
from pixrec_core.errors import ArtefactError, SettingsError
from pixrec_core.models.encoders import build, load_encoder
from pixrec_core.models.encoders.base import ItemEncoder
from pixrec_core.models.encoders.build import build_item_features
from pixrec_core.paths import DatasetPaths
from pixrec_core.settings import ModelSettings
from tests.core import photos_folder, sequences_file

SETTINGS = ModelSettings()


class Counting(ItemEncoder):
    """Vectors from a hash; counts what it encodes, and stops after `budget` texts as a killed process would."""

    modalities = frozenset({"text", "photo"})

    def __init__(self, version=1, budget=10**9):
        self.version, self.budget, self.encoded = version, budget, []

    @property
    def description(self):
        return {"encoder": "counting", "version": self.version}

    @property
    def dimensions(self):
        return {"text": 4, "photo": 4}

    def encode_texts(self, texts):
        if len(self.encoded) + len(texts) > self.budget:
            raise KeyboardInterrupt
        self.encoded += texts
        return self._vectors([text.encode() for text in texts])

    def encode_photos(self, photos):
        self.encoded += [photo.getpixel((0, 0)) for photo in photos]
        return self._vectors([photo.tobytes() for photo in photos])

    def _vectors(self, contents):
        return np.array([list(hashlib.sha256(each).digest()[:4]) for each in contents], np.float32).reshape(-1, 4)


@pytest.fixture
def paths(tmp_path):
    return DatasetPaths.of(tmp_path, "tiny")


def write_shop(paths, titles, colours):
    """Write items a, b, ... with these titles, and photos of some of them."""
    items = "abcdefghij"[: len(titles)]
    catalogue = sequences_file.catalogue([items[:-2]], items, imageless=[item for item in items if item not in colours])
    files.remove(paths.sequences)
    lists = sequences_file.sequences({"u": items})
    sequences_file.write(paths, catalogue.with_columns(title=pl.Series(titles)), lists)
    photos_folder.write(paths, colours)


@pytest.fixture
def use(monkeypatch):
    """Build with a counting encoder; returns what it encoded."""

    def run(paths, **options):
        encoders = {}

        def create(_name, modality, _texts, _tokens):
            return encoders.setdefault(modality, Counting(**options))

        with monkeypatch.context() as patch:
            patch.setattr(build, "create_encoder", create)
            try:
                build_item_features(SETTINGS, paths, LOCAL)
            except KeyboardInterrupt:
                encoders["killed"] = True
        return encoders

    return run


def test_rows_follow_the_catalogue_and_the_saved_encoders_give_the_same_vectors(paths):
    titles = ["red wool hat", "", "blue wool hat", "red silk tie", "blue tie", "hat"]
    write_shop(paths, titles, {"a": "red", "d": "blue"})
    stats = build_item_features(SETTINGS, paths, LOCAL)
    texts, photos = read_features(paths.item_features, "text"), read_photo_features(paths)
    assert texts.known.tolist() == [True, False, True, True, True, True]
    assert photos.known.tolist() == [True, False, False, True, False, False]
    assert (texts.values.any(axis=1) == texts.known).all()
    assert (photos.values.any(axis=1) == photos.known).all()
    assert stats["photo"] == {"encoder": "histogram", "dimensions": 384, "items": 2, "distinct": 2, "encoded": 2}
    found = load_encoder(paths.item_features / "text_encoder").encode_texts([f"Title: {title}" for title in titles])
    np.testing.assert_allclose(found[texts.known], texts.values[texts.known], atol=1e-6)
    found = load_encoder(paths.item_features / "photo_encoder").encode_photos([Image.new("RGB", (32, 32), "blue")])
    np.testing.assert_allclose(found[0], photos.values[3], atol=1e-2)  # JPEG is not exact


def test_a_shop_without_texts_and_photos(paths):
    write_shop(paths, ["", ""], {})
    build_item_features(SETTINGS, paths, LOCAL)
    for features in (read_features(paths.item_features, "text"), read_photo_features(paths)):
        assert features.values.tolist() == [[0], [0]]
        assert not features.known.any()


def test_equal_and_unchanged_contents_are_encoded_once(paths, use):
    write_shop(paths, ["hat", "tie", "hat"], {"a": "red", "b": "red", "c": "blue"})
    first = use(paths)
    assert sorted(first["text"].encoded) == ["Title: hat", "Title: tie"]
    assert len(first["photo"].encoded) == 2
    before = read_features(paths.item_features, "text").values
    assert (before[0] == before[2]).all()

    write_shop(paths, ["tie", "sock", "hat", "hat"], {"a": "red", "b": "green"})
    second = use(paths)
    assert second["text"].encoded == ["Title: sock"]
    assert len(second["photo"].encoded) == 1
    after = read_features(paths.item_features, "text").values
    assert (after[[0, 2, 3]] == before[[1, 0, 0]]).all()
    assert len(use(paths, version=2)["text"].encoded) == 3, "another encoder gives other vectors"


def test_a_killed_build_continues_after_its_last_shard(paths, use, monkeypatch):
    monkeypatch.setattr(build, "SHARD", {"text": 2, "photo": 2})
    write_shop(paths, [f"title {n}" for n in range(7)], {})
    killed = use(paths, budget=5)
    assert killed["killed"]
    assert len(killed["text"].encoded) == 4
    assert not paths.item_features.exists()
    rest = use(paths)
    assert sorted(killed["text"].encoded + rest["text"].encoded) == [f"Title: title {n}" for n in range(7)]
    expected = Counting().encode_texts([f"Title: title {n}" for n in range(7)])
    assert (read_features(paths.item_features, "text").values == expected).all()
    assert not list(paths.cache.rglob("*.npz"))


@pytest.mark.parametrize("name", ["photo.npy", "photo_keys.npy", "photo_encoder/encoder.json"])
@pytest.mark.parametrize("content", [b"", b"{", None], ids=["empty", "damaged", "cut"])
def test_a_damaged_build_is_built_again(paths, name, content):
    write_shop(paths, ["hat", "tie"], {"a": "red", "b": "blue"})
    build_item_features(SETTINGS, paths, LOCAL)
    damaged = paths.item_features / name
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] if content is None else content)
    build_item_features(SETTINGS, paths, LOCAL)
    assert damaged.read_bytes() == whole


def test_vectors_of_another_number_of_items_are_not_copied(paths):
    write_shop(paths, ["hat", "tie"], {"a": "red", "b": "blue"})
    build_item_features(SETTINGS, paths, LOCAL)
    expected = read_photo_features(paths).values.tolist()
    np.save(paths.item_features / "photo.npy", np.zeros((1, 384), np.float32))
    build_item_features(SETTINGS, paths, LOCAL)
    assert read_photo_features(paths).values.tolist() == expected


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_a_damaged_shard_of_a_killed_build_is_encoded_again(paths, use, monkeypatch, content):
    monkeypatch.setattr(build, "SHARD", {"text": 2, "photo": 2})
    write_shop(paths, [f"title {n}" for n in range(5)], {})
    use(paths, budget=2)
    (shard,) = paths.cache.rglob("*.npz")
    shard.write_bytes(content)
    assert len(use(paths)["text"].encoded) == 5
    expected = Counting().encode_texts([f"Title: title {n}" for n in range(5)])
    assert (read_features(paths.item_features, "text").values == expected).all()


def test_lsa_is_fitted_on_items_of_training_sequences_only(paths):
    write_shop(paths, ["red hat", "blue hat", "red tie", "blue tie", "gold ring", "gold chain"], {})
    build_item_features(SETTINGS, paths, LOCAL)  # the last two items are held out
    vocabulary = json.loads((paths.item_features / "text_encoder" / "encoder.json").read_text())["vocabulary"]
    assert set(vocabulary) == {"title", "red", "blue", "hat", "tie"}


def test_the_error_names_a_damaged_photo(paths):
    write_shop(paths, ["hat"], {"a": "red"})
    paths.image("a").write_bytes(b"not a photo")
    with pytest.raises(ArtefactError, match="photo of 'a'"):
        build_item_features(SETTINGS, paths, LOCAL)


def test_a_damaged_file_and_an_unusable_encoder_are_named(paths):
    write_shop(paths, ["hat", "hat"], {})
    with pytest.raises(SettingsError, match=r"model\.text_encoder = 'histogram' does not encode texts; set it to lsa"):
        build_item_features(ModelSettings(text_encoder="histogram"), paths, LOCAL)
    build_item_features(SETTINGS, paths, LOCAL)
    for content in (b"no array", b""):
        (paths.item_features / "text.npy").write_bytes(content)
        with pytest.raises(ArtefactError, match=r"text\.npy is damaged"):
            read_features(paths.item_features, "text")
