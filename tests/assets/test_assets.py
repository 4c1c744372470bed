"""Materialised for real: what is recorded, what a broken contract stops, what is tried again."""

import sys
from collections.abc import Callable
from dataclasses import replace

import dagster as dg
import pytest
from dagster._core.errors import DagsterInvalidSubsetError

from pixrec_assets import execution, headline, stage_asset
from pixrec_assets.definitions import ASSETS
from pixrec_assets.stage_asset import asset_keys
from pixrec_core import pipeline
from pixrec_core.errors import CheckpointError, ContractError, LostProcessError, PixRecError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Stats, Work
from tests.assets import fake_stages

DATA = [*pipeline.DATA]
MODEL = [pipeline.CHECKPOINT, pipeline.ITEM_VECTORS, pipeline.ITEM_INDEX, pipeline.RANKING]
EVALUATION = [
    pipeline.BASELINES,
    pipeline.BLEND,
    pipeline.PROMOTED,
    pipeline.EVALUATION,
    pipeline.REPORT,
    pipeline.REFIT,
]


@pytest.fixture
def materialise(settings: Settings, instance: dg.DagsterInstance) -> Callable[..., dg.ExecuteInProcessResult]:
    """Run the assets of some stages for one partition."""

    def run(stages: list[Stage], partition: str) -> dg.ExecuteInProcessResult:
        return dg.materialize(
            ASSETS,
            selection=[key for stage in stages for key in asset_keys(stage)],
            partition_key=partition,
            resources={"settings": settings, "inputs": None},
            instance=instance,
            raise_on_error=False,
        )

    return run


def make(settings: Settings, stages: list[Stage]) -> None:
    """Make the inputs of what is tested, without Dagster."""
    for stage in stages:
        getattr(pipeline, stage.name.upper()).materialise(Work(settings, "sample"))


def metadata(result: dg.ExecuteInProcessResult, name: str) -> dict[str, dg.MetadataValue]:
    (event,) = [e for e in result.get_asset_materialization_events() if e.asset_key == dg.AssetKey(name)]
    return dict(event.materialization.metadata)


def fail(monkeypatch: pytest.MonkeyPatch, name: str, error: BaseException) -> list[str]:
    """Let a stage raise; the list grows with each of its runs."""
    runs: list[str] = []

    def broken(work: Work, *_, **__):
        runs.append(work.dataset)
        raise error

    monkeypatch.setattr(pipeline, name.upper(), replace(getattr(pipeline, name.upper()), run=broken))
    return runs


def test_the_whole_pipeline_records_numbers_samples_and_data_versions(materialise, settings: Settings):
    data = materialise(DATA, "sample")
    assert data.success
    assert metadata(data, "items")["bad/share"].value == 0.33
    assert metadata(data, "items")["quarantine_lines"].value == 1
    stamp = pipeline.ITEMS.stamp(Work(settings, "sample"))
    (event,) = [e for e in data.get_asset_materialization_events() if e.asset_key == dg.AssetKey("items")]
    assert event.materialization.tags["dagster/data_version"] == stamp["data_version"]
    for variant in settings.variants:
        assert materialise(MODEL, f"sample|{variant}").success
    evaluation = materialise(EVALUATION, "sample")
    assert evaluation.success
    assert metadata(evaluation, "evaluation")["multimodal/NDCG@10"].value == 0.25
    assert "| popularity | 0.1250 |" in metadata(evaluation, "evaluation")["headline"].value
    assert metadata(evaluation, "report")["report"].value == "# report"


@pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.op.name)
def test_run_config_that_would_be_ignored_is_rejected(asset: dg.AssetsDefinition):
    """Settings come from pixrec.toml; Dagster accepts any config of an asset without a schema."""
    job = dg.Definitions(
        assets=ASSETS,
        jobs=[dg.define_asset_job("one", selection=list(asset.keys))],
        resources={"settings": 0, "inputs": 0},
    ).resolve_job_def("one")
    with pytest.raises(dg.DagsterInvalidConfigError, match="epoch_count"):
        dg.validate_run_config(job, {"ops": {asset.op.name: {"config": {"epoch_count": 9}}}})


def test_the_config_of_one_training_replaces_settings_and_is_validated(instance, settings, monkeypatch):
    """Types are checked in the launchpad, ranges at the start of the run."""
    make(settings, DATA)
    seen = []

    def checkpoint(work, inputs, **callbacks):
        seen.append(work.dataset_settings.training)
        return fake_stages.checkpoint(work, inputs, **callbacks)

    monkeypatch.setattr(pipeline, "CHECKPOINT", replace(pipeline.CHECKPOINT, run=checkpoint))
    (asset,) = [each for each in ASSETS if dg.AssetKey("checkpoint") in each.keys]

    def train(**config):
        return dg.materialize(
            [asset],
            partition_key="sample|text_only", instance=instance, raise_on_error=False,
            resources={"settings": settings, "inputs": None}, run_config={"ops": {"checkpoint": {"config": config}}},
        )  # fmt: skip

    assert train(epochs=2, learning_rate=0.5).success
    default = settings.datasets["sample"].training
    assert seen == [default.model_copy(update={"epochs": 2, "learning_rate": 0.5})]
    with pytest.raises(dg.DagsterInvalidConfigError, match="epochs"):
        train(epochs="many")
    failed = train(epochs=0)
    (event,) = [each for each in failed.all_events if each.is_step_failure]
    assert "[training]: epochs: Input should be greater than or equal to 1" in str(event.step_failure_data)
    assert len(seen) == 1


