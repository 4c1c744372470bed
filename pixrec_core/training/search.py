"""Search for better settings of a training, on validation users. Optuna proposes values; each trial is a training.

A proposal depends only on the finished trials, which are kept in one JSON file. So a search that is killed continues as
if nothing had happened, and its training resumes after the last complete epoch.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Sequence
from operator import attrgetter, itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pixrec_core import files
from pixrec_core.errors import SettingsError
from pixrec_core.settings import DatasetSettings
from pixrec_core.stages import Stats

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)

Values = dict[str, Any]  # by path: {"training.learning_rate": 0.0015}
Space = dict[str, "BaseDistribution"]

TRIALS: Final = "trials.json"
BEST: Final = "best.toml"
SCORE: Final = "validation_ndcg@10"


def search_space(settings: DatasetSettings, variant: str) -> Space:
    """Return what a search varies, around the present settings: path of a setting -> distribution.

    Settings that the variant or the encoders do not read are left out, and so are those of the model if the training
    starts from a joint one.

    Raises:
        SettingsError: Optuna is not installed.
    """
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ImportError:
        raise SettingsError("Optuna is not installed: pip install '.[tune]' in the checkout") from None

    def around(value: float, factor: float) -> FloatDistribution:
        return FloatDistribution(_rounded(value / factor), _rounded(value * factor), log=True)

    def half_or_double(value: int, least: int = 1) -> CategoricalDistribution:
        return CategoricalDistribution(sorted({max(least, value // 2), value, 2 * value}))

    model, training = settings.model, settings.training
    space: Space = {
        "training.learning_rate": around(training.learning_rate, 4),
        "training.temperature": around(training.temperature, 2),
        "training.batch_size": half_or_double(training.batch_size, training.processes),
    }
    if training.lr_scheduler_type == "cosine":  # otherwise patience chooses the number of epochs
        space["training.epochs"] = IntDistribution(max(1, training.epochs // 2), 2 * training.epochs)
    if settings.start_from:
        return space
    space["model.embedding_dim"] = half_or_double(model.embedding_dim)
    if model.user_encoder == "items":
        space["model.user_pooling"] = CategoricalDistribution(["mean", "gru", "transformer"])
        if model.item_encoder == "frozen" and variant != "text_only":
            space["model.photo_dropout"] = FloatDistribution(0, max(0.6, model.photo_dropout))
    if variant == "collaborative":
        space["model.item_id_dropout"] = FloatDistribution(0, max(0.9, model.item_id_dropout))
    return space


def with_values(settings: DatasetSettings, values: Values) -> DatasetSettings:
    """Return settings with other values of [model] and [training]."""
    sections = {
        name: getattr(settings, name).model_copy(update=changed) for name, changed in _by_section(values).items()
    }
    return settings.model_copy(update=sections)


def _by_section(values: Values) -> dict[str, Values]:
    sections: dict[str, Values] = {}
    for path, value in values.items():
        section, name = path.split(".")
        sections.setdefault(section, {})[name] = value
    return sections


def search(
    settings: DatasetSettings,
    space: Space,
    folder: Path,
    study: str,
    minutes: float,
    train: Callable[[Values, str], Stats],
) -> Stats:
    """Train with one proposal after another, the present settings first, and return all trials of the study so far.

    Args:
        settings: the present settings of the dataset.
        space: what `search_space` returns for them.
        folder: holds `trials.json`, which is replaced if it is of another study.
        study: identifies everything that a trial depends on, except for its values.
        minutes: no trial starts after them, but the first of a call; a started one is finished. With 0, none starts.
        train: trains with values, under an id of its own, and returns what the checkpoint records. If it diverges
            or does not fit into memory, its NDCG@10 is 0, and the search continues, unless it has the present settings.

    Returns:
        `trials`: values and NDCG@10 on validation users of each, the present settings first, and `error` if there was
        one. `validation_users`: their number, if there is a trial.
    """
    end = time.monotonic() + 60 * minutes
    found: Stats = {"study": study}
    if (folder / TRIALS).exists() and (saved := files.read_json(folder / TRIALS))["study"] == study:
        found = saved
    trials: list[Stats] = found.setdefault("trials", [])
    while minutes:
        present = {path: attrgetter(path)(settings) for path in space}
        values = propose(space, trials, settings.training.seed) if trials else present
        shown = "present settings" if values == present else ", ".join(f"{p} {v}" for p, v in values.items())
        log.info("trial %d: %s", len(trials) + 1, shown)
        try:
            stats = train(values, hashlib.sha256(json.dumps([study, len(trials), values]).encode()).hexdigest())
        except (MemoryError, RuntimeError, SettingsError) as error:  # of memory, PyTorch raises a RuntimeError
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
            if not trials or not (isinstance(error, SettingsError) or "memory" in reason.lower()):
                raise
            log.warning("warning: trial %d failed (%s); the search continues", len(trials) + 1, reason)
            trials.append({"values": values, SCORE: 0.0, "best_epoch": 0, "error": reason})
        else:
            trials.append({"values": values, SCORE: stats[SCORE], "best_epoch": stats["best_epoch"]})
            found["validation_users"] = sum(data["validation_users"] for data in stats["data"].values())
        files.write_json(folder / TRIALS, found)
        scores = [trial[SCORE] for trial in trials]
        log.info("trial %d: NDCG@10 %.4f; best %.4f, first %.4f", len(trials), scores[-1], max(scores), scores[0])
        if time.monotonic() >= end:
            break
    return found


def propose(space: Space, trials: Sequence[Stats], seed: int) -> Values:
    """Return the values of the next trial, given all finished ones; numbers have three digits."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed + len(trials)))
    for trial in trials:
        study.add_trial(optuna.create_trial(params=trial["values"], distributions=space, value=trial[SCORE]))
    values = study.ask(space).params
    return {path: _rounded(value) if isinstance(value, float) else value for path, value in values.items()}


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def changed_settings(trials: Sequence[Stats]) -> dict[str, Values]:
    """Return what the best trial has other than the first, by section and name; nothing if the first is the best."""
    first, best = trials[0]["values"], max(trials, key=itemgetter(SCORE))["values"]
    return _by_section({path: value for path, value in best.items() if value != first[path]})
