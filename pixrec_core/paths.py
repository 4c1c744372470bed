"""Paths of all artefacts.

data/<dataset>/
  raw/                      files that the source downloaded or generated
  items.parquet             the catalogue             items.quarantine.parquet         its rejected rows
  interactions.parquet      user, item, time, rating  interactions.quarantine.parquet  its rejected rows
  images/ab/<key>.jpg       photos                    images.parquet                   one row per photo: its outcome
  images.signs.parquet      size and modification time of the local files that photos were read from
  cache/                    decoded or encoded photos, keyed by content; safe to delete
  sequences.duckdb          validated sequences, with their items and interactions
  item_features/            vectors of item texts and photos by frozen encoders: data/item_features.py
  contract/<artefact>.json  result of each expectation of the data contract on items, interactions, images, sequences
  baselines/<method>/       model/  ranking.parquet, of test users  validation_ranking.parquet, of stacking users
  variants/<variant>/       checkpoint/  item_vectors/  item_index/
                            ranking.parquet, of test users  validation_ranking.parquet, of stacking users
                            generative/<ranker>.parquet, speeds.json: rankings by the language model, on request
                            curves/: TensorBoard event files, written during the training
                            tune/  trials.json  best.toml: settings that `pixrec tune` tried, and the best of them
  blend/                    model.txt  items.safetensors  blend.json
                            ranking.parquet, of test users  validation_ranking.parquet, of selection users
  promoted/                 numbered copies of what serves, each in this layout; promoted.json names the present one
  refit/                    networks while they are trained on all interactions, in this layout; empty afterwards
  evaluation/               metrics.json  metrics.csv  outcomes.parquet
  report/                   index.html  report.md
  online/                   answers of the server, as JSON lines  metrics.json: their hit rates
  stamps/                   one JSON record per finished stage, written last

data/<joint training>/variants/<variant>/ has the checkpoint and curves of a training on several datasets.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

BLEND: Final = "blend"  # the method that learns from all others


class _Below:
    """A path below the folder `root` of its owner."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, owner: Any, _: type | None = None) -> Path:
        path: Path = owner.root / self._name
        return path


@dataclass(frozen=True)
class DatasetPaths:
    """Artefacts of one dataset."""

    root: Path

    raw = _Below("raw")
    raw_manifest = _Below("raw.json")
    items = _Below("items.parquet")
    items_quarantine = _Below("items.quarantine.parquet")
    interactions = _Below("interactions.parquet")
    interactions_quarantine = _Below("interactions.quarantine.parquet")
    images = _Below("images")
    images_manifest = _Below("images.parquet")
    photo_snapshot = _Below("images.signs.parquet")
    sequences = _Below("sequences.duckdb")
    item_features = _Below("item_features")
    baselines = _Below("baselines")
    metrics = _Below("evaluation/metrics.json")
    metrics_table = _Below("evaluation/metrics.csv")
    outcomes = _Below("evaluation/outcomes.parquet")
    report = _Below("report")
    online = _Below("online")
    online_metrics = _Below("online/metrics.json")

    # No artefacts:
    cache = _Below("cache")
    images_journal = _Below("images.journal.jsonl")  # outcomes of earlier runs of a download that has not finished
    sequences_rejected = _Below("sequences.rejected.duckdb")  # the last sequences that violated their contract
    refit = _Below("refit")

    @classmethod
    def of(cls, data_dir: Path, dataset: str) -> "DatasetPaths":
        """Paths of the dataset of that name."""
        return cls(data_dir / dataset)

    def images_journal_of(self, partition: int) -> Path:
        """Journal of one partition of a download that has not finished."""
        return self.root / f"images.journal.{partition}.jsonl"

    @property
    def images_journals(self) -> list[Path]:
        """The main journal, then the existing ones of partitions."""
        return [self.images_journal, *sorted(self.root.glob("images.journal.*.jsonl"))]

    def image(self, item: str) -> Path:
        """The photo of an item. Item ids are untrusted, so only their hash reaches the file system."""
        key = hashlib.sha256(item.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return self.images / key[:2] / f"{key}.jpg"

    def contract(self, artefact: str) -> Path:
        """Result of each expectation of an artefact's contract. One file per artefact, since stages may run at once."""
        return self.root / "contract" / f"{artefact}.json"

    def baseline(self, method: str, folder: Path | None = None) -> "BaselinePaths":
        """Artefacts of one baseline, below `folder` while it is being built."""
        return BaselinePaths((folder or self.baselines) / method)

    def variant(self, variant: str) -> "VariantPaths":
        """Artefacts of one trained variant of this dataset."""
        return VariantPaths(self.root / "variants" / variant, self, variant)

    @property
    def blend(self) -> "MethodPaths":
        """Artefacts of the learned blend of all methods."""
        return MethodPaths(self.root / "blend")

    def ranked_methods(self, variants: Iterable[str]) -> dict[str, "MethodPaths"]:
        """Artefacts of each method that has ranked for test users: baselines by name, then variants, then the blend."""
        names = sorted(path.parent.name for path in self.baselines.glob("*/ranking.parquet"))
        found: dict[str, MethodPaths] = {name: self.baseline(name) for name in names}
        found |= {name: self.variant(name) for name in variants} | {BLEND: self.blend}
        return {name: each for name, each in found.items() if each.ranking.exists()}

    @property
    def promoted(self) -> "PromotedPaths":
        return PromotedPaths(self.root / "promoted")

    def stamp(self, stage: str) -> Path:
        return self.root / "stamps" / f"{stage}.json"


@dataclass(frozen=True)
class MethodPaths:
    """Artefacts of one method of one dataset. The folder of the blend is empty if no blend was trained."""

    root: Path

    ranking = _Below("ranking.parquet")
    validation_ranking = _Below("validation_ranking.parquet")

    @property
    def for_serving(self) -> list[Path]:
        """Files and folders that a promotion needs."""
        return [self.root]


class BaselinePaths(MethodPaths):
    """Artefacts of one baseline of one dataset."""

    model = _Below("model")

    @property
    def for_serving(self) -> list[Path]:
        return [self.model, self.ranking]


@dataclass(frozen=True)
class VariantPaths(MethodPaths):
    """Artefacts of one variant of one dataset or joint training."""

    dataset: DatasetPaths
    variant: str

    checkpoint = _Below("checkpoint")
    item_vectors = _Below("item_vectors")
    item_index = _Below("item_index")
    generative = _Below("generative")
    training = _Below("training")  # state from which a killed training resumes; no artefact
    curves = _Below("curves")  # no artefact
    tune = _Below("tune")  # no artefact

    @property
    def for_serving(self) -> list[Path]:
        return [self.checkpoint, self.item_vectors, self.item_index, self.ranking]

    def stamp(self, stage: str) -> Path:
        return self.root / "stamps" / f"{stage}.json"


@dataclass(frozen=True)
class PromotedPaths:
    """What serves: numbered copies of a dataset's artefacts, and a manifest that names the present one."""

    root: Path

    manifest = _Below("promoted.json")  # each copy has one of this name too

    def copies(self, number: int) -> DatasetPaths:
        """Artefacts of one promotion, in the layout of their originals."""
        return DatasetPaths(self.root / str(number))
