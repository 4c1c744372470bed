"""Contents of items from frozen encoders: vectors of texts and photos, whitened, for one variant."""

import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pixrec_core import prompts
from pixrec_core.data.item_features import ItemFeatures, read_features
from pixrec_core.models.encoders import ItemEncoder, load_encoder
from pixrec_core.models.item_inputs import NO_PHOTO, Ids, variant_photo_rows
from pixrec_core.models.items_collate import FeatureTable
from pixrec_core.models.items_layers import Contents, ItemsLayers
from pixrec_core.paths import DatasetPaths, VariantPaths

TEXT, PHOTO = "text", "photo"
MAX_DIM: Final = 256  # of whitened features
MIN_DIM: Final = 16
ITEMS_PER_DIM: Final = 2  # with as many dimensions as items, whitened features would be orthogonal and say nothing
MAX_FITTED: Final = 50_000  # items that the whitening is fitted on
ROWS_PER_BLOCK: Final = 65_536


@dataclass(frozen=True)
class FrozenEncoders:
    """The folders of a variant's encoders by modality, to encode items outside the catalogue.

    An encoder is loaded for the first item that needs it, and kept.
    """

    folders: Mapping[str, Path]
    _loaded: dict[str, ItemEncoder] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of_dataset(cls, paths: DatasetPaths, modalities: Iterable[str]) -> "FrozenEncoders":
        """Return the encoders of the dataset's item features."""
        return cls.in_folder(paths.item_features, modalities)

    @classmethod
    def in_folder(cls, folder: Path, modalities: Iterable[str]) -> "FrozenEncoders":
        """Return the encoders in a folder of item features or of a checkpoint; a modality may have none."""
        found = {name: folder / f"{name}_encoder" for name in modalities}
        return cls({name: each for name, each in found.items() if each.exists()})

    def save_pretrained(self, folder: Path) -> None:
        """Copy the encoders into the folder of a checkpoint."""
        for name, source in self.folders.items():
            shutil.copytree(source, folder / f"{name}_encoder")

    def contents(self, model: ItemsLayers, item: Mapping[str, Any], photo: Image.Image | None) -> Contents:
        """Return the contents of one item, a row of `ITEM_SCHEMA`, in the modalities that the model reads."""
        contents = {}
        for name in model.whitening:
            raw = torch.zeros(1, model.config.raw_dims[name])
            text = prompts.item_text(item) if name == TEXT else ""
            if name in self.folders and text:
                raw = torch.from_numpy(self._encoder(name).encode_texts([text]))
            elif name in self.folders and name == PHOTO and photo is not None:
                raw = torch.from_numpy(self._encoder(name).encode_photos([photo]))
            contents[name] = model.whiten(name, raw)
        return contents

    def _encoder(self, name: str) -> ItemEncoder:
        if name not in self._loaded:
            self._loaded[name] = load_encoder(self.folders[name])
        return self._loaded[name]


def variant_features(paths: VariantPaths) -> dict[str, ItemFeatures]:
    """Return the features that a variant reads, by modality.

    text_only: texts. image_only: photos. multimodal and collaborative: both, or texts if no item has a photo.
    shuffled_images: the text of each item with the photo of another one.

    Raises:
        MissingArtefactError: the stage `item_features` has not run.
        ArtefactError: a file is damaged.
    """
    names = {"text_only": (TEXT,), "image_only": (PHOTO,)}.get(paths.variant, (TEXT, PHOTO))
    features = {name: read_features(paths.dataset.item_features, name) for name in names}
    if PHOTO in features and len(features) > 1:
        known = features[PHOTO].known
        rows = variant_photo_rows(np.where(known, np.arange(len(known)), NO_PHOTO), paths.variant)
        if not known.any():
            del features[PHOTO]
        elif paths.variant == "shuffled_images":
            values = np.where((rows != NO_PHOTO)[:, None], features[PHOTO].values[rows], 0)
            features[PHOTO] = replace(features[PHOTO], values=values)
    return features


def whitened_dims(features: Mapping[str, ItemFeatures], counts: Ids) -> dict[str, int]:
    """Return the dimensions of the whitened features of each modality; `counts` (N,) are training interactions."""
    dims = {}
    for name, each in features.items():
        sold = int((each.known & (counts > 0)).sum())
        dims[name] = min(MAX_DIM, each.values.shape[1], max(MIN_DIM, sold // ITEMS_PER_DIM))
    return dims


def fit_whitening(model: ItemsLayers, features: Mapping[str, ItemFeatures], counts: Ids, seed: int) -> None:
    """Fit the whitening of a tower on items with training interactions."""
    random = np.random.default_rng(seed)
    for name, each in features.items():
        rows = np.flatnonzero(each.known & (counts > 0))
        if len(rows) > MAX_FITTED:
            rows = np.sort(random.choice(rows, MAX_FITTED, replace=False))
        model.fit_whitening(name, torch.from_numpy(each.values[rows]))


@torch.inference_mode()
def feature_table(model: ItemsLayers, features: Mapping[str, ItemFeatures]) -> FeatureTable:
    """Return the whitened features of all items, in main memory."""

    def whiten(name: str, values: NDArray[np.float32]) -> torch.Tensor:
        starts = range(0, len(values), ROWS_PER_BLOCK)
        # Copies, since PyTorch warns of read-only arrays.
        blocks = (torch.from_numpy(np.array(values[start : start + ROWS_PER_BLOCK])) for start in starts)
        return torch.cat([model.whiten(name, block).cpu() for block in blocks])

    return FeatureTable({name: whiten(name, each.values) for name, each in features.items()})
