"""Everything that ranks, one module per method.

A module has two functions:

`fit(train: TrainData) -> Model`
    learns from training sequences, texts and photos. It may choose settings on validation targets, never on test
    targets. The same training data give the same model.
`load(folder: Path) -> Model`
    reads a model that `Model.save` wrote.

The name of the module is the name of the method in rankings, metrics and the report. `base.py` has the interface.
Modules are imported only when they are used: this package loads without torch.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files
from pixrec_core.data.sequences import catalogue_digest, read_items, read_measured_sequences, read_sequences
from pixrec_core.errors import SettingsError
from pixrec_core.evaluation.validation import stacking_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.recommenders.base import ItemLists, Model, TrainData, before_target, index_lists, model_method
from pixrec_core.schemas import ITEM, USER, VALIDATION
from pixrec_core.settings import RetrievalSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

#: Modules that the stage `baselines` does not fit: the interface, and a method that learns from the other methods.
NOT_BASELINES: Final = frozenset({"base", "blend"})
#: Methods that are fitted only if `retrieval.baselines` names them.
OFF_BY_DEFAULT: Final = frozenset({"semantic_ids"})
USERS_PER_BATCH: Final = 1024


def baseline_names() -> list[str]:
    """Return the names of the methods that the stage `baselines` fits by default, sorted."""
    return [name for name in plugin_names(__name__) if name not in NOT_BASELINES | OFF_BY_DEFAULT]


def load_model(folder: Path) -> Model:
    """Read a saved model of any method.

    Raises:
        MissingArtefactError: the folder holds no model.
        ArtefactError: a file of it is damaged.
    """
    model: Model = load_plugin(__name__, model_method(folder)).load(folder)
    return model


def build_baselines(settings: RetrievalSettings, paths: DatasetPaths) -> Stats:
    """Fit every baseline, save its model, and rank the catalogue for test users and stacking users.

    The folder of baselines is replaced, so that nothing of a removed baseline remains.

    Raises:
        MissingArtefactError: the stage `sequences` has not run.
        ContractError: sequences hold held-out items.
        SettingsError: `retrieval.baselines` names something else.
    """
    modules = _load_baselines(settings.baselines or baseline_names())
    train = TrainData.read(paths)
    item_ids, test = read_items(paths)[ITEM], read_measured_sequences(paths)
    validation = read_sequences(paths, VALIDATION)
    stacking, catalogue = validation.filter(stacking_users(validation.height)), catalogue_digest(item_ids)
    seconds, chosen = {}, {}
    with files.replacing(paths.baselines) as folder:
        for name, module in modules.items():
            start = time.monotonic()
            model = module.fit(train)
            method = paths.baseline(name, folder)
            model.save(method.model, catalogue)
            for path, users in ((method.ranking, test), (method.validation_ranking, stacking)):
                histories = index_lists(before_target(users), item_ids)
                write_ranking(path, rank_users(model, histories, users[USER], item_ids, settings.depth))
            seconds[name] = round(time.monotonic() - start, 3)
            chosen[name] = dict(model.chosen)
            settings_found = "".join(f", {setting} {value:.4g}" for setting, value in model.chosen.items())
            log.info("baseline %s: %s users in %.1f s%s", name, f"{test.height:,}", seconds[name], settings_found)
    return {
        "users": test.height,
        "items": len(item_ids),
        "baselines": sorted(seconds),
        "seconds": seconds,
        "chosen": {name: settings for name, settings in chosen.items() if settings},
    }


def _load_baselines(names: Sequence[str]) -> dict[str, ModuleType]:
    if wrong := NOT_BASELINES.intersection(names):
        known = ", ".join(sorted([*baseline_names(), *OFF_BY_DEFAULT]))
        raise SettingsError(f"retrieval.baselines: {min(wrong)!r} is no baseline; known: {known}")
    return {name: load_plugin(__name__, name) for name in sorted(set(names))}


def rank_users(
    model: Model, histories: ItemLists, users: pl.Series, item_ids: pl.Series, depth: int
) -> Iterator[pl.DataFrame]:
    """Yield frames of `RANKING_SCHEMA`: `depth` items per user, and one more per distinct item of the history."""
    for batch, part in histories.batches(USERS_PER_BATCH):
        lengths: NDArray[np.int64] = depth + np.diff(part.incidence(model.n_items).indptr)
        items, scores = model.candidates(part, min(int(lengths.max()), model.n_items))
        items[np.arange(items.shape[1]) >= lengths[:, None]] = -1
        yield to_ranking(users[batch], item_ids, items, scores)
