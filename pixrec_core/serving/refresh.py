"""Refresh: new orders, products, prices and photos reach what serves, without a training.

The copy that serves is built again on the present sequences and item features. Towers keep their weights and encode new
items by content. Methods in closed form are fitted on all interactions, held-out ones too, with the settings that
validation chose. Networks over item ids and the blend keep their weights; new items are unknown to the networks.

A refit (`refit.py`) passes networks that were trained on all interactions; they take the place of the promoted ones.
"""

import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files, recommenders
from pixrec_core.data.item_features import ItemFeatures
from pixrec_core.data.sequences import catalogue_digest, read_items
from pixrec_core.engine import Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.models.encoders import load_encoder
from pixrec_core.models.frozen_features import PHOTO, TEXT, FrozenEncoders, variant_features
from pixrec_core.paths import BLEND, DatasetPaths, VariantPaths
from pixrec_core.plugins import load_plugin
from pixrec_core.recommenders import load_model
from pixrec_core.recommenders._blend_features import ItemTable
from pixrec_core.recommenders._sequence_training import SequenceModel
from pixrec_core.recommenders.base import Model, TrainData, model_method
from pixrec_core.recommenders.blend import Blend
from pixrec_core.retrieval.encode import encode_items
from pixrec_core.retrieval.index import build_index
from pixrec_core.schemas import ITEM
from pixrec_core.serving.promotion import (
    next_number,
    parts_of_method,
    read_promotion,
    verify_promotion,
    write_promotion,
)
from pixrec_core.settings import DatasetSettings
from pixrec_core.stages import Stats


def refresh_promotion(
    settings: DatasetSettings, paths: DatasetPaths, engine: Engine, refitted: DatasetPaths | None = None
) -> Stats:
    """Promote the methods that serve once more, on the present data. The method that serves stays the same.

    Args:
        settings: of the dataset: its index.
        paths: of the dataset, with present sequences, photos and item features.
        engine: encodes items.
        refitted: checkpoints and networks that were trained on all interactions, and the catalogue of that training.

    Returns:
        `promotion`, its number; `method` that serves; `trained_at` and `refitted_at` of its manifest; and numbers of
        `items`, `new_items`, `left_items` and `interactions`.

    Raises:
        MissingArtefactError: nothing has been promoted, or data stages have not run.
        ArtefactError: a promoted file is damaged, or photos are encoded otherwise than at the training.
    """
    served = read_promotion(paths.promoted)
    old = verify_promotion(paths.promoted, served)
    number = next_number(paths.promoted, served)
    copies = paths.promoted.copies(number)
    files.remove(copies.root)
    for shared in (paths.sequences, paths.images_manifest):
        files.link(files.require(shared), copies.root / shared.relative_to(paths.root))
    catalogue, train = read_items(paths), TrainData.read_all(paths)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    digest, sha256, fitted = catalogue_digest(catalogue[ITEM]), {}, dict(served.refitted_at)
    sources = dict.fromkeys(served.methods, old)
    if refitted is not None:
        is_trained = {each: (refitted.root / parts_of_method(served, each)[0]).exists() for each in sources}
        sources |= {name: refitted for name in sources if is_trained[name]}
        fitted |= {name: now for name in sources if is_trained[name]}
    positions = {
        source.root: _positions(read_items(source)[ITEM].to_list(), catalogue[ITEM].to_list())
        for source in (old, *([refitted] if refitted else []))
    }
    encoded: dict[str, NDArray[np.float32]] = {}
    for name, source in sources.items():
        before = positions[source.root]
        if name in served.towers:
            shutil.copytree(source.variant(name).checkpoint, copies.variant(name).checkpoint)
            sha256[name] = _refresh_tower(
                settings, paths.variant(name), copies.variant(name), train, before, engine, encoded
            )
        elif name == BLEND:
            blend = Blend.load(source.blend.root)
            items = ItemTable.of(catalogue, train.train.values, train.times)
            replace(blend, items=items, catalogue=digest).save(copies.blend.root)
        else:
            model, is_fitted = _refresh_model(source.baseline(name).model, train, before)
            model.save(copies.baseline(name).model, digest)
            fitted |= {name: now} if is_fitted else {}
    kept = served.model_dump(exclude={"promoted_at", "files"})  # figures stay those of the measured promotion
    fields = kept | {"number": number, "checkpoint_sha256": sha256, "refitted_at": fitted}
    write_promotion(paths.promoted, copies, fields)
    return {
        "promotion": number,
        "method": served.method,
        "trained_at": served.trained_at,
        "refitted_at": fitted,
        "items": train.n_items,
        "new_items": train.n_items - int((positions[old.root] >= 0).sum()),
        "left_items": int((positions[old.root] < 0).sum()),
        "interactions": len(train.times),
    }


