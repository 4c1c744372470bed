"""The whole pipeline: one function per stage; stages exchange data only through files.

raw -> items, interactions -> images -> sequences -> item_features -> checkpoint -> item_vectors -> item_index
    -> ranking (and baselines) -> blend -> evaluation -> report
                                  blend -> promoted -> refit, which serves

If settings name a joint training: sequences of several datasets -> joint_checkpoint, from which the checkpoint of a
dataset may start.

Imports are inside the functions: a stage imports only what it uses, and neither a download nor a Dagster code location
imports torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from pixrec_core import files
from pixrec_core.errors import ArtefactError, BusyError, SettingsError, did_you_mean
from pixrec_core.paths import VariantPaths
from pixrec_core.plugins import code_digest
from pixrec_core.settings import DatasetSettings
from pixrec_core.stages import Stage, StageInputs, Stats, Work


def raw(work: Work) -> Stats:
    """Download or generate reviews and metadata, and record their checksums."""
    from pixrec_core.data import raw_files

    return raw_files.fetch(work.dataset_settings.source, work.settings.root, work.paths)


def items(work: Work) -> Stats:
    """Build the catalogue from metadata lines; move bad lines to the quarantine table."""
    from pixrec_core.data import contract
    from pixrec_core.data.items import build_items

    stats = build_items(work.dataset_settings.ingest, work.paths)
    return stats | {"profile": contract.require_valid("items", work.paths)}


def interactions(work: Work) -> Stats:
    """Build interactions in (user, time, position) order from review lines; move bad lines to the quarantine table."""
    from pixrec_core.data import contract
    from pixrec_core.data.interactions import build_interactions

    stats = build_interactions(work.dataset_settings.ingest, work.paths)
    return stats | {"profile": contract.require_valid("interactions", work.paths)}


def images(work: Work) -> Stats:
    """Download or copy the photos of the catalogue, and record the outcome of each in a manifest."""
    from pixrec_core.data import contract
    from pixrec_core.data.images import download_images

    stats = download_images(work.dataset_settings.images, work.paths, work.engine)
    return stats | {"profile": contract.require_valid("images", work.paths)}


def sequences(work: Work) -> Stats:
    """Build one validated DuckDB file of split sequences from items, interactions and photos."""
    from pixrec_core.data.sequences import build_sequences

    return build_sequences(work.dataset_settings.sequences, work.paths)


def item_features(work: Work) -> Stats:
    """Encode the text and photo of every item with frozen encoders, for all variants and methods."""
    from pixrec_core.models.encoders.build import build_item_features

    return build_item_features(work.dataset_settings.model, work.paths, work.engine)


def joint_checkpoint(work: Work, inputs: StageInputs, **callbacks: Any) -> Stats:
    """Train one dual tower on sequences and photos of several datasets, for each of them to start from."""
    from pixrec_core import training

    datasets = {name: work.with_dataset(name).variant_paths for name in work.settings.joint[work.dataset].datasets}
    with training.mlflow_run(work, inputs, **callbacks) as on_epoch:
        return _train(work, inputs, work.variant_paths, datasets, on_epoch=on_epoch)


def checkpoint(work: Work, inputs: StageInputs, **callbacks: Any) -> Stats:
    """Train a dual tower on sequences and photos."""
    from pixrec_core import training

    paths, start = work.variant_paths, _start_checkpoint(work)
    with training.mlflow_run(work, inputs, **callbacks) as on_epoch:
        return _train(work, inputs, paths, {work.dataset: paths}, start=start, on_epoch=on_epoch)


def _train(
    work: Work, inputs: StageInputs, paths: VariantPaths, datasets: Mapping[str, VariantPaths], **options: Any
) -> Stats:
    """Call `training.train` with the settings and engine of `work`."""
    from pixrec_core import training

    settings, run = work.trained, inputs.fingerprint
    return training.train(settings.model, settings.training, paths, datasets, run=run, engine=work.engine, **options)


def tune(work: Work, minutes: float) -> Stats:
    """Search for settings with which the training of a variant is better on validation users. No stage.

    A killed search continues and loses at most its running trial. Trials train in a folder of their own.

    Returns:
        What `training.search.search` returns.

    Raises:
        BusyError: another search of this variant is running.
        MissingArtefactError: an input of the training has not been built.
        ArtefactError: an input has changed during the search.
        SettingsError: Optuna is not installed.
    """
    from pixrec_core import training
    from pixrec_core.training.search import search, search_space, with_values

    settings, folder = work.dataset_settings, work.variant_paths.tune

    def train(values: dict[str, Any], run: str) -> Stats:
        if CHECKPOINT.inspect_inputs(work) != inputs:
            raise ArtefactError(
                f"Inputs of the training of {work.dataset} have changed since this search began; repeat it"
            )
        tried = work.with_trained(with_values(settings, values))
        trial = VariantPaths(folder / "trial", work.paths, str(work.variant))
        made_from, start = StageInputs(run, inputs.versions), _start_checkpoint(work)
        with training.mlflow_run(tried, made_from, trial=trial.checkpoint) as on_epoch:
            stats = _train(tried, made_from, trial, {work.dataset: trial}, start=start, on_epoch=on_epoch)
        files.remove(trial.root)
        return stats

    with replace(CHECKPOINT, name="tune").exclusive(work):
        inputs = CHECKPOINT.inspect_inputs(work)
        return search(settings, search_space(settings, str(work.variant)), folder, inputs.fingerprint, minutes, train)


def _start_checkpoint(work: Work) -> Path | None:
    """Return the checkpoint of the joint training that the training of a dataset starts from, if settings name one."""
    joint = work.dataset_settings.start_from
    return work.with_dataset(joint).variant_paths.checkpoint if joint else None


def item_vectors(work: Work) -> Stats:
    """Encode every item of the catalogue with the item tower."""
    from pixrec_core.retrieval import encode

    return encode.encode_items(work.variant_paths, work.engine)


def item_index(work: Work) -> Stats:
    """Build the FAISS index of the item vectors."""
    from pixrec_core.retrieval import index

    return index.build_index(work.dataset_settings.index, work.variant_paths)


def ranking(work: Work) -> Stats:
    """Rank the nearest items of every test user; other rankers rank a sample of users, if settings name them."""
    from pixrec_core.retrieval import ranking as module

    return module.rank_test_users(
        work.dataset_settings.retrieval, work.dataset_settings.generative, work.variant_paths, work.engine
    )


def promoted(work: Work) -> Stats:
    """Promote all methods to serving, the best on validation first, unless it is worse than the method that serves."""
    from pixrec_core.serving import gate

    return gate.promote_unless_worse(work.dataset, work.dataset_settings, work.paths, work.settings.variants)


def refresh(work: Work) -> Stats:
    """Promote what serves once more, on present sequences and item features, without a training. No stage."""
    from pixrec_core.serving.refresh import refresh_promotion

    with PROMOTED.exclusive(work):
        return refresh_promotion(work.dataset_settings, work.paths, work.engine)


def rollback(work: Work, number: int) -> Stats:
    """Let an earlier promotion serve again; the next run or refresh continues from it. No stage.

    Returns:
        `promotion`, its number; `method` that serves; `promoted_at` and `trained_at`, UTC.

    Raises:
        BusyError: a promotion is running.
        MissingArtefactError: nothing has been promoted.
        QueryError: the promotion is not kept.
        ArtefactError: a file of it is damaged.
    """
    from pixrec_core.serving.promotion import restore_promotion

    with PROMOTED.exclusive(work):
        served = restore_promotion(work.paths.promoted, number)
    return {"promotion": number, **served.model_dump(include={"method", "promoted_at", "trained_at"})}


def refit(work: Work, inputs: StageInputs) -> Stats:
    """Fit the promoted method on all interactions, those of validation and test included, with the chosen settings."""
    from pixrec_core.serving import refit as module
    from pixrec_core.serving.promotion import read_promotion
    from pixrec_core.serving.refresh import refresh_promotion

    settings, paths = work.dataset_settings, work.paths
    served = read_promotion(paths.promoted)
    if not settings.promotion.refit:
        return {"refitted": False, "summary": "off: promotion.refit is false"}
    if not PROMOTED.stats(work).get("promoted", True):
        return {"refitted": False, "summary": "none: the promotion was refused"}
    measurement = _served_measurement(work)
    if measurement != _refit_external_inputs(work):
        return {"refitted": False, "summary": f"none: promotion {served.number}, an earlier one, serves"}

    def train_tower(target: VariantPaths, measured: Path) -> Stats:
        start = _start_checkpoint(work.with_variant(target.variant))
        return _train(work, inputs, target, {work.dataset: target}, start=start, measured=measured)

    trained = module.train_networks(settings, paths, served, run=inputs.fingerprint, train_tower=train_tower)
    with PROMOTED.exclusive(work):
        if _served_measurement(work) != measurement:
            raise BusyError(f"another promotion of {work.dataset} was measured meanwhile; run `refit` again")
        stats = refresh_promotion(settings, paths, work.engine, trained)
    files.remove(paths.refit)
    return {"refitted": True, "summary": f"{len(stats['refitted_at'])} methods on all interactions", **stats}


def baselines(work: Work) -> Stats:
    """Fit every baseline and rank items for the test users with it."""
    from pixrec_core import recommenders

    return recommenders.build_baselines(work.dataset_settings.retrieval, work.paths)


def blend(work: Work) -> Stats:
    """Train a model that orders the candidates of all methods, and rank the catalogue for test users with it."""
    from pixrec_core.recommenders import blend as module

    settings = work.dataset_settings
    return module.build_blend(settings.blend, settings.retrieval, work.paths, work.settings.variants)


def evaluation(work: Work) -> Stats:
    """Compute metrics from rankings and true targets, per user first, and what each input of the blend is worth."""
    from pixrec_core.evaluation import evaluate
    from pixrec_core.recommenders.blend import rank_without_inputs

    settings, variants = work.dataset_settings, work.settings.variants
    inputs = rank_without_inputs(settings.blend, settings.retrieval, work.paths, variants)
    stats = evaluate.evaluate_rankings(settings.retrieval, work.paths, variants, inputs)
    if work.settings.tracking.uri:
        from pixrec_core.training.tracking import log_test_metrics  # imports torch

        stamps = {variant: CHECKPOINT.stamp(work.with_variant(variant)) for variant in variants}
        trainings = {str(variant): str(stamp["fingerprint"]) for variant, stamp in stamps.items() if stamp}
        log_test_metrics(work, files.read_json(work.paths.metrics), trainings)
    return stats


def report(work: Work) -> Stats:
    """Write one HTML page and its Markdown from metrics, rankings and photos."""
    from pixrec_core.report.build import build_report

    measured = serves_what_was_measured(work)
    refit_follows = work.dataset_settings.promotion.refit and measured
    return build_report(work.dataset, work.paths, work.settings.variants, refit=refit_follows, serves_measured=measured)


def _raw_external_inputs(work: Work) -> Any:
    from pixrec_core.data import raw_files

    return raw_files.describe(work.dataset_settings.source, work.settings.root)


def _raw_digest(work: Work) -> str:
    from pixrec_core.data import raw_files

    return raw_files.digest(work.paths)


def _images_external_inputs(work: Work) -> Any:
    """Size and time of local photos, which may be replaced under the same name."""
    from pixrec_core.data import local_photos

    return local_photos.snapshot_digest(work.paths)


def _images_digest(work: Work) -> str:
    from pixrec_core.data import images as module

    return module.manifest_digest(work.paths)


def _backbone_external_inputs(work: Work) -> Any:
    """A backbone in a local folder may change, and a branch of the hub may move."""
    from pixrec_core import hub

    model = work.trained.model
    return hub.model_state(model.backbone, model.revision)


def _item_features_external_inputs(work: Work) -> Any:
    """The settings of [model] that the features depend on, and the state of models outside of the pipeline."""
    from pixrec_core import hub
    from pixrec_core.models.encoders import encoder_names

    model, ours = work.dataset_settings.model, encoder_names()
    names = (model.text_encoder, model.photo_encoder)
    states = [None if name in ours else hub.model_state(name) for name in names]
    shown = (Path(name).name if Path(name).is_absolute() else name for name in names)  # a project can be moved
    return [model.item_tokens, *map(list, zip(shown, states, strict=True))]


def _baselines_external_inputs(work: Work) -> Any:  # noqa: ARG001  # the same for every dataset
    """The code of the methods but the blend's: a new file is a new method."""
    package = "pixrec_core.recommenders"
    return code_digest(package, lambda module: "blend" not in module, outside=package)


