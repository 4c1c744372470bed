"""The only place that knows where artefacts lie.

data/<dataset>/
  raw/                      what the source fetched or generated
  items.parquet             the catalogue             items.quarantine.parquet         its bad lines
  interactions.parquet      user, item, time, rating  interactions.quarantine.parquet  its bad lines
  images/ab/<key>.jpg       photos                    images.parquet                   one row a photo: what came of it
  images.signs.parquet      of the local files that photos were made from: size and time
  cache/                    photos decoded or encoded, keyed by content; safe to delete
  sequences.duckdb          items, interactions and sequences that belong together, validated
  contract/<artefact>.json  what each expectation of the data contract found in items, interactions, images, sequences
  baselines/<method>/       model/  ranking.parquet, of test users  validation_ranking.parquet, of stacking users
  variants/<variant>/       checkpoint/  item_vectors/  item_index/
                            ranking.parquet, of test users  validation_ranking.parquet, of stacking users
                            generative/<ranker>.parquet, speeds.json: rankings by the language model, where asked for
                            curves/: TensorBoard event files of the training, written as it goes
                            promoted/: what serves; promoted.json names one of its numbered folders
  evaluation/               metrics.json  outcomes.parquet
  report/                   index.html  report.md
  stamps/                   one manifest a stage, written last

data/<joint training>/variants/<variant>/ likewise holds the checkpoint and curves of a training over several datasets.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path


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
    def images_manifest(self) -> Path:
        return self.root / "images.parquet"

    @property
    def photo_snapshot(self) -> Path:
        """Size and modification time of each local file that a photo was read from; not an artefact."""
        return self.root / "images.signs.parquet"

    @property
    def images_journal(self) -> Path:
        """What earlier runs leave a download that is under way; not an artefact."""
        return self.root / "images.journal.jsonl"

    def images_journal_of(self, share: int) -> Path:
        """What a worker of the download notes of its share."""
        return self.root / f"images.journal.{share}.jsonl"

    @property
    def images_journals(self) -> list[Path]:
        """Both kinds, that of earlier runs first."""
        return [self.images_journal, *sorted(self.root.glob("images.journal.*.jsonl"))]

    def image(self, item: str) -> Path:
        """The photo of an item. Item ids come from outside, so only a hash of one reaches the file system."""
        key = hashlib.sha256(item.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return self.images / key[:2] / f"{key}.jpg"

    @property
    def cache(self) -> Path:
        """Arrays that can be made again from photos and a backbone; safe to delete."""
        return self.root / "cache"

    @property
    def sequences(self) -> Path:
        return self.root / "sequences.duckdb"

    @property
    def sequences_rejected(self) -> Path:
        """The last sequences file that broke its contract, kept to look into; not an artefact."""
        return self.root / "sequences.rejected.duckdb"

    @property
    def sequences_shards(self) -> Path:
        """Files of the workers that make sequences, while they are at it; not an artefact."""
        return self.root / ".sequences.shards"

    def contract(self, artefact: str) -> Path:
        """Outcome of each expectation of an artefact's contract; left even where the contract is broken.

        One file an artefact, since stages that run side by side each write their own.
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
    def metrics(self) -> Path:
        return self.root / "evaluation" / "metrics.json"

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
class BaselinePaths:
    """Artefacts of one baseline of one dataset."""

    root: Path

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def ranking(self) -> Path:
        """Of test users."""
        return self.root / "ranking.parquet"

    @property
    def validation_ranking(self) -> Path:
        """Of validation users on whom no setting was chosen."""
        return self.root / "validation_ranking.parquet"


@dataclass(frozen=True)
class VariantPaths:
    """Artefacts of one variant of one dataset or joint training."""

    root: Path
    dataset: DatasetPaths
    variant: str

    @property
    def checkpoint(self) -> Path:
        return self.root / "checkpoint"

    @property
    def training(self) -> Path:
        """Where training keeps what it needs to resume; not an artefact."""
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
    def ranking(self) -> Path:
        """Of test users."""
        return self.root / "ranking.parquet"

    @property
    def validation_ranking(self) -> Path:
        """Of validation users on whom no setting was chosen."""
        return self.root / "validation_ranking.parquet"

    @property
    def generative(self) -> Path:
        """Rankings by the language model, and how fast they were made; none without a setting."""
        return self.root / "generative"

    @property
    def promoted(self) -> "PromotedPaths":
        return PromotedPaths(self.root / "promoted")

    def stamp(self, stage: str) -> Path:
        return self.root / "stamps" / f"{stage}.json"


@dataclass(frozen=True)
class PromotedPaths:
    """What serves: copies of a variant's artefacts in numbered folders, of which a manifest names one."""

    root: Path

    @property
    def manifest(self) -> Path:
        return self.root / "promoted.json"

    def copies(self, number: int, variant: str) -> VariantPaths:
        """Artefacts of one promotion, laid out as what they are copies of; dataset and variant share the folder."""
        folder = self.root / str(number)
        return VariantPaths(folder, DatasetPaths(folder), variant)
