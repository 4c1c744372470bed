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
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, Self

import numpy as np
import polars as pl
from numpy.typing import NDArray

from pixrec_core import files
from pixrec_core.child_process import map_in_processes
from pixrec_core.data.sequences import catalogue_digest, read_items, read_measured_sequences, read_sequences
from pixrec_core.errors import SettingsError, did_you_mean
from pixrec_core.evaluation.validation import stacking_users
from pixrec_core.paths import DatasetPaths
from pixrec_core.plugins import load_plugin, plugin_names
from pixrec_core.ranking_table import to_ranking, write_ranking
from pixrec_core.recommenders.base import ItemLists, Model, TrainData, before_target, index_lists, model_method
from pixrec_core.schemas import ITEM, TRAIN_COUNT, USER, VALIDATION
from pixrec_core.settings import RetrievalSettings
from pixrec_core.stages import Stats

log = logging.getLogger(__name__)

#: Modules that the stage `baselines` does not fit: the interface, and a method that learns from the other methods.
NOT_BASELINES: Final = frozenset({"base", "blend"})
#: Methods that are fitted only if `retrieval.baselines` names them.
OFF_BY_DEFAULT: Final = frozenset({"semantic_ids"})
USERS_PER_BATCH: Final = 1024
CELLS_PER_BATCH: Final = 1_024_000  # users x items of the longest history
#: Baselines are fitted in so many processes. `LONGEST` take most of the time, so more processes would gain little.
PROCESSES: Final = 2
LONGEST: Final = frozenset({"gru4rec", "sasrec"})
MIN_INTERACTIONS: Final = 20_000  # in training sequences; with fewer, one process is as fast


def baseline_names() -> list[str]:
    """Return the names of the methods that the stage `baselines` fits by default, sorted."""
    return [name for name in plugin_names(__name__) if name not in NOT_BASELINES | OFF_BY_DEFAULT]


def check_baselines(settings: RetrievalSettings) -> None:
    """Check the names in `retrieval.baselines`, without importing the modules.

    Raises:
        SettingsError: a name is that of no baseline.
    """
    known = [name for name in plugin_names(__name__) if name not in NOT_BASELINES]
    for name in settings.baselines:
        if name not in known:
            raise SettingsError(f"retrieval.baselines: {name!r} is no baseline{did_you_mean(name, known)}")


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
        MissingArtefactError: the stage `sequences` or `item_features` has not run.
        ArtefactError: a file of item features is damaged.
        ContractError: sequences hold held-out items.
        SettingsError: `retrieval.baselines` names a method that is no baseline.
        LostProcessError: one of several processes was killed.
    """
    check_baselines(settings)
    names = sorted(set(settings.baselines or baseline_names()))
    for name in names:  # a plug-in that cannot be imported is found before any is fitted
        load_plugin(__name__, name)
    items = read_items(paths)
    fitted: dict[str, _Fitted] = {}
    with files.replacing(paths.baselines) as folder:
        folder.mkdir()
        inputs = paths, folder, settings.depth
        results: Iterable[_Fitted]
        if len(names) > 1 and items[TRAIN_COUNT].sum() >= MIN_INTERACTIONS and (os.cpu_count() or 1) >= PROCESSES:
            longest_first = sorted(names, key=lambda name: name not in LONGEST)
            results = map_in_processes(partial(_fit_in_process, inputs), longest_first, PROCESSES)
        else:
            results = map(_Fitter.read(*inputs).fit, names)
        for each in results:
            fitted[each.name] = each
            found = "".join(f", {setting} {value:.4g}" for setting, value in each.chosen.items())
            log.info("baseline %s: %s users in %.1f s%s", each.name, f"{each.users:,}", each.seconds, found)
    return {
        "users": fitted[names[0]].users,
        "items": items.height,
        "baselines": names,
        "seconds": {name: fitted[name].seconds for name in names},
        "chosen": {name: fitted[name].chosen for name in names if fitted[name].chosen},
    }


@dataclass(frozen=True)
class _Fitted:
    """A baseline whose model and rankings are files.

    Attributes:
        name: its method.
        users: test users that it has ranked for.
        seconds: of fitting and ranking.
        chosen: its settings; see `Model`.
    """

    name: str
    users: int
    seconds: float
    chosen: dict[str, float]


@dataclass(frozen=True)
class _Fitter:
    """Fits one baseline after the other. `folder` takes the place of `paths.baselines` until all are complete."""

    paths: DatasetPaths
    folder: Path
    depth: int
    train: TrainData
    item_ids: pl.Series
    catalogue: str
    test: pl.DataFrame
    stacking: pl.DataFrame

    @classmethod
    def read(cls, paths: DatasetPaths, folder: Path, depth: int) -> Self:
        validation = read_sequences(paths, VALIDATION)
        stacking = validation.filter(stacking_users(validation.height))
        item_ids, test = read_items(paths)[ITEM], read_measured_sequences(paths)
        return cls(paths, folder, depth, TrainData.read(paths), item_ids, catalogue_digest(item_ids), test, stacking)

    def fit(self, name: str) -> _Fitted:
        """Fit a baseline, save its model, and write its rankings."""
        start = time.monotonic()
        model = load_plugin(__name__, name).fit(self.train)
        target = self.paths.baseline(name, self.folder)
        model.save(target.model, self.catalogue)
        for path, users in ((target.ranking, self.test), (target.validation_ranking, self.stacking)):
            histories = index_lists(before_target(users), self.item_ids)
            write_ranking(path, rank_users(model, histories, users[USER], self.item_ids, self.depth))
        return _Fitted(name, self.test.height, round(time.monotonic() - start, 3), dict(model.chosen))


def _fit_in_process(inputs: tuple[DatasetPaths, Path, int], name: str) -> _Fitted:
    """Fit a baseline in a process that ends with the stage, so what it has read stays valid."""
    return _read_once(*inputs).fit(name)


_read_once = lru_cache(maxsize=1)(_Fitter.read)


def rank_users(
    model: Model, histories: ItemLists, users: pl.Series, item_ids: pl.Series, depth: int
) -> Iterator[pl.DataFrame]:
    """Yield frames of `RANKING_SCHEMA`: `depth` items per user, and one more per distinct item of the history."""
    for batch, part in histories.batches(USERS_PER_BATCH, CELLS_PER_BATCH):
        lengths: NDArray[np.int64] = depth + np.diff(part.incidence(model.n_items).indptr)
        items, scores = model.candidates(part, min(int(lengths.max()), model.n_items))
        items[np.arange(items.shape[1]) >= lengths[:, None]] = -1
        yield to_ranking(users[batch], item_ids, items, scores)
