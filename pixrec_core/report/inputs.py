"""Inputs of the report, read and validated."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pixrec_core import files
from pixrec_core.data import sequences
from pixrec_core.data.contract import CheckResult
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM, TIMESTAMP, TITLE
from pixrec_core.serving.promotion import read_promotion

T = TypeVar("T")

#: The two sides of the ablation, and its control.
MULTIMODAL, TEXT_ONLY, SHUFFLED_IMAGES = ("multimodal", "text_only", "shuffled_images")
DATA_STAGES = ("raw", "items", "interactions", "images", "sequences")
MAX_TITLE_LEN = 200


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Estimate(_Record):
    """A mean over users, with its 95 % interval if one was computed."""

    value: float
    low: float | None = None
    high: float | None = None


class Difference(_Record):
    """Mean of method `a` minus method `b` over the same users, with its 95 % interval."""

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float


class Group(_Record):
    """Metrics of a group of users; None for an empty group."""

    users: int
    methods: dict[str, dict[str, float | None]]


class Protocol(_Record):
    """Metrics under one rule for items that the user already has."""

    users: int
    left_out: int = 0
    methods: dict[str, dict[str, Estimate]]
    groups: dict[str, Group] = {}
    paired: list[Difference] = []


class Generative(_Record):
    """Metrics of a variant's generative rankers and its dense ranking over the same users."""

    users: int
    users_per_second: dict[str, float]
    protocols: dict[str, Protocol] = Field(min_length=1)


class InputGroup(_Record):
    """Metrics of a group of users with all inputs of the blend, and what is lost without each."""

    users: int
    whole: dict[str, Estimate]
    lost: dict[str, dict[str, Estimate]]


class InputsWorth(_Record):
    """What each input of the blend is worth: protocol to group."""

    users: int
    protocols: dict[str, dict[str, InputGroup]]


class Metrics(_Record):
    """Metrics of the evaluation stage; shares are 0 to 1."""

    users: int
    items: int
    depth: int
    share_tied: float | None = None
    share_cold: float | None = None
    share_repeat_targets: float | None = None
    protocols: dict[str, Protocol] = Field(min_length=1)
    generative: dict[str, Generative] = {}
    inputs: InputsWorth | None = None


class Training(_Record):
    """Training curves: a mapping from term to value per epoch."""

    epochs: list[dict[str, float | None]] = []
    best_epoch: int | None = None
    examples: int | None = None
    parameters: int | None = None


@dataclass(frozen=True)
class Inputs:
    """All inputs of the page.

    Methods that the page shows in pictures and curves come in its order: the served one first, then the two sides of
    the ablation.

    Attributes:
        served: the method that serves the dataset; None before a promotion.
        sequences: one row per test user, `USER` and `ITEMS`; the last item is the target.
        titles: titles of all items of the catalogue; "" for none.
        rankings: rankings by shown method, in `RANKING_SCHEMA`.
        training: training curves by shown method.
        stats: stats of each data stage that has finished.
        index_stats: stats of the item index by shown method.
        contract: results of the data contract, by artefact.
        period: first and last day of the interactions (ISO), or None.
    """

    dataset: str
    paths: DatasetPaths
    metrics: Metrics
    served: str | None
    sequences: pl.DataFrame
    titles: dict[str, str]
    rankings: dict[str, pl.LazyFrame]
    training: dict[str, Training]
    stats: dict[str, dict[str, Any]]
    index_stats: dict[str, dict[str, Any]]
    contract: dict[str, list[CheckResult]]
    period: tuple[str, str] | None


def read_inputs(dataset: str, paths: DatasetPaths, methods: Sequence[str]) -> Inputs:
    """Read and validate all inputs of the page.

    Raises:
        MissingArtefactError: metrics or sequences have not been built.
        ArtefactError: a file is damaged.
    """
    served = read_promotion(paths.promoted).method if paths.promoted.manifest.exists() else None
    shown = [name for name in dict.fromkeys((served, MULTIMODAL, TEXT_ONLY)) if name is not None]
    ranked = paths.ranked_methods(methods)
    towers = {name: paths.variant(name) for name in shown if name in methods}
    curves = {name: folder.checkpoint / "training.json" for name, folder in towers.items()}
    contracts = {stage: paths.contract(stage) for stage in DATA_STAGES}
    return Inputs(
        dataset=dataset,
        paths=paths,
        metrics=read_metrics(paths),
        served=served,
        sequences=sequences.read_measured_sequences(paths),
        titles=titles_of(sequences.read_items(paths)),
        rankings={name: pl.scan_parquet(ranked[name].ranking, glob=False) for name in shown if name in ranked},
        training={name: _read_json(path, Training) for name, path in curves.items() if path.exists()},
        stats=_read_stats({stage: paths.stamp(stage) for stage in DATA_STAGES}),
        index_stats=_read_stats({name: folder.stamp("item_index") for name, folder in towers.items()}),
        contract={stage: _read_json(path, list[CheckResult]) for stage, path in contracts.items() if path.exists()},
        period=_period(paths.interactions),
    )


def read_metrics(paths: DatasetPaths) -> Metrics:
    """Read the metrics of the evaluation stage.

    Raises:
        MissingArtefactError: the dataset has not been evaluated.
        ArtefactError: the file is damaged.
    """
    return _read_json(files.require(paths.metrics), Metrics)


def _read_stats(stamps: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Stats of the stages that have finished."""
    return {name: _read_json(path, dict[str, Any]).get("stats", {}) for name, path in stamps.items() if path.exists()}


def _read_json(path: Path, shape: type[T]) -> T:
    """The value of a JSON file, validated against its type."""
    try:
        return TypeAdapter(shape).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        message = f"{path}: {field}: {first['msg']}; run the stage that builds it again"
    except ValueError as error:  # no JSON, or no UTF-8
        message = f"{path} is damaged ({error}); run the stage that builds it again"
    raise ArtefactError(message)


def titles_of(items: pl.DataFrame) -> dict[str, str]:
    """Title by item, on one line, cut to a printable length, without control characters (HTML forbids them)."""
    title = pl.col(TITLE).fill_null("").str.replace_all(r"[\s\p{Cc}]+", " ").str.strip_chars()
    cut = pl.when(title.str.len_chars() > MAX_TITLE_LEN).then(title.str.head(MAX_TITLE_LEN) + "…").otherwise(title)
    return dict(items.select(ITEM, cut).iter_rows())


def _period(interactions: Path) -> tuple[str, str] | None:
    """First and last day, formatted by polars: Python's datetime has no years outside 1 to 9999."""
    if not interactions.exists():
        return None
    time = pl.col(TIMESTAMP)
    ends = pl.concat_list(time.min(), time.max()).alias("ends").explode()
    days = pl.from_epoch(ends, time_unit="ms").dt.strftime("%Y-%m-%d")
    first, last = pl.scan_parquet(interactions, glob=False).select(days).collect().to_series()
    return (first, last) if first is not None else None
