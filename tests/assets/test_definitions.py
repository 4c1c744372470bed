"""What Dagster loads says the same as the core's pipeline."""

import dagster as dg
import pytest

from pixrec_assets import jobs
from pixrec_assets.definitions import defs
from pixrec_assets.jobs import JOBS
from pixrec_assets.stage_asset import asset_keys
from pixrec_core import pipeline
from pixrec_core.errors import SettingsError
from pixrec_core.settings import DagsterSettings

GRAPH = defs.resolve_asset_graph()
NODES = {key.to_user_string(): GRAPH.get(key) for key in GRAPH.get_all_asset_keys()}
VERSIONS = {key.to_user_string(): str(stage.version) for stage in pipeline.STAGES for key in asset_keys(stage)}

VERSIONS = {key.to_user_string(): str(stage.version) for stage in pipeline.STAGES for key in asset_keys(stage)}


def test_definitions_are_loadable():
    dg.Definitions.validate_loadable(defs)


#: Without a joint training in the settings there is nothing of it; `test_joint` tells what there is with one.
STAGES = [stage for stage in pipeline.STAGES if stage.partitioned_by != "joint"]


def test_every_stage_is_an_asset_and_nothing_else_is():
    stages = {key.to_user_string() for stage in STAGES for key in asset_keys(stage)}
    assert set(NODES) == stages | {"refreshed", "online_metrics"}
    assert [job.name for job in JOBS] == ["prepare_data", "train", "evaluate", "refresh", "rollback"]


@pytest.mark.parametrize("stage", [s for s in STAGES if s.inputs], ids=lambda stage: stage.name)
def test_lineage_is_the_pipelines(stage):
    parents = {key.to_user_string() for key in NODES[stage.name].parent_keys}
    expected = {source.name for source in stage.inputs if source in STAGES}
    if "raw" in expected:
        expected = {"items": {"raw_metadata"}, "interactions": {"raw_reviews", "items"}}[stage.name]
    assert parents == expected


@pytest.mark.parametrize("name", sorted(NODES))
def test_every_asset_describes_itself(name):
    node = NODES[name]
    assert node.group_name in {"data", "model", "evaluation", "serving"}
    assert 1 <= len(node.kinds) <= 3
    assert node.owners == ["team:pixrec"]
    assert node.code_version == VERSIONS.get(name)  # None of what is no stage
    assert len(node.description or "") > 40


def test_partitions_follow_the_group():
    for node in NODES.values():
        assert node.partitions_def is not None
        dimensions = 2 if node.group_name == "model" else 1
        assert isinstance(node.partitions_def, dg.MultiPartitionsDefinition) == (dimensions == 2)


@pytest.mark.parametrize(
    ("job", "key"),
    [
        ("prepare_data", "sample"),
        ("train", "sample|text_only"),
        ("evaluate", "sample"),
        ("refresh", "sample"),
        ("rollback", "sample"),
    ],
)
def test_each_job_takes_its_partition(job, key):
    partitions = defs.resolve_job_def(job).partitions_def
    assert partitions is not None
    assert key in partitions.get_partition_keys()


def test_schedules_and_sensors_are_off_by_default():
    schedule = defs.resolve_schedule_def("weekly_data")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.cron_schedule == "0 3 * * 1"
    assert defs.resolve_sensor_def("follow_data").default_status == dg.DefaultSensorStatus.STOPPED


def test_the_weekly_schedule_requests_one_run_per_dataset():
    with dg.build_schedule_context(repository_def=defs.get_repository_def()) as context:
        tick = defs.resolve_schedule_def("weekly_data").evaluate_tick(context)
    assert [request.partition_key for request in tick.run_requests] == ["sample"]


def test_a_schedule_that_is_none_names_its_setting(monkeypatch):
    wrong = jobs.SETTINGS.model_copy(update={"dagster": DagsterSettings(refresh="every day")})
    monkeypatch.setattr(jobs, "SETTINGS", wrong)
    with pytest.raises(SettingsError, match=r"dagster\.refresh is 'every day', which is no cron schedule"):
        jobs._per_dataset("daily_refresh", jobs.REFRESH, "refresh", "")
