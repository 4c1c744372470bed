"""Refresh: new orders, products, prices and photos reach what serves, without a training.

The copy that serves is built again on the present sequences and item features. Towers keep their weights and encode new
items by content. Methods in closed form are fitted on all interactions, held-out ones too, with the settings that
validation chose. Networks over item ids and the blend keep their weights; new items are unknown to the networks.
"""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pixrec_core import files, recommenders
from pixrec_core.data.item_features import ItemFeatures
from pixrec_core.data.sequences import catalogue_digest, read_items
from pixrec_core.engine import Engine
from pixrec_core.errors import ArtefactError
from pixrec_core.models import checkpoint
from pixrec_core.models.encoders import load_encoder
from pixrec_core.models.frozen_features import TEXT, FrozenEncoders, variant_features
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
from pixrec_core.serving.promotion import read_promotion, verify_promotion, write_promotion
from pixrec_core.settings import DatasetSettings
from pixrec_core.stages import Stats


def refresh_promotion(settings: DatasetSettings, paths: DatasetPaths, engine: Engine) -> Stats:
    """Promote the methods that serve once more, on the present data. The method that serves stays the same.

    Args:
        settings: of the dataset: its index.
        paths: of the dataset, with present sequences, photos and item features.
        engine: encodes items.

    Returns:
        `items`, `new_items`, `left_items`; `interactions`; and `promotion`, its number.

    Raises:
        MissingArtefactError: nothing has been promoted, or data stages have not run.
        ArtefactError: a promoted file is damaged.
    """
    served = read_promotion(paths.promoted)
    old = verify_promotion(paths.promoted, served)
    copies = paths.promoted.copies(served.number + 1)
    files.remove(copies.root)
    for source in (paths.sequences, paths.images_manifest):
        files.link(files.require(source), copies.root / source.relative_to(paths.root))
    catalogue, train = read_items(paths), TrainData.read_all(paths)
    positions = _positions(read_items(old)[ITEM].to_list(), catalogue[ITEM].to_list())
    digest, sha256 = catalogue_digest(catalogue[ITEM]), {}
    for name in served.towers:
        shutil.copytree(old.variant(name).checkpoint, copies.variant(name).checkpoint)
        sha256[name] = _refresh_tower(settings, paths.variant(name), copies.variant(name), train, positions, engine)
    for name in served.methods:
        if name == BLEND:
            blend = Blend.load(old.blend.root)
            items = ItemTable.of(catalogue, train.train.values, train.times)
            replace(blend, items=items, catalogue=digest).save(copies.blend.root)
        elif name not in served.towers:
            model = _refresh_model(old.baseline(name).model, train, positions)
            model.save(copies.baseline(name).model, digest)
    kept = served.model_dump(exclude={"promoted_at", "files"})  # figures stay those of the measured promotion
    fields = kept | {"number": served.number + 1, "checkpoint_sha256": sha256}
    write_promotion(paths.promoted, copies, fields)
    return {
        "promotion": served.number + 1,
        "method": served.method,
        "trained_at": served.trained_at,
        "items": train.n_items,
        "new_items": train.n_items - int((positions >= 0).sum()),
        "left_items": int((positions < 0).sum()),
        "interactions": len(train.times),
    }


def _positions(before: list[str], now: list[str]) -> NDArray[np.int64]:
    """Return the index in `now` of each item of `before`, both sorted; -1 if it has left."""
    numbers = {item: number for number, item in enumerate(now)}
    return np.array([numbers.get(item, -1) for item in before], np.int64)


def _refresh_model(folder: Path, train: TrainData, positions: NDArray[np.int64]) -> Model:
    """Return a baseline for the present catalogue."""
    model = load_model(folder)
    if isinstance(model, SequenceModel):
        return model.for_catalogue(positions, train.popularity_ranks)
    refitted: Model = load_plugin(recommenders.__name__, model_method(folder)).fit(
        replace(train, chosen=dict(model.chosen))
    )
    return refitted


def _refresh_tower(
    settings: DatasetSettings,
    present: VariantPaths,
    copies: VariantPaths,
    train: TrainData,
    positions: NDArray[np.int64],
    engine: Engine,
) -> str:
    """Encode the present catalogue with a promoted tower, whose checkpoint is copied; return the checksum of it."""
    model, encoders = checkpoint.load(copies.checkpoint)
    if model.item_id_embedding is not None:
        _extend_item_ids(model, positions, train.n_items)
        checkpoint.replace_weights(copies.checkpoint, model)
    features = None
    if isinstance(encoders, FrozenEncoders):
        features = _encode_texts(variant_features(present), encoders, train.texts)
    photos = copies.dataset.images
    photos.symlink_to(present.dataset.images.absolute())  # towers that read pixels decode them from there
    try:
        encode_items(copies, engine, features)
    finally:
        photos.unlink()
    build_index(settings.index, copies)
    return checkpoint.weights_sha256(copies.checkpoint)


def _extend_item_ids(model: Any, positions: NDArray[np.int64], size: int) -> None:
    """Give the tower id vectors for a catalogue of `size` items; those of new items are 0, as before training."""
    import torch

    old = model.item_id_embedding
    stays = positions >= 0
    kept, to = torch.from_numpy(np.flatnonzero(stays)), torch.from_numpy(positions[stays])
    weights = {name: getattr(old, name).weight.detach() for name in ("history", "candidate")}
    model.add_item_id_embedding(size, old.dropout)
    with torch.no_grad():
        for name, values in weights.items():
            getattr(model.item_id_embedding, name).weight[to] = values[kept]


def _encode_texts(
    features: dict[str, ItemFeatures], encoders: FrozenEncoders, texts: Sequence[str]
) -> dict[str, ItemFeatures]:
    """Return the features with texts encoded as at the training: an encoder fitted on texts differs from day to day."""
    if TEXT not in features or TEXT not in encoders.folders:
        return features
    distinct, rows = np.unique(np.array(texts, np.object_), return_inverse=True)
    values = load_encoder(encoders.folders[TEXT]).encode_texts(distinct.tolist())[rows]
    if values.shape[1] != features[TEXT].values.shape[1]:
        raise ArtefactError(f"the text encoder in {encoders.folders[TEXT]} has other dimensions than its tower")
    return {**features, TEXT: ItemFeatures(values, np.array([bool(text) for text in texts]))}
