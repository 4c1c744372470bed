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
from typing import Final

BLEND: Final = "blend"  # the method that learns from all others


@dataclass(frozen=True)
class DatasetPaths:
    """Artefacts of one dataset."""

    root: Path

    @classmethod
    def of(cls, data_dir: Path, dataset: str) -> "DatasetPaths":
        """Paths of the dataset of that name."""
        return cls(data_dir / dataset)

    @property
    def raw(self) -> Path:
        return self.root / "raw"

    @property
    def raw_manifest(self) -> Path:
        return self.root / "raw.json"

    @property
    def items(self) -> Path:
        return self.root / "items.parquet"

    @property
    def items_quarantine(self) -> Path:
        return self.root / "items.quarantine.parquet"

    @property
    def interactions(self) -> Path:
        return self.root / "interactions.parquet"

    @property
    def interactions_quarantine(self) -> Path:
        return self.root / "interactions.quarantine.parquet"

    @property
    def images(self) -> Path:
        return self.root / "images"

    @property
    def online(self) -> Path:
        return self.root / "online"

    @property
    def online_metrics(self) -> Path:
        return self.online / "metrics.json"

    @property
    def images_manifest(self) -> Path:
        return self.root / "images.parquet"

    @property
    def photo_snapshot(self) -> Path:
        """Size and modification time of each local file that a photo was read from; not an artefact."""
        return self.root / "images.signs.parquet"

    @property
    def images_journal(self) -> Path:
        """Main journal of a running download: outcomes of earlier runs; not an artefact."""
        return self.root / "images.journal.jsonl"

    def images_journal_of(self, partition: int) -> Path:
        """Journal of one partition of a running download."""
        return self.root / f"images.journal.{partition}.jsonl"

    @property
    def images_journals(self) -> list[Path]:
        """The main journal, then the existing ones of partitions."""
        return [self.images_journal, *sorted(self.root.glob("images.journal.*.jsonl"))]

    def image(self, item: str) -> Path:
        """The photo of an item. Item ids are untrusted, so only their hash reaches the file system."""
        key = hashlib.sha256(item.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return self.images / key[:2] / f"{key}.jpg"

    @property
    def cache(self) -> Path:
        """Arrays that can be computed again from photos and a backbone; safe to delete."""
        return self.root / "cache"

    @property
    def sequences(self) -> Path:
        return self.root / "sequences.duckdb"

    @property
    def item_features(self) -> Path:
        """Vectors of item texts and photos, and their encoders."""
        return self.root / "item_features"

    @property
    def sequences_rejected(self) -> Path:
        """The last sequences file that violated its contract, kept for inspection; not an artefact."""
        return self.root / "sequences.rejected.duckdb"

    def contract(self, artefact: str) -> Path:
        """Result of each expectation of an artefact's contract, also of a violated one.

        One file per artefact, since stages may run concurrently.
        """
        return self.root / "contract" / f"{artefact}.json"

    @property
    def baselines(self) -> Path:
        return self.root / "baselines"

    def baseline(self, method: str, folder: Path | None = None) -> "BaselinePaths":
        """Artefacts of one baseline; in another folder than `baselines` while that one is being built."""
        return BaselinePaths((folder or self.baselines) / method)

    def baseline_rankings(self) -> dict[str, Path]:
        """The ranking of test users of each baseline that was built, sorted by name."""
        names = sorted(path.parent.name for path in self.baselines.glob("*/ranking.parquet"))
        return {name: self.baseline(name).ranking for name in names}

    @property
    def blend(self) -> "MethodPaths":
        """Artefacts of the learned blend of all methods."""
        return MethodPaths(self.root / "blend")

    def ranked_methods(self, variants: Iterable[str]) -> dict[str, "MethodPaths"]:
        """Artefacts of each method that has ranked for test users: baselines by name, then variants, then the blend."""
        found: dict[str, MethodPaths] = {name: self.baseline(name) for name in self.baseline_rankings()}
        found |= {name: self.variant(name) for name in variants} | {BLEND: self.blend}
        return {name: each for name, each in found.items() if each.ranking.exists()}

    @property
    def promoted(self) -> "PromotedPaths":
        return PromotedPaths(self.root / "promoted")

    @property
    def refit(self) -> Path:
        """Networks while they are trained on all interactions; not an artefact."""
        return self.root / "refit"

    @property
    def metrics(self) -> Path:
        return self.root / "evaluation" / "metrics.json"

    @property
    def metrics_table(self) -> Path:
        return self.root / "evaluation" / "metrics.csv"

    @property
    def outcomes(self) -> Path:
        return self.root / "evaluation" / "outcomes.parquet"

    @property
    def report(self) -> Path:
        return self.root / "report"

    def variant(self, variant: str) -> "VariantPaths":
        """Artefacts of one trained variant of this dataset."""
        return VariantPaths(self.root / "variants" / variant, self, variant)

    def stamp(self, stage: str) -> Path:
        return self.root / "stamps" / f"{stage}.json"


@dataclass(frozen=True)
class MethodPaths:
    """Artefacts of one method of one dataset; as they are for the blend, whose folder is empty where there is none."""

    root: Path

    @property
    def for_serving(self) -> list[Path]:
        """Files and folders that a promotion needs."""
        return [self.root]

    @property
    def ranking(self) -> Path:
        """Of test users."""
        return self.root / "ranking.parquet"

    @property
    def validation_ranking(self) -> Path:
        """Of validation users on whom no setting was chosen; by the blend, of those that it did not learn from."""
        return self.root / "validation_ranking.parquet"


class BaselinePaths(MethodPaths):
    """Artefacts of one baseline of one dataset."""

    @property
    def for_serving(self) -> list[Path]:
        return [self.model, self.ranking]

    @property
    def model(self) -> Path:
        return self.root / "model"


@dataclass(frozen=True)
class VariantPaths(MethodPaths):
    """Artefacts of one variant of one dataset or joint training."""

    dataset: DatasetPaths
    variant: str

    @property
    def for_serving(self) -> list[Path]:
        return [self.checkpoint, self.item_vectors, self.item_index, self.ranking]

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def training(self) -> Path:
        """State from which a killed training resumes; not an artefact."""
        return self.root / "training"

    @property
    def curves(self) -> Path:
        """TensorBoard event files of the last training; not an artefact."""
        return self.root / "curves"

    @property
    def item_vectors(self) -> Path:
        return self.root / "item_vectors"

    @property
    def item_index(self) -> Path:
        return self.root / "item_index"

    @property
    def generative(self) -> Path:
        """Rankings by the language model and their speeds; missing unless the settings ask for them."""
        return self.root / "generative"

    def stamp(self, stage: str) -> Path:
        return self.root / "stamps" / f"{stage}.json"


@dataclass(frozen=True)
class PromotedPaths:
    """What serves: numbered copies of a dataset's artefacts, and a manifest that names the present one."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "promoted.json"

    def copies(self, number: int) -> DatasetPaths:
        """Artefacts of one promotion, in the layout of their originals."""
        return DatasetPaths(self.root / str(number))

    @property
    def of_variants(self) -> list[Path]:
        """Promoted folders of single variants, which earlier versions wrote and nothing reads."""
        return sorted(self.root.parent.glob("variants/*/promoted/promoted.json"))
