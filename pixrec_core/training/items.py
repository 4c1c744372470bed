"""Preparation of the training of an `ItemsTower`."""

from collections.abc import Mapping

from pixrec_core import prompts, schemas
from pixrec_core.data.sequences import read_items
from pixrec_core.engine import LOCAL, Engine
from pixrec_core.models import checkpoint, tuning
from pixrec_core.models.backbones import Processor
from pixrec_core.models.frozen_features import (
    PHOTO,
    FrozenEncoders,
    feature_table,
    fit_whitening,
    variant_features,
    whitened_dims,
)
from pixrec_core.models.items_collate import ItemsCollator
from pixrec_core.models.items_tower import ItemsTower, ItemsTowerConfig
from pixrec_core.models.loading import create_backbone
from pixrec_core.models.tower_inputs import TowerInputs
from pixrec_core.paths import VariantPaths
from pixrec_core.retrieval.encode import ItemsEncoder, ItemSource
from pixrec_core.settings import ModelSettings, TrainingSettings
from pixrec_core.training.batches import JointWindows
from pixrec_core.training.prepared import (
    COLLABORATIVE,
    Prepared,
    count_data,
    read_negatives,
    read_photos,
    read_windows,
)
from pixrec_core.training.validation import Validation


def prepare(
    model_settings: ModelSettings, settings: TrainingSettings, datasets: Mapping[str, VariantPaths], engine: Engine
) -> Prepared:
    """Return a tower before training, and its data.

    Raises:
        ContractError: there is nothing to train on.
        BackboneError: the backbone cannot be loaded, or has no part that `model.tune` names.
    """
    ((name, paths),) = datasets.items()
    catalogue = read_items(paths.dataset)
    model, source, processor = build_items_tower(model_settings, settings, paths, engine)
    windows = read_windows(name, paths, settings)
    ids = catalogue[schemas.ITEM].to_list()
    validation = Validation(
        paths.dataset, lambda tower: ItemsEncoder.encode(tower, ids, source, engine), settings.max_history_len, engine
    )
    with_photo = int(catalogue[schemas.HAS_IMAGE].sum()) if model.config.reads_photos else 0
    counts = {name: count_data(windows, len(ids), with_photo, validation.users)}
    collator = ItemsCollator(source.item_batch, read_negatives(paths, settings))
    return Prepared(model, JointWindows([(windows, collator)], by_targets=True), validation, counts, processor)


def build_items_tower(
    model_settings: ModelSettings, settings: TrainingSettings, paths: VariantPaths, engine: Engine = LOCAL
) -> tuple[ItemsTower, ItemSource, FrozenEncoders | Processor]:
    """Return a tower before training, the inputs of all items, and what makes the inputs of new items.

    Raises:
        MissingArtefactError: the stage `item_features` has not run.
        BackboneError: the backbone cannot be loaded, or has no part that `model.tune` names.
    """
    catalogue = read_items(paths.dataset)
    given = {
        "embedding_dim": model_settings.embedding_dim,
        "user_pooling": model_settings.user_pooling,
        "max_history_len": settings.max_history_len,
        "ties": settings.shuffle_ties,
        "tau": settings.temperature,
        "weight_item_item": settings.weight_item_item,
        "weight_user_item": settings.weight_user_item,
    }
    if model_settings.item_encoder == "frozen":
        features, counts = variant_features(paths), catalogue[schemas.TRAIN_COUNT].to_numpy()
        raw_dims = {name: each.values.shape[1] for name, each in features.items()}
        config = ItemsTowerConfig(
            modalities=list(features),
            feature_dims=whitened_dims(features, counts),
            raw_dims=raw_dims,
            reads_photos=PHOTO in features,
            feature_dropout={PHOTO: model_settings.photo_dropout},
            **given,
        )
        model = ItemsTower(config)
        processor: FrozenEncoders | Processor = FrozenEncoders.of_dataset(paths.dataset, features)
        fit_whitening(model, features, counts, settings.seed)
        source: ItemSource = feature_table(model, features)
    else:
        sold = catalogue.filter(catalogue[schemas.TRAIN_COUNT] > 0)
        backbone, backbone_processor = create_backbone(
            model_settings.backbone,
            model_settings.revision,
            lambda: (prompts.item_text(item) for item in sold.iter_rows(named=True)),
        )
        processor = backbone_processor
        inputs = TowerInputs.load(paths, backbone, backbone_processor, model_settings.item_tokens)
        config = ItemsTowerConfig(backbone_config=backbone.config, reads_photos=inputs.pixels is not None, **given)
        model = ItemsTower(config, backbone)
        photos = read_photos(inputs.pixels, model, model_settings.vision, paths.dataset.cache, engine)
        source = inputs.collator(photos)
        tuning.select_trainable_weights(model, model_settings)
    if paths.variant == COLLABORATIVE:
        model.add_item_id_embedding(catalogue[schemas.ITEM], model_settings.item_id_dropout)
    return model.to(checkpoint.device()), source, processor