def test_a_run_of_pixrec_has_the_name_of_its_stage_and_metadata_start_with_its_figure(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch
):
    make(settings, DATA[:1])
    monkeypatch.setattr(execution, "open_instance", lambda _: instance)
    monkeypatch.setattr(headline, "FIGURES", {"items": "{items:,} items"})
    assert execution.materialise(pipeline.ITEMS, Work(settings, "sample")) is None
    (run,) = instance.get_runs()
    assert run.job_name == "pixrec_items"
    (record,) = instance.fetch_materializations(dg.AssetKey("items"), limit=1).records
    first, value = next(iter(record.asset_materialization.metadata.items()))
    assert (first, value.value) == ("summary", "2 items")


def test_a_wrong_selection_of_dg_launch_ends_in_a_message(capsys):
    sys.excepthook(DagsterInvalidSubsetError, DagsterInvalidSubsetError("nosuch is no asset"), None)
    err = capsys.readouterr().err
    assert err.startswith("nosuch is no asset\nLaunch groups `data`")
    assert "Traceback" not in err


def test_a_kept_contract_passes_and_its_failed_rules_are_warnings(materialise, settings: Settings):
    make(settings, DATA[:-1])
    result = materialise([pipeline.SEQUENCES], "sample")
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity) == ("contract", False, dg.AssetCheckSeverity.WARN)
    assert result.success
    first = check.metadata["expectations"].value.splitlines()[2]
    assert first == "| share_tied_test | False | 0.9 | 0 to 0.5 | warn |"


@pytest.mark.parametrize("artefact", ["items", "interactions", "images", "sequences"])
def test_a_broken_contract_fails_the_check_and_stops_later_stages(
    materialise, settings: Settings, monkeypatch, artefact
):
    stage = replace(getattr(pipeline, artefact.upper()), run=fake_stages.broken(artefact))
    monkeypatch.setattr(pipeline, artefact.upper(), stage)
    place = DATA.index(next(each for each in DATA if each.name == artefact))
    make(settings, DATA[:place])
    result = materialise([stage, *DATA[place + 1 :], pipeline.BASELINES], "sample")
    assert not result.success
    (check,) = [each for each in result.get_asset_check_evaluations() if each.asset_key == dg.AssetKey(artefact)]
    assert (check.passed, check.severity, check.blocking) == (False, dg.AssetCheckSeverity.ERROR, True)
    assert check.metadata["failed/train_users"].value == 1
    first = check.metadata["expectations"].value.splitlines()[2]
    assert first == "| train_users | False | 1 | at least 2 | error |"
    made = {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}
    assert not made & {artefact, "sequences", "baselines"}
    assert stage.stamp(Work(settings, "sample")) is None


@pytest.mark.parametrize(("gate", "passed"), [("promoted", True), ("refused", False)])
def test_the_gate_before_serving_is_a_check_that_blocks_nothing(
    materialise, settings: Settings, monkeypatch, gate, passed
):
    monkeypatch.setattr(pipeline, "PROMOTED", replace(pipeline.PROMOTED, run=getattr(fake_stages, gate), inputs=()))
    make(settings, DATA)
    result = materialise([pipeline.PROMOTED], "sample")
    assert result.success
    (check,) = result.get_asset_check_evaluations()
    assert (check.check_name, check.passed, check.severity, check.blocking) == (
        "not_worse_than_promoted", passed, dg.AssetCheckSeverity.WARN, False,
    )  # fmt: skip
    stats = fake_stages.__dict__[gate](Work(settings, "sample"))
    assert check.description == "\n".join([stats["verdict"], *stats["warnings"]])
    assert metadata(result, "promoted")["ndcg@10"].value == check.metadata["ndcg@10"].value


def test_each_epoch_is_an_observation_of_the_variants_partition(materialise, settings: Settings):
    make(settings, DATA)
    result = materialise([pipeline.CHECKPOINT], "sample|text_only")
    observations = [e.asset_observation_data.asset_observation for e in result.all_events if e.is_asset_observation]
    assert [o.metadata["loss"].value for o in observations] == [2.0, 1.5]
    assert [o.metadata["validation/NDCG@10"].value for o in observations] == [0.1, 0.2]
    assert {(o.asset_key.to_user_string(), o.partition) for o in observations} == {("checkpoint", "sample|text_only")}


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        (CheckpointError("another process trains it"), "CheckpointError: another process trains it"),
        (ContractError("nothing to train on"), "ContractError: nothing to train on"),  # of a stage without a contract
        (KeyboardInterrupt(), "interrupted"),
    ],
)
def test_errors_that_a_retry_cannot_fix_are_not_retried(materialise, settings: Settings, monkeypatch, error, reported):
    assert issubclass(CheckpointError, PixRecError)
    make(settings, DATA)
    runs = fail(monkeypatch, "checkpoint", error)
    result = materialise([pipeline.CHECKPOINT], "sample|multimodal")
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data.description == reported
    assert runs == ["sample"]


@pytest.mark.parametrize(("error", "again"), [(LostProcessError("killed"), True), (CheckpointError("bad"), False)])
def test_a_training_that_lost_a_process_is_retried(settings: Settings, error: PixRecError, again: bool):
    def lost(_: Work) -> Stats:
        raise error

    with pytest.raises(dg.Failure) as failed:
        stage_asset.materialise(replace(pipeline.RAW, run=lost), Work(settings, "sample"))
    assert failed.value.allow_retries is again


def test_a_stage_before_its_inputs_says_what_is_missing(materialise, settings: Settings):
    result = materialise([pipeline.ITEMS], "sample")
    (failure,) = [event.step_failure_data for event in result.all_events if event.is_step_failure]
    assert failure.user_failure_data.description.startswith(
        "MissingArtefactError: Cannot run `items` for sample: its input `raw`"
    )
