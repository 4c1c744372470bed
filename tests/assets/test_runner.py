"""Several datasets in one call: a failure stops only dependent stages, and an interruption loses nothing."""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import dagster as dg
import psutil
import pytest
from rich.console import Console

from pixrec_assets.plan import plan_datasets
from pixrec_assets.runner import Outcome, Runner, State, summarise
from pixrec_assets.workers import Failure
from pixrec_core import pipeline
from pixrec_core.errors import SourceError
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import StageInputs, StageRun, Work
from tests.assets import fake_stages

ROOT = Path(__file__).resolve().parents[2]
TOML = """
variants = ["multimodal", "text_only"]

[datasets.a]
source = { kind = "sample", seed = 1 }

[datasets.b]
source = { kind = "sample", seed = 2 }

[datasets.c]
source = { kind = "sample", seed = 3 }
"""
RUNS = 7 + 2 * 4 + 5  # per dataset: raw to baselines, four per variant, blend to refit


class OutOfOrder:
    """A pool that finishes the newest of its stage runs first, and lets the named ones fail."""

    def __init__(self, size: int, failing: set[str]) -> None:
        self.size, self.failing, self.busy, self.most = size, failing, [], 0
        self.passed_inputs: set[str] = set()

    @property
    def free(self) -> int:
        return self.size - len(self.busy)

    def start(self, run: StageRun, inputs: StageInputs | None) -> None:
        for source in run.stage.reads(run.work):
            assert source.stage.stamp(source.work), f"{run} was started before {source} was built"
        if inputs:
            self.passed_inputs.add(str(run))
            assert inputs == run.stage.inspect_inputs(run.work)
        self.busy.append(run)
        self.most = max(self.most, len(self.busy))

    def wait(self) -> tuple[StageRun, Failure | None]:
        run = self.busy.pop()
        if str(run) in self.failing:
            return run, Failure("broken", expected=True)
        build(run)
        return run, None

    def stop(self) -> None:
        self.busy = []


def build(run: StageRun) -> None:
    run.stage.materialise(run.work, **({"on_epoch": lambda _: None} if run.stage.name == "checkpoint" else {}))


@pytest.fixture
def datasets(settings: Settings, project: Path) -> Settings:
    (project / "pixrec.toml").write_text(TOML)
    return load_settings()


def run_all(settings: Settings, pool: OutOfOrder, *, force: bool = False) -> dict[str, State]:
    runs = plan_datasets(settings, ("a", "b"))
    outcomes = Runner(runs, pool, Console(file=StringIO()), force=force).run_all()
    assert [outcome.run for outcome in outcomes] == runs
    return {str(outcome.run): outcome.state for outcome in outcomes}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_every_artefact_is_built_once_and_inputs_come_first(datasets, size):
    pool = OutOfOrder(size, set())
    states = run_all(datasets, pool)
    assert set(states.values()) == {State.BUILT}
    assert pool.passed_inputs == states.keys(), "so that what another call builds meanwhile is not built again"
    assert pool.most == min(size, 4)  # raw files of both datasets, then at most baselines and two variants of one
    assert set(run_all(datasets, OutOfOrder(size, set())).values()) == {State.CURRENT}
    forced = OutOfOrder(size, set())
    assert set(run_all(datasets, forced, force=True).values()) == {State.BUILT}
    assert not forced.passed_inputs


@pytest.mark.parametrize("size", [1, 3])
def test_a_failure_skips_only_dependent_stages(datasets, size):
    states = run_all(datasets, OutOfOrder(size, {"item_vectors a|text_only"}))
    skipped = {key for key, state in states.items() if state is State.SKIPPED}
    of_variant = {f"{stage} a|text_only" for stage in ("item_index", "ranking")}
    assert skipped == of_variant | {"blend a", "promoted a", "evaluation a", "report a", "refit a"}
    assert [key for key, state in states.items() if state is State.FAILED] == ["item_vectors a|text_only"]
    assert list(states.values()).count(State.BUILT) == 2 * RUNS - 8


def test_the_inputs_of_a_stale_stage_are_inspected_once(datasets, monkeypatch):
    run_all(datasets, OutOfOrder(1, set()))
    monkeypatch.setenv("PIXREC_SEQUENCES__MIN_RATING", "2")
    pool = OutOfOrder(1, set())
    states = run_all(load_settings(), pool)
    built = {key for key, state in states.items() if state is State.BUILT}
    assert {"sequences a", "checkpoint a|text_only", "report b"} <= built
    assert pool.passed_inputs == built