def _blend_external_inputs(work: Work) -> Any:  # noqa: ARG001
    return code_digest("pixrec_core.recommenders", lambda module: "blend" in module)


def _evaluation_external_inputs(work: Work) -> Any:  # noqa: ARG001
    """The code of the metrics: a new file is a new metric."""
    return code_digest("pixrec_core.evaluation", outside="pixrec_core.metrics")


def _refit_external_inputs(work: Work) -> Any:
    """The last promotion that was measured: another one has to be fitted again, but none that a rollback restores.

    Its number alone does not tell it: without the folder of promotions, numbers start again.
    """
    stats = PROMOTED.stats(work)
    return [stats["measured"], stats["trained_at"]] if "trained_at" in stats else _served_measurement(work)


def _served_measurement(work: Work) -> list[Any]:
    """Number and time of the promotion that was measured, of what serves."""
    manifest = files.read_json(work.paths.promoted.manifest)
    return [manifest.get("measured"), manifest.get("trained_at")]


def serves_what_was_measured(work: Work) -> bool:
    """Return whether the figures of the evaluation are of what serves: not after a refusal, nor after a rollback."""
    promoted = work.paths.promoted.manifest.exists() and PROMOTED.stats(work).get("promoted", True)
    return bool(promoted and _served_measurement(work) == _refit_external_inputs(work))


