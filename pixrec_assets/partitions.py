"""Partitions: one per dataset; one per dataset and variant from the checkpoint to the ranking.

If settings name joint trainings, also one per joint training and variant.
"""

import warnings
from typing import Final

import dagster as dg

import pixrec_assets
from pixrec_core.settings import load_settings

#: Read once, when Dagster loads the code location; reload it after a change of `pixrec.toml`.
SETTINGS: Final = pixrec_assets._given or load_settings()

DATASET: Final = "dataset"
VARIANT: Final = "variant"
JOINT: Final = "joint"

DATASETS: Final = dg.StaticPartitionsDefinition(list(SETTINGS.datasets))
VARIANTS: Final = dg.StaticPartitionsDefinition(list(SETTINGS.variants))
DATASET_VARIANTS: Final = dg.MultiPartitionsDefinition({DATASET: DATASETS, VARIANT: VARIANTS})
JOINT_VARIANTS: Final = dg.MultiPartitionsDefinition(
    {JOINT: dg.StaticPartitionsDefinition(list(SETTINGS.joint)), VARIANT: VARIANTS}
)

_STARTING: Final = {
    joint: [name for name, dataset in SETTINGS.datasets.items() if dataset.start_from == joint]
    for joint in SETTINGS.joint
}

with warnings.catch_warnings():
    warnings.simplefilter("ignore", dg.BetaWarning)  # there is no other mapping of a dimension
    #: Between the partition of a dataset and the partitions of all its variants.
    ACROSS_VARIANTS: Final = dg.MultiToSingleDimensionPartitionMapping(DATASET)

    #: From a joint training to the datasets that start from it, with the same variant.
    STARTING: Final = dg.MultiPartitionMapping(
        {
            JOINT: dg.DimensionPartitionMapping(DATASET, dg.StaticPartitionMapping(_STARTING)),
            VARIANT: dg.DimensionPartitionMapping(VARIANT, dg.IdentityPartitionMapping()),
        }
    )

#: From datasets to joint trainings. Dagster cannot map one dimension to others by name, so with several joint trainings
#: the UI shows each below the datasets of all. Staleness is unaffected: it comes from the stage's fingerprint.
JOINED: Final = dg.SpecificPartitionsPartitionMapping(
    sorted({dataset for joint in SETTINGS.joint.values() for dataset in joint.datasets})
)