def test_a_stage_that_another_process_builds_again_is_built(datasets):
    class Overtaken(OutOfOrder):
        def wait(self) -> tuple[StageRun, Failure | None]:
            run, failure = super().wait()
            run.stage.stamp_path(run.work).unlink()  # as the other process does before it builds
            return run, failure

    printed = StringIO()
    runs = [run for run in plan_datasets(datasets, ("a",)) if run.stage is pipeline.RAW]
    (outcome,) = Runner(runs, Overtaken(1, set()), Console(file=printed)).run_all()
    assert outcome.state is State.BUILT
    assert "raw a: built; another process is building it again" in printed.getvalue()


def test_the_summary_has_the_time_of_built_stages_only(datasets):
    first, second, *_ = plan_datasets(datasets, ("a", "b"))
    (console := Console(file=StringIO(), width=300)).print(
        summarise([Outcome(first, State.BUILT, 61.0), Outcome(second, State.STOPPED)]),
        summarise([Outcome(second, State.STOPPED)]),
    )
    assert re.findall(r"\d+ \w+", console.file.getvalue()) == ["1 built", "1 min", "1 s", "1 stopped", "1 stopped"]


#: Every process has fake stages, workers too; files next to the settings say what goes wrong.
SITE = """
import os, signal, time
from pathlib import Path
from tests.assets import fake_stages

def is_set(name):
    return Path(os.environ["PIXREC_CONFIG"]).with_name(name).exists()

def disturb(real):
    def run(work, **callbacks):
        if is_set(f"items.{work.dataset}.dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if is_set(f"items.{work.dataset}.lasts"):
            print("LASTING", os.getpid(), flush=True)
            signal.pause()
        return real(work, **callbacks)
    return run

fake_stages.items = disturb(fake_stages.items)
fake_stages.install()
"""
COMMAND = [sys.executable, "-c", "from pixrec_assets.cli import main; main()"]


@pytest.fixture
def environment(datasets: Settings, project: Path) -> dict[str, str]:
    (project / "site").mkdir()
    (project / "site" / "sitecustomize.py").write_text(SITE)
    path = f"{project / 'site'}{os.pathsep}{ROOT}"
    return dict(os.environ) | {"PYTHONPATH": path, "PIXREC_CONFIG": str(project / "pixrec.toml"), "COLUMNS": "200"}


