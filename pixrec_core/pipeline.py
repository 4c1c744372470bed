"""The whole flow on one screen: one function an arrow, stages meet only in files.

raw -> items, interactions -> images -> sequences -> checkpoint -> item_vectors -> item_index
    -> ranking (and baselines) -> evaluation -> report
                      ranking -> promoted, what serves

Where settings name a joint training, the sequences of several datasets -> joint_checkpoint, from which the
checkpoint of a dataset may start.

Imports stand inside the functions: a stage pays for what it uses, and naming the stages costs
nothing. A download needs no torch, a Dagster code location neither.
"""

from pathlib import Path
from typing import Any, Final

from pixrec_core import files
from pixrec_core.stages import Stage, StageInputs, Stats, Work


def raw(work: Work) -> Stats:
    """Fetch or generate reviews and metadata; note their checksums."""
    from pixrec_core.data import raw_files

    return raw_files.fetch(work.dataset_settings.source, work.settings.root, work.paths)


def items(work: Work) -> Stats:
    """Metadata lines -> the catalogue; bad lines to quarantine."""
    from pixrec_core.data import contract
    from pixrec_core.data import items as module

    stats = module.build(work.dataset_settings.ingest, work.paths)
    return stats | {"profile": contract.enforce("items", work.paths)}


def interactions(work: Work) -> Stats:
    """Review lines -> interactions in (user, time, position) order; bad lines to quarantine."""
    from pixrec_core.data import contract
    from pixrec_core.data import interactions as module

    stats = module.build(work.dataset_settings.ingest, work.paths)
    return stats | {"profile": contract.enforce("interactions", work.paths)}


def images(work: Work) -> Stats:
    """Image URLs of the catalogue -> stored photos and a manifest of what came of each."""
    from pixrec_core.data import contract
    from pixrec_core.data import images as module

    stats = module.download_images(work.dataset_settings.images, work.paths, work.engine)
    return stats | {"profile": contract.enforce("images", work.paths)}


def sequences(work: Work) -> Stats:
    """Items, interactions and photos -> one validated DuckDB file of sequences, split."""
    from pixrec_core.data import sequences as module

    return module.build(work.dataset_settings.sequences, work.paths, work.engine)


def joint_checkpoint(work: Work, inputs: StageInputs, **callbacks: Any) -> Stats:
    """Train one dual tower on sequences and photos of several datasets, for each of them to start from."""
    from pixrec_core import training

    joint, run = work.settings.joint[work.dataset], inputs.fingerprint
    datasets = {name: work.with_dataset(name).variant_paths for name in joint.datasets}
    with training.mlflow_run(work, inputs, **callbacks) as on_epoch:
        return training.train(
            joint.model, joint.training, work.variant_paths, datasets, run=run, engine=work.engine, on_epoch=on_epoch
        )


def checkpoint(work: Work, inputs: StageInputs, **callbacks: Any) -> Stats:
    """Train a dual tower on sequences and photos."""
    from pixrec_core import training

    settings, paths = work.dataset_settings, work.variant_paths
    start = work.with_dataset(settings.start_from).variant_paths.checkpoint if settings.start_from else None
    with training.mlflow_run(work, inputs, **callbacks) as on_epoch:
        return training.train(
            settings.model,
            settings.training,
            paths,
            {work.dataset: paths},
            run=inputs.fingerprint,
            start=start,
            engine=work.engine,
            on_epoch=on_epoch,
        )


def item_vectors(work: Work) -> Stats:
    """Every item of the catalogue through the item tower."""
    from pixrec_core.retrieval import encode

    return encode.encode_items(work.variant_paths, work.engine)


def item_index(work: Work) -> Stats:
    """Item vectors -> FAISS index."""
    from pixrec_core.retrieval import index

    return index.build_index(work.dataset_settings.index, work.variant_paths)


def ranking(work: Work) -> Stats:
    """Test histories through the user tower, each to its nearest items; some through other rankers where asked for."""
    from pixrec_core.retrieval import ranking as module

    return module.rank_test_users(
        work.dataset_settings.retrieval, work.dataset_settings.generative, work.variant_paths, work.engine
    )


def promoted(work: Work) -> Stats:
    """Checkpoint, vectors, index and ranking -> what serves, unless it is worse than what serves already."""
    from pixrec_core.serving import gate

    return gate.promote_unless_worse(work.dataset, work.dataset_settings, work.variant_paths)


def baselines(work: Work) -> Stats:
    """Sequences and photos -> the model and the rankings of every baseline."""
    from pixrec_core import recommenders

    return recommenders.build_baselines(work.dataset_settings.retrieval, work.paths)


def evaluation(work: Work) -> Stats:
    """Rankings and true targets -> metrics, per user first."""
    from pixrec_core.evaluation import evaluate

    return evaluate.evaluate_rankings(work.dataset_settings.retrieval, work.paths, work.settings.variants)


def report(work: Work) -> Stats:
    """Metrics, rankings and photos -> one HTML page and its Markdown."""
    from pixrec_core.report.build import build_report

    return build_report(work.dataset, work.paths, work.settings.variants)


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
    """A backbone in a local folder may be changed in place, and a branch of the hub may move."""
    from pixrec_core.models import hub

    folder = Path(work.trained.model.backbone)
    return files.stat_snapshot(folder.iterdir()) if folder.is_dir() else hub.current_commit(work.trained.model)


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
ITEMS: Final = Stage("items", items, lambda w: w.paths.items, (RAW,), ("ingest",))
INTERACTIONS: Final = Stage("interactions", interactions, lambda w: w.paths.interactions, (RAW, ITEMS), ("ingest",))
IMAGES: Final = Stage(
    "images",
    images,
    lambda w: w.paths.images_manifest,
    (ITEMS,),
    ("images",),
    external_inputs=_images_external_inputs,
    digest=_images_digest,
)
SEQUENCES: Final = Stage(
    "sequences", sequences, lambda w: w.paths.sequences, (ITEMS, INTERACTIONS, IMAGES), ("sequences",), version=2
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
)
CHECKPOINT: Final = Stage(
    "checkpoint",
    checkpoint,
    lambda w: w.variant_paths.checkpoint,
    (SEQUENCES, JOINT_CHECKPOINT),
    ("model", "training"),
    partitioned_by="variant",
    external_inputs=_backbone_external_inputs,
    digest=_checkpoint_digest,
    resumes=True,
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
    version=2,
)
PROMOTED: Final = Stage(
    "promoted",
    promoted,
    lambda w: w.variant_paths.promoted.manifest,
    (RANKING,),
    ("promotion",),
    partitioned_by="variant",
)
BASELINES: Final = Stage("baselines", baselines, lambda w: w.paths.baselines, (SEQUENCES,), ("retrieval",), version=4)
EVALUATION: Final = Stage(
    "evaluation", evaluation, lambda w: w.paths.metrics, (RANKING, BASELINES), ("retrieval",), version=3
)
REPORT: Final = Stage("report", report, lambda w: w.paths.report, (EVALUATION, PROMOTED))

#: In an order that serves every stage's inputs first.
STAGES: Final = (
    RAW,
    ITEMS,
    INTERACTIONS,
    IMAGES,
    SEQUENCES,
    BASELINES,
    JOINT_CHECKPOINT,
    CHECKPOINT,
    ITEM_VECTORS,
    ITEM_INDEX,
    RANKING,
    PROMOTED,
    EVALUATION,
    REPORT,
)


def stage_named(name: str) -> Stage:
    """Return the stage of that name."""
    return next(stage for stage in STAGES if stage.name == name)
