"""The data of a training, for both user encoders."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

from accelerate.utils import gather_object

from pixrec_core import schemas
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.engine import Engine
from pixrec_core.errors import ContractError
from pixrec_core.models.dual_tower import Tower
from pixrec_core.models.negatives import Negatives
from pixrec_core.models.photo_store import PhotoFiles, PhotoStore, feature_store, pixel_store
from pixrec_core.models.process_group import RankInfo
from pixrec_core.models.windows import TrainingWindows
from pixrec_core.paths import VariantPaths
from pixrec_core.ranking_table import id_lists
from pixrec_core.settings import TrainingSettings
from pixrec_core.training.batches import JointWindows

S = TypeVar("S")
R = TypeVar("R")

COLLABORATIVE: Final = "collaborative"  # the variant with an embedding per item id


class Prepared(NamedTuple):
    """A tower before training, and its data.

    Attributes:
        model: a `DualTower` or an `ItemsTower`, on its device.
        windows: training windows and their collators.
        validate: returns validation metrics of a model.
        counts: size of the data by dataset, for the checkpoint's record.
        processor: makes the inputs of the model; saved with it.
    """

    model: Any
    windows: JointWindows
    validate: Callable[[Any], dict[str, float]]
    counts: Mapping[str, dict[str, int]]
    processor: Any


def read_windows(name: str, paths: VariantPaths, settings: TrainingSettings) -> TrainingWindows:
    """Return the training windows of a dataset.

    Raises:
        ContractError: no user has two training interactions.
    """
    sequences = read_sequences(paths.dataset, schemas.TRAIN)
    numbers = id_lists(sequences[schemas.ITEMS], read_items(paths.dataset)[schemas.ITEM])
    windows = TrainingWindows(
        numbers,
        settings.max_history_len,
        settings.seed,
        sequences[schemas.TIMESTAMPS],
        shuffle_ties=settings.shuffle_ties,
    )
    if not len(windows):
        raise ContractError(
            f"cannot train on {name}: no user has two training interactions. Lower sequences.min_rating or "
            "min_item_interactions, set later cuts under the time split, or provide longer histories"
        )
    return windows


def read_negatives(paths: VariantPaths, settings: TrainingSettings) -> Negatives:
    """Return the sampler of negatives of a dataset."""
    counts = read_items(paths.dataset)[schemas.TRAIN_COUNT].to_numpy()
    return Negatives(counts, settings.num_sampled_negatives, settings.seed, log_q_correction=settings.log_q_correction)


def read_photos(pixels: PhotoFiles | None, model: Tower, vision: str, cache: Path, engine: Engine) -> PhotoStore | None:
    """Return features of the photos if `model.vision` is frozen, else pixels; None without photos."""
    if pixels is None:
        return None
    return feature_store(cache, model, pixels, engine) if vision == "frozen" else pixel_store(pixels)


def count_data(windows: TrainingWindows, items: int, items_with_photo: int, validation_users: int) -> dict[str, int]:
    """Return the size of the data of a dataset, for the checkpoint's record."""
    return {
        "users": windows.users,
        "examples": windows.targets,
        "items": items,
        "items_with_photo": items_with_photo,
        "validation_users": validation_users,
    }


class ProcessGroupEngine:
    """An `Engine` whose workers are the processes of the group: all map the same shards, and all get all results."""

    def __init__(self) -> None:
        self._rank, self.workers = RankInfo.current()

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """See `Engine`. A process that dies ends the training, so no shard is repeated."""
        for start in range(0, len(shards), self.workers):
            index = start + self._rank
            yield from gather_object([function(shard) for shard in shards[index : index + 1]])