def _checkpoint_digest(work: Work) -> str:
    from pixrec_core.models import checkpoint as module

    return module.weights_sha256(work.variant_paths.checkpoint)


RAW: Final = Stage(
    "raw",
    raw,
    lambda w: w.paths.raw_manifest,
    config_sections=("source",),
    external_inputs=_raw_external_inputs,
    digest=_raw_digest,
)
ITEMS: Final = Stage("items", items, lambda w: w.paths.items, (RAW,), ("ingest",), version=8)
INTERACTIONS: Final = Stage(
    "interactions", interactions, lambda w: w.paths.interactions, (RAW, ITEMS), ("ingest",), version=4
)
IMAGES: Final = Stage(
    "images",
    images,
    lambda w: w.paths.images_manifest,
    (ITEMS,),
    ("images",),
    external_inputs=_images_external_inputs,
    digest=_images_digest,
    version=3,
)
SEQUENCES: Final = Stage(
    "sequences", sequences, lambda w: w.paths.sequences, (ITEMS, INTERACTIONS, IMAGES), ("sequences",), version=5
)
ITEM_FEATURES: Final = Stage(
    "item_features",
    item_features,
    lambda w: w.paths.item_features,
    (SEQUENCES,),
    external_inputs=_item_features_external_inputs,
)
JOINT_CHECKPOINT: Final = Stage(
    "joint_checkpoint",
    joint_checkpoint,
    lambda w: w.variant_paths.checkpoint,
    (SEQUENCES,),
    ("model", "training"),
    partitioned_by="joint",
    external_inputs=_backbone_external_inputs,
    digest=_checkpoint_digest,
    resumes=True,
    version=3,
)
CHECKPOINT: Final = Stage(
    "checkpoint",
    checkpoint,
    lambda w: w.variant_paths.checkpoint,
    (SEQUENCES, ITEM_FEATURES, JOINT_CHECKPOINT),
    ("model", "training"),
    partitioned_by="variant",
    external_inputs=_backbone_external_inputs,
    digest=_checkpoint_digest,
    resumes=True,
    version=4,
)
ITEM_VECTORS: Final = Stage(
    "item_vectors",
    item_vectors,
    lambda w: w.variant_paths.item_vectors,
    (CHECKPOINT,),
    partitioned_by="variant",
    version=2,
)
ITEM_INDEX: Final = Stage(
    "item_index",
    item_index,
    lambda w: w.variant_paths.item_index,
    (ITEM_VECTORS,),
    ("index",),
    partitioned_by="variant",
    version=2,
)
RANKING: Final = Stage(
    "ranking",
    ranking,
    lambda w: w.variant_paths.ranking,
    (ITEM_INDEX,),
    ("retrieval", "generative"),
    partitioned_by="variant",
    version=5,
)
BASELINES: Final = Stage(
    "baselines",
    baselines,
    lambda w: w.paths.baselines,
    (SEQUENCES, ITEM_FEATURES),
    ("retrieval",),
    version=8,
    external_inputs=_baselines_external_inputs,
)
BLEND: Final = Stage(
    "blend",
    blend,
    lambda w: w.paths.blend.root,
    (RANKING, BASELINES),
    ("blend", "retrieval"),
    version=4,
    external_inputs=_blend_external_inputs,
)
EVALUATION: Final = Stage(
    "evaluation",
    evaluation,
    lambda w: w.paths.metrics,
    (ITEM_FEATURES, RANKING, BASELINES, BLEND),
    ("blend", "retrieval"),
    version=7,
    external_inputs=_evaluation_external_inputs,
)
PROMOTED: Final = Stage(
    "promoted", promoted, lambda w: w.paths.promoted.manifest, (RANKING, BASELINES, BLEND), ("promotion",), version=2
)
REFIT: Final = Stage(
    "refit",
    refit,
    lambda w: w.paths.promoted.manifest,
    (PROMOTED,),
    external_inputs=_refit_external_inputs,
    resumes=True,
)
REPORT: Final = Stage("report", report, lambda w: w.paths.report, (EVALUATION, PROMOTED), version=3)

