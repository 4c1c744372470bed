"""What the report reads, each input checked once where it enters."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from pixrec_core import files
from pixrec_core.data import sequences
from pixrec_core.errors import ArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import ITEM, TEST, TIMESTAMP, TITLE

T = TypeVar("T")

#: The two sides of the ablation, in the order of the page.
MULTIMODAL, TEXT_ONLY = VARIANTS = ("multimodal", "text_only")
STAGES_WITH_STATS = ("raw", "items", "interactions", "images", "sequences")
LONGEST_TITLE = 200


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Estimate(_Record):
    """A mean over users and its 95 % interval, where one was computed."""

    value: float
    low: float | None = None
    high: float | None = None


class Difference(_Record):
    """Method `a` minus method `b`, paired by user, with its 95 % interval."""

    a: str
    b: str
    metric: str
    difference: float
    low: float
    high: float


class Group(_Record):
    """Metrics of some of the users; null where the group is empty."""

    users: int
    methods: dict[str, dict[str, float | None]]


class Protocol(_Record):
    """Metrics under one rule about items that the user already has."""

    users: int
    left_out: int = 0
    methods: dict[str, dict[str, Estimate]]
    groups: dict[str, Group] = {}
    paired: list[Difference] = []


class Generative(_Record):
    """Rankings by a variant's language model and its dense one, over the same users."""

    users: int
    users_per_second: dict[str, float]
    protocols: dict[str, Protocol] = Field(min_length=1)


class Metrics(_Record):
    """The evaluation's metrics; shares lie between 0 and 1."""

    users: int
    items: int
    depth: int
    share_tied: float | None = None
    share_cold: float | None = None
    share_repeat_targets: float | None = None
    protocols: dict[str, Protocol] = Field(min_length=1)
    generative: dict[str, Generative] = {}


class Training(_Record):
    """Training curves: one mapping of term to value an epoch."""

    epochs: list[dict[str, float | None]] = []
    best_epoch: int | None = None
    examples: int | None = None
    parameters: int | None = None


class Check(_Record):
    """One line of the data contract; nothing was observed where there was nothing to measure."""

    name: str
    passed: bool
    observed: float | None
    expected: str
    severity: str


@dataclass(frozen=True)
class Inputs:
    """All that the page tells.

    Attributes:
        sequences: one row a test user, `USER` and `ITEMS`, whose last one is the target.
        titles: of every item of the catalogue; "" where it has none.
        rankings: by variant, in `RANKING_SCHEMA`; only variants that have been ranked.
        training: by variant; only variants that have been trained.
        stats: what each data stage counted, and each variant's index, by stage; only those that left a stamp.
        contract: results of the data contract by artefact; only those that were checked.
        period: first and last day of the interactions (ISO), or None.
    """

    dataset: str
    paths: DatasetPaths
    metrics: Metrics
    sequences: pl.DataFrame
    titles: dict[str, str]
    rankings: dict[str, pl.LazyFrame]
    training: dict[str, Training]
    stats: dict[str, dict[str, Any]]
    contract: dict[str, list[Check]]
    period: tuple[str, str] | None


def read(dataset: str, paths: DatasetPaths, variants: Sequence[str]) -> Inputs:
    """Read and check everything that the page shows.

    Raises:
        MissingArtefactError: metrics or sequences have not been made.
        ArtefactError: a file is no JSON, or not of its shape.
    """
    own = {name: paths.variant(name) for name in VARIANTS if name in variants}
    curves = {name: variant.checkpoint / "training.json" for name, variant in own.items()}
    stamps = {stage: paths.stamp(stage) for stage in STAGES_WITH_STATS}
    contracts = {stage: paths.contract(stage) for stage in STAGES_WITH_STATS}
    stamps |= {f"item_index, {name}": variant.stamp("item_index") for name, variant in own.items()}
    return Inputs(
        dataset=dataset,
        paths=paths,
        metrics=_json(files.require(paths.metrics), Metrics),
        sequences=sequences.read_sequences(paths, TEST),
        titles=titles_of(sequences.read_items(paths)),
        rankings={name: pl.scan_parquet(v.ranking, glob=False) for name, v in own.items() if v.ranking.exists()},
        training={name: _json(path, Training) for name, path in curves.items() if path.exists()},
        stats={stage: _json(path, dict[str, Any]).get("stats", {}) for stage, path in stamps.items() if path.exists()},
        contract={stage: _json(path, list[Check]) for stage, path in contracts.items() if path.exists()},
        period=_period(paths.interactions),
    )


def _json(path: Path, shape: type[T]) -> T:
    """The value of a JSON file, checked against its shape."""
    try:
        return TypeAdapter(shape).validate_python(json.loads(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        message = f"{path}: {place}: {first['msg']}; run the stage that makes it again"
    except ValueError as error:  # no JSON, or no UTF-8
        message = f"{path} is damaged ({error}); run the stage that makes it again"
    raise ArtefactError(message)


def titles_of(items: pl.DataFrame) -> dict[str, str]:
    """Titles on one line and short enough to print. HTML has no control characters."""
    title = pl.col(TITLE).fill_null("").str.replace_all(r"[\s\p{Cc}]+", " ").str.strip_chars()
    cut = pl.when(title.str.len_chars() > LONGEST_TITLE).then(title.str.head(LONGEST_TITLE) + "…").otherwise(title)
    return dict(items.select(ITEM, cut).iter_rows())


def _period(interactions: Path) -> tuple[str, str] | None:
    """First and last day. Formatted by polars: hostile timestamps lie outside Python's years 1 to 9999."""
    if not interactions.exists():
        return None
    time = pl.col(TIMESTAMP)
    ends = pl.concat_list(time.min(), time.max()).alias("ends").explode()
    days = pl.from_epoch(ends, time_unit="ms").dt.strftime("%Y-%m-%d")
    first, last = pl.scan_parquet(interactions, glob=False).select(days).collect().to_series()
    return (first, last) if first is not None else None
