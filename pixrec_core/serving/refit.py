"""Refit: what serves is fitted on all interactions, with the settings and number of epochs that validation chose.

Half of the users of a dataset may have no more than two training interactions, and the newest two of each user never
reach a method that is measured. After the measurement nothing has to be held out any more. Networks are trained here,
on a copy of the sequences without held-out interactions; a refresh then fits the methods in closed form and replaces
what serves. The blend keeps its weights: it learns from lists of methods that do not know their users' next items.
"""

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from pixrec_core import files
from pixrec_core.data.sequences import write_all_as_training
from pixrec_core.errors import SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.paths import BLEND, DatasetPaths, VariantPaths
from pixrec_core.recommenders import load_model
from pixrec_core.recommenders._sequence_training import SequenceModel
from pixrec_core.recommenders.base import TrainData
from pixrec_core.recommenders.blend import Blend
from pixrec_core.serving.promotion import Promotion, verify_promotion
from pixrec_core.serving.refresh import fit_again
from pixrec_core.settings import DatasetSettings

log = logging.getLogger(__name__)


def train_networks(
    settings: DatasetSettings,
    paths: DatasetPaths,
    served: Promotion,
    *,
    run: str,
    train_tower: Callable[[VariantPaths, Path], object],
) -> DatasetPaths:
    """Train the networks of the method that serves on all interactions.

    A killed refit of the same run continues: finished networks are kept, and a tower resumes after its last epoch.

    `run` identifies everything that the outcome depends on. `train_tower(target, measured)` trains a variant into the
    folder `target`, for the best number of epochs that the checkpoint `measured` records.

    Returns:
        A folder of `paths.refit` with sequences, and the networks that were trained.

    Raises:
        MissingArtefactError: sequences or item features have not been built.
        ArtefactError: a promoted file is damaged.
        SettingsError: a tower was trained with other settings than the present ones.
    """
    target = _prepare_folder(paths, run)
    promoted = verify_promotion(paths.promoted, served)
    for name in serving_methods(served, promoted):
        if name in served.towers:
            measured = promoted.variant(name).checkpoint
            _require_same_settings(settings, measured, name)
            if target.variant(name).checkpoint.exists():
                continue
            log.info("%s: refit on all interactions", name)
            train_tower(target.variant(name), measured)
        elif name != BLEND:
            _train_model(target, promoted, name)
    return target


def serving_methods(served: Promotion, copies: DatasetPaths) -> Iterator[str]:
    """Yield the method that serves, and if it is the blend those that it reads."""
    yield served.method
    if served.method == BLEND:
        yield from Blend.load(copies.blend.root).methods


def _prepare_folder(paths: DatasetPaths, run: str) -> DatasetPaths:
    """Return the folder of a run, with everything that a training reads; remove those of other runs."""
    target = DatasetPaths(paths.refit / run[:16])
    if target.item_features.exists():
        return target
    files.remove(paths.refit)
    write_all_as_training(paths, target.sequences)
    files.link(files.require(paths.images_manifest), target.images_manifest)
    for shared in (paths.images, paths.cache):  # photos, and what is computed from them, by content
        shared.mkdir(exist_ok=True)
        (target.root / shared.name).symlink_to(shared.absolute())
    with files.replacing(target.item_features) as folder:
        shutil.copytree(files.require(paths.item_features), folder, copy_function=_link)
    return target


def _link(source: str, target: str) -> None:
    files.link(Path(source), Path(target))


def _require_same_settings(settings: DatasetSettings, measured: Path, name: str) -> None:
    """Check that a checkpoint was trained with the present settings, apart from the revision that it resolved."""
    saved = files.read_json(measured / checkpoint.SETTINGS)
    for section in ("model", "training"):
        present = getattr(settings, section).model_dump(mode="json", exclude={"revision"})
        if other := sorted(key for key, value in present.items() if saved[section].get(key) != value):
            raise SettingsError(
                f"[{section}] {other[0]} is {present[other[0]]!r}, but {name} was trained with "
                f"{saved[section].get(other[0])!r}; train it again with `pixrec run`, or restore the setting"
            )


def _train_model(target: DatasetPaths, promoted: DatasetPaths, name: str) -> None:
    """Train a network over item ids, if the method is one and the number of its epochs is known."""
    folder, trained = promoted.baseline(name).model, target.baseline(name).model
    model = load_model(folder)
    if isinstance(model, SequenceModel) and "epochs" in model.chosen and not trained.exists():
        begin = time.monotonic()
        fit_again(folder, model, TrainData.read_all(target)).save(trained)
        log.info("%s: refit on all interactions in %.1f s", name, time.monotonic() - begin)