@pytest.fixture
def pixrec_process(environment: dict[str, str]) -> Callable[..., subprocess.CompletedProcess]:
    def call(*arguments: str) -> subprocess.CompletedProcess:
        command = [*COMMAND, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return call


def runs(settings: Settings) -> list[dg.DagsterRun]:
    with dg.DagsterInstance.from_config(str(settings.data_dir / ".dagster")) as instance:
        return list(instance.get_runs())


def built(out: str) -> list[str]:
    return re.findall(r"^(.*): building", out, re.MULTILINE)


def test_a_failed_partition_stops_no_other_and_the_printed_command_retries(
    datasets, assets_anew, instance, monkeypatch, capsys
):
    cli, execution = (importlib.import_module(f"pixrec_assets.{name}") for name in ("cli", "execution"))
    monkeypatch.setattr(execution, "open_instance", lambda _: instance)

    def items(work: Work) -> dict:
        if work.dataset == "b" and not (work.settings.root / "fixed").exists():
            raise SourceError("no items of b")
        return fake_stages.items(work)

    stages = tuple(replace(stage, run=items) if stage.name == "items" else stage for stage in pipeline.STAGES)
    monkeypatch.setattr(pipeline, "STAGES", stages)
    monkeypatch.setattr(pipeline, "ITEMS", stages[1])

    def call(line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["pixrec", *shlex.split(line)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    config = shlex.quote(str(datasets.root / "pixrec.toml"))
    code, out, err = call(f"--config {config} run a b --variant text_only")
    assert code == 1
    assert "Traceback" not in out + err
    assert "interactions b: skipped: its input `items` of b failed" in out
    assert "1 failed: items" in out
    assert "SourceError: no items of b" in err
    tags = {(run.tags["dagster/partition"], run.status.value) for run in instance.get_runs()}
    assert tags == {("a", "SUCCESS"), ("a|text_only", "SUCCESS"), ("b", "SUCCESS"), ("b", "FAILURE")}

    (datasets.root / "fixed").touch()
    retry = err.strip().rpartition("After the correction, continue with: pixrec ")[2]
    assert retry == f"--config {config} run b --variant text_only"
    code, out, _ = call(retry)
    assert code == 0
    assert len(built(out)) == 6 + 4, "all of b except its raw files"
    assert pipeline.RANKING.is_current(Work(datasets, "b", "text_only"))


ONLY_DATA = ("--up-to", "interactions")


@pytest.mark.slow
def test_a_killed_worker_is_one_failed_stage(pixrec_process, datasets, project):
    (project / "items.b.dies").touch()
    done = pixrec_process("run", "a", "b", "--workers", "2", *ONLY_DATA)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 failed: items" in done.stdout
    assert "The worker process of items b was killed by SIGKILL" in done.stderr
    assert pipeline.INTERACTIONS.is_current(Work(datasets, "a"))
    statuses = [(run.tags["dagster/partition"], run.status.value) for run in runs(datasets)]
    assert sorted(statuses) == [("a", "SUCCESS")] * 3 + [("b", "FAILURE"), ("b", "SUCCESS")]


@contextmanager
def lasting(environment: dict[str, str], project: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """Yield `pixrec run` in the middle of a stage, in its own session, and the id of the process of the stage."""
    (project / "items.a.lasts").touch()
    command = [*COMMAND, "run", "a", "--workers", "2", *ONLY_DATA]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout
        while not (line := process.stdout.readline()).startswith("LASTING"):
            assert process.poll() is None
        yield process, int(line.split()[1])


@pytest.mark.slow
def test_ctrl_c_stops_the_stages_of_workers_and_a_later_call_continues(environment, pixrec_process, datasets, project):
    with lasting(environment, project) as (process, step):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate()
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert not psutil.pid_exists(step)
    assert "1 stopped: items" in out
    assert "1 not started: interactions" in out
    assert "pixrec run a --up-to interactions --workers 2" in err
    assert sorted(run.status.value for run in runs(datasets)) == ["FAILURE", "SUCCESS"]

    (project / "items.a.lasts").unlink()
    again = pixrec_process("run", "a", *ONLY_DATA)
    assert again.returncode == 0, again.stderr
    assert built(again.stdout) == ["items a", "interactions a"]


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(environment, project):
    with lasting(environment, project) as (process, step):
        process.kill()
        psutil.wait_procs([each for each in psutil.process_iter() if each.pid == step])


def test_wrong_names_are_reported_with_the_known_ones(pixrec):
    code, _, err = pixrec("run", "nope")
    assert (code, "unknown dataset 'nope'" in err) == (1, True)
    code, _, err = pixrec("run", "--stage", "nope")
    assert (code, "'nope' is not one of raw, items" in err) == (2, True)
    code, _, err = pixrec("run", "--variant", "text_onyl")
    assert (code, "unknown variant 'text_onyl': did you mean `text_only`?" in err) == (1, True)
    assert pixrec("run", "--workers", "0")[0] == 2


@pytest.mark.parametrize(
    ("setting", "value", "reported"),
    [
        ("MODEL__TEXT_ENCODER", "lsaa", "model.text_encoder: unknown encoder 'lsaa': did you mean `lsa`?"),
        ("MODEL__PHOTO_ENCODER", "histogramm", "model.photo_encoder: unknown encoder 'histogramm': did you mean"),
        ("RETRIEVAL__BASELINES", '["eas"]', "retrieval.baselines: 'eas' is no baseline: did you mean `ease`?"),
        ("BLEND__METHODS", '["easee"]', "blend.methods: 'easee' is no baseline or variant of the settings: did you"),
    ],
)
def test_wrong_names_of_plugins_are_reported_before_any_stage_runs(pixrec, monkeypatch, setting, value, reported):
    monkeypatch.setenv(f"PIXREC_{setting}", value)
    code, out, err = pixrec("run", "sample")
    assert code == 1
    assert "building" not in out
    assert reported in " ".join(err.split())
    code, out, _ = pixrec("doctor")
    assert code == 1
    assert reported in " ".join(out.split())


def test_methods_of_the_settings_and_models_of_the_hub_may_be_named(pixrec, monkeypatch):
    monkeypatch.setenv("PIXREC_BLEND__METHODS", '["ease", "text_only", "semantic_ids"]')
    monkeypatch.setenv("PIXREC_RETRIEVAL__BASELINES", '["ease", "semantic_ids"]')
    monkeypatch.setenv("PIXREC_MODEL__TEXT_ENCODER", "owner/lsa")
    assert pixrec("run", "sample", "--stage", "raw")[0] == 0


def test_without_a_dataset_all_run_and_the_summary_has_a_row_per_partition(pixrec):
    code, out, _ = pixrec("run", "--variant", "text_only")
    assert code == 0
    assert summary_rows(out) == [["sample", "7 built"], ["sample|text_only", "4 built"]]


def summary_rows(out: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines() if line.startswith("│")]


def test_backfill_is_the_same_command(pixrec):
    code, out, _ = pixrec("backfill", "sample", "--stage", "raw", "--stage", "items")
    assert (code, summary_rows(out)) == (0, [["sample", "2 built"]])
