"""`dg launch` in a process of its own, without a daemon: how a shell or cron starts a job."""

import os
from pathlib import Path

import dagster as dg
import pytest

from pixrec_assets.plan import plan_dataset
from pixrec_core import pipeline
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work
from tests.forks import run_command

ROOT = Path(__file__).resolve().parents[2]
PROJECT = """
[tool.dg]
directory_type = "project"

[tool.dg.project]
root_module = "project"
code_location_target_module = "project.definitions"
"""
DEFINITIONS = """
from tests.assets import fake_stages
fake_stages.install()
from pixrec_assets.definitions import defs
"""


@pytest.fixture
def launch(settings: Settings, tmp_path: Path):
    """Run `dg launch` in a project whose stages are fakes, with the repository's own dagster.yaml."""
    package = tmp_path / "project"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "definitions.py").write_text(DEFINITIONS)
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "dagster.yaml").write_bytes((ROOT / "dagster.yaml").read_bytes())
    environment = os.environ | {"DAGSTER_HOME": str(tmp_path), "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}

    def run(*arguments: str) -> None:
        done = run_command(["dg", "launch", *arguments], tmp_path, environment)
        assert done.returncode == 0, done.stdout

    return run


@pytest.mark.slow
def test_jobs_and_a_group_of_assets_build_every_artefact(launch, tmp_path):
    joined = 'variants = ["text_only"]\njoint = { all = { datasets = ["a", "b"] } }\n'
    one = '{name} = {{ source = {{ kind = "sample", seed = {seed} }}, start_from = "all" }}\n'
    datasets = one.format(name="a", seed=1) + one.format(name="b", seed=2)
    (tmp_path / "pixrec.toml").write_text(joined + "[datasets]\n" + datasets)
    settings = load_settings()
    launch("--assets", "group:data", "--partition", "a")
    assert pipeline.SEQUENCES.is_current(Work(settings, "a"))
    assert pipeline.BASELINES.stamp(Work(settings, "a")) is None

    launch("--job", "prepare_data", "--partition", "b")
    launch("--job", "train_jointly", "--partition", "all|text_only")
    launch("--job", "train", "--partition", "b|text_only")
    launch("--job", "evaluate", "--partition", "b")
    for run in plan_dataset(settings, "b"):
        assert run.stage.is_current(run.work), str(run)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert {run.status for run in instance.get_runs()} == {dg.DagsterRunStatus.SUCCESS}
        assert instance.get_materialized_partitions(dg.AssetKey("ranking")) == {"b|text_only"}