#: Stages of a dataset that train nothing, inputs first.
DATA: Final = (RAW, ITEMS, INTERACTIONS, IMAGES, SEQUENCES, ITEM_FEATURES)

#: Inputs first.
STAGES: Final = (
    *DATA,
    BASELINES,
    JOINT_CHECKPOINT,
    CHECKPOINT,
    ITEM_VECTORS,
    ITEM_INDEX,
    RANKING,
    BLEND,
    PROMOTED,
    EVALUATION,
    REPORT,
    REFIT,
)


def check_names(dataset: DatasetSettings, variants: Sequence[str]) -> None:
    """Check the names of encoders, baselines and the blend's methods, which are plug-ins, before a stage needs them.

    Raises:
        SettingsError: a name is unknown.
    """
    from pixrec_core.models.encoders import check_encoder

    check_encoder(dataset.model.text_encoder, "text")
    check_encoder(dataset.model.photo_encoder, "photo")
    blended = dataset.blend.methods if dataset.blend.enabled else ()
    if not blended and not dataset.retrieval.baselines:
        return
    from pixrec_core import recommenders  # imports Polars

    recommenders.check_baselines(dataset.retrieval)
    known = [*(dataset.retrieval.baselines or recommenders.baseline_names()), *variants]
    for name in blended:
        if name not in known:
            raise SettingsError(
                f"blend.methods: {name!r} is no baseline or variant of the settings{did_you_mean(name, known)}"
            )


def stage_named(name: str) -> Stage:
    """Return the stage of that name."""
    return next(stage for stage in STAGES if stage.name == name)
