"""What a training needs, whichever the user encoder."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pixrec_core import schemas
from pixrec_core.data.sequences import read_items, read_sequences
from pixrec_core.errors import ContractError
from pixrec_core.models.windows import TrainingWindows
from pixrec_core.paths import VariantPaths
from pixrec_core.ranking_table import id_lists
from pixrec_core.settings import TrainingSettings
from pixrec_core.training.batches import JointWindows


class Prepared(NamedTuple):
    """A tower before training, and its data.

    Attributes:
        model: a `DualTower` or an `ItemsTower`, on its device.
        windows: training windows and their collators.
        validate: returns validation metrics of a model.
        counts: size of the data by dataset, for the checkpoint's record.
        processor: makes inputs of the model; saved with it.
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