def _positions(before: list[str], now: list[str]) -> NDArray[np.int64]:
    """Return the index in `now` of each item of `before`, both sorted; -1 if it has left."""
    numbers = {item: number for number, item in enumerate(now)}
    return np.array([numbers.get(item, -1) for item in before], np.int64)


def _refresh_model(folder: Path, train: TrainData, positions: NDArray[np.int64]) -> tuple[Model, bool]:
    """Return a baseline for the present catalogue, and whether it was fitted on all interactions."""
    model = load_model(folder)
    if isinstance(model, SequenceModel):
        return model.for_catalogue(positions, train.popularity_ranks), False
    return fit_again(folder, model, train), True


def fit_again(folder: Path, model: Model, train: TrainData) -> Model:
    """Fit a saved method, which is `model`, with the settings that were chosen then."""
    fitted: Model = load_plugin(recommenders.__name__, model_method(folder)).fit(
        replace(train, chosen=dict(model.chosen))
    )
    return fitted


def _refresh_tower(
    settings: DatasetSettings,
    present: VariantPaths,
    copies: VariantPaths,
    train: TrainData,
    positions: NDArray[np.int64],
    engine: Engine,
    encoded: dict[str, NDArray[np.float32]],
) -> str:
    """Encode the present catalogue with a promoted tower, whose checkpoint is copied; return the checksum of it.

    `encoded` has the texts by the checksum of their encoder, which is mostly the same for all towers.
    """
    model, encoders = checkpoint.load(copies.checkpoint)
    if model.item_id_embedding is not None:
        _extend_item_ids(model, positions, read_items(copies.dataset)[ITEM])
        checkpoint.replace_weights(copies.checkpoint, model)
    features = None
    if isinstance(encoders, FrozenEncoders):
        features = _tower_features(model, present, encoders)
        if TEXT in features and TEXT in encoders.folders:
            features[TEXT] = _encode_texts(encoders.folders[TEXT], model.config.raw_dims[TEXT], train.texts, encoded)
    photos = copies.dataset.images
    photos.symlink_to(present.dataset.images.absolute())  # towers that read pixels decode them from there
    try:
        encode_items(copies, engine, features)
    finally:
        photos.unlink()
    build_index(settings.index, copies)
    return checkpoint.weights_sha256(copies.checkpoint)


def _tower_features(model: Any, present: VariantPaths, encoders: FrozenEncoders) -> dict[str, ItemFeatures]:
    """Return the present features that a tower reads: photos may have come or gone since its training.

    Raises:
        ArtefactError: the photo features are of another encoder.
    """
    found = variant_features(present)
    folder = present.dataset.item_features / f"{PHOTO}_encoder"
    is_read = all(PHOTO in each for each in (model.whitening, found, encoders.folders))
    if is_read and _checksum(folder) != _checksum(encoders.folders[PHOTO]):
        raise ArtefactError(
            f"the photo features of {present.dataset.root} are of another encoder than the promoted towers read; "
            "train again with `pixrec run`"
        )
    n = len(next(iter(found.values())).known)
    return {
        name: found.get(name)
        or ItemFeatures(np.zeros((n, model.config.raw_dims[name]), np.float32), np.zeros(n, np.bool_))
        for name in model.whitening
    }


def _extend_item_ids(model: Any, positions: NDArray[np.int64], item_ids: pl.Series) -> None:
    """Give the tower id vectors for the items of a catalogue; those of new items are 0, as before training."""
    import torch

    old = model.item_id_embedding
    stays = positions >= 0
    kept, to = torch.from_numpy(np.flatnonzero(stays)), torch.from_numpy(positions[stays])
    weights = {name: getattr(old, name).weight.detach() for name in ("history", "candidate")}
    model.add_item_id_embedding(item_ids, old.dropout)
    with torch.no_grad():
        for name, values in weights.items():
            getattr(model.item_id_embedding, name).weight[to] = values[kept]


def _checksum(folder: Path) -> str:
    """Return the checksums of all files of an encoder."""
    return "".join(files.sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file())


def _encode_texts(
    encoder: Path, dimensions: int, texts: Sequence[str], encoded: dict[str, NDArray[np.float32]]
) -> ItemFeatures:
    """Return texts encoded as at the training: an encoder that is fitted on texts differs from day to day.

    Raises:
        ArtefactError: the vectors have other `dimensions` than the tower reads.
    """
    key = _checksum(encoder)
    if key not in encoded:
        distinct, rows = np.unique(np.array(texts, np.object_), return_inverse=True)
        encoded[key] = load_encoder(encoder).encode_texts(distinct.tolist())[rows]
    values = encoded[key]
    if values.shape[1] != dimensions:
        raise ArtefactError(f"the text encoder in {encoder} has other dimensions than its tower; run `pixrec run`")
    return ItemFeatures(values, np.array([bool(text) for text in texts]))
