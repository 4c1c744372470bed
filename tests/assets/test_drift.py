"""Every materialisation leaves its profile in Dagster's event log, as numbers that its UI plots over time."""

from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from pixrec_assets.definitions import ASSETS
from pixrec_assets.stage_asset import asset_keys
from pixrec_core import pipeline
from pixrec_core.data.contract import RULES
from pixrec_core.settings import Settings

DATA = [pipeline.RAW, pipeline.ITEMS, pipeline.INTERACTIONS, pipeline.IMAGES, pipeline.SEQUENCES]
#: What tells two shops apart, by artefact.
GROWING = {
    "items": {"rows"},
    "interactions": {"rows", "users", "items", "density", "user_rows_median", "share_tied", "share_of_known_items"},
    "images": {"rows", "photos", "share_failed", "image_coverage"},
    "sequences": {
        "users", "items", "interactions", "density", "share_tied_test", "share_cold_test_targets",
        "share_repeat_test_targets", "image_coverage", "history_min", "history_median", "history_p90", "history_p99",
        "history_max",
    },
}  # fmt: skip


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """An instance in files, as `dagster dev` has it."""
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        yield instance


def run(instance: dg.DagsterInstance, folder: Path, users: int) -> dg.ExecuteInProcessResult:
    source = {"kind": "sample", "users": users, "items": 40}
    return dg.materialize(
        ASSETS,
        selection=[key for stage in DATA for key in asset_keys(stage)],
        partition_key="sample",
        resources={"settings": Settings(root=folder, datasets={"sample": {"source": source}}), "inputs": None},
        instance=instance,
    )


def logged(instance: dg.DagsterInstance, artefact: str) -> list[dict[str, dg.MetadataValue]]:
    """`profile/` metadata of each materialisation in the log, the oldest first."""
    records = instance.fetch_materializations(dg.AssetKey(artefact), limit=10, ascending=True).records
    metadata = [record.asset_materialization.metadata for record in records]
    return [{name: value for name, value in each.items() if name.startswith("profile/")} for each in metadata]


@pytest.mark.slow
def test_two_materialisations_leave_two_points_of_each_number(instance, tmp_path):
    for users in (60, 90):
        result = run(instance, tmp_path, users)
        assert result.success
        assert {check.asset_key.to_user_string() for check in result.get_asset_check_evaluations()} == set(RULES)
    for artefact, names in GROWING.items():
        before, after = logged(instance, artefact)
        assert before.keys() == after.keys() >= {f"profile/{name}" for name in names}
        for value in (*before.values(), *after.values()):
            assert isinstance(value, dg.IntMetadataValue | dg.FloatMetadataValue), value
    (first, second) = logged(instance, "sequences")
    assert first["profile/users"].value < second["profile/users"].value
    assert first["profile/image_coverage"].value <= 1
