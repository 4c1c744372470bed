"""Partitions: one a dataset; one a dataset and variant from the checkpoint to the ranking."""

import warnings
from typing import Final

import dagster as dg

from pixrec_core.settings import load_settings

#: Read once, when Dagster loads the code location; reload it after a change of `pixrec.toml`.
SETTINGS: Final = load_settings()

DATASET: Final = "dataset"
VARIANT: Final = "variant"

DATASETS: Final = dg.StaticPartitionsDefinition(list(SETTINGS.datasets))
DATASET_VARIANTS: Final = dg.MultiPartitionsDefinition(
    {DATASET: DATASETS, VARIANT: dg.StaticPartitionsDefinition(list(SETTINGS.variants))}
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)  # nothing else maps a dimension, and it has been beta for years
    #: Between the two: a dataset's partition and those of all its variants.
    ACROSS_VARIANTS: Final = dg.MultiToSingleDimensionPartitionMapping(DATASET)
