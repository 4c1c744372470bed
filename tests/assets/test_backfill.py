"""Several datasets in one call: what fails stops only what reads it, and nothing is lost when the call is ended."""

import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import dagster as dg
import psutil
import pytest
from rich.console import Console

from pixrec_assets.backfill import Backfill, State
from pixrec_assets.running import Fault, Task, key_of, tasks_of
from pixrec_core import pipeline
from pixrec_core.errors import SourceError
from pixrec_core.settings import Settings, load_settings
from pixrec_core.stages import Work
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
TASKS = 6 + 2 * 5 + 2  # of a dataset: from raw to baselines, five a variant, evaluation and report


class OutOfOrder:
    """A pool that ends the newest of its tasks first, and lets those fail that it is told to."""

    def __init__(self, size: int, failing: set[tuple[str, str]]) -> None:
        self.size, self.failing, self.busy, self.most = size, failing, [], 0

    @property
    def free(self) -> int:
        return self.size - len(self.busy)

    def start(self, task: Task) -> None:
        for stage, work in task[0].reads(task[1]):
            assert stage.stamp(work), f"{key_of(task)} was started before {key_of((stage, work))} was made"
        self.busy.append(task)
        self.most = max(self.most, len(self.busy))

    def wait(self) -> tuple[Task, Fault | None]:
        stage, work = task = self.busy.pop()
        if key_of(task) in self.failing:
            return task, Fault("broken", known=True)
        stage.materialise(work, **({"on_epoch": lambda _: None} if stage.name == "checkpoint" else {}))
        return task, None

    def stop(self) -> None:
        self.busy = []


@pytest.fixture
def datasets(settings: Settings, project: Path) -> Settings:
    (project / "pixrec.toml").write_text(TOML)
    return load_settings()


def run(settings: Settings, pool: OutOfOrder, *, force: bool = False) -> dict[tuple[str, str], State]:
    tasks = tasks_of(settings, ("a", "b"), (), ())
    outcomes = Backfill(tasks, pool, Console(file=StringIO()), force=force).run()
    assert [outcome.task for outcome in outcomes] == tasks
    return {key_of(outcome.task): outcome.state for outcome in outcomes}


@pytest.mark.parametrize("size", [1, 2, 5])
def test_everything_is_made_once_and_inputs_first(datasets, size):
    pool = OutOfOrder(size, set())
    assert set(run(datasets, pool).values()) == {State.MADE}
    assert pool.most == min(size, 4)  # both datasets' raw files, then at most baselines and two variants of one
    assert set(run(datasets, OutOfOrder(size, set())).values()) == {State.CURRENT}
    assert set(run(datasets, OutOfOrder(size, set()), force=True).values()) == {State.MADE}


@pytest.mark.parametrize("size", [1, 3])
def test_a_failure_stops_only_what_reads_it_directly_or_not(datasets, size):
    states = run(datasets, OutOfOrder(size, {("item_vectors", "a|text_only")}))
    lacking = {key for key, state in states.items() if state is State.SKIPPED}
    of_variant = {(stage, "a|text_only") for stage in ("item_index", "ranking", "promoted")}
    assert lacking == of_variant | {("evaluation", "a"), ("report", "a")}
    assert [key for key, state in states.items() if state is State.FAILED] == [("item_vectors", "a|text_only")]
    assert list(states.values()).count(State.MADE) == 2 * TASKS - 6


#: Every process, a worker too, has fake stages; what is to go wrong is said by a file beside the settings.
SITE = """
import os, signal, time
from pathlib import Path
from tests.assets import fake_stages

def told(name):
    return Path(os.environ["PIXREC_CONFIG"]).with_name(name).exists()

def hinder(real):
    def run(work, **callbacks):
        if told(f"items.{work.dataset}.dies"):
            os.kill(os.getpid(), signal.SIGKILL)
        if told(f"items.{work.dataset}.lasts"):
            print("LASTING", os.getpid(), flush=True)
            time.sleep(60)
        return real(work, **callbacks)
    return run

fake_stages.items = hinder(fake_stages.items)
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
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)

    return call


def runs(settings: Settings) -> list[dg.DagsterRun]:
    with dg.DagsterInstance.from_config(str(settings.data_dir / ".dagster")) as instance:
        return list(instance.get_runs())


def made(out: str) -> list[str]:
    return re.findall(r"^(.*): materialising", out, re.MULTILINE)


def test_one_partition_fails_the_others_are_made_and_the_printed_command_retries(
    datasets, instance, monkeypatch, capsys
):
    for name in [name for name in sys.modules if name.partition(".")[0] == "pixrec_assets"]:
        monkeypatch.delitem(sys.modules, name)  # partitions are read at import
    cli, execution = (importlib.import_module(f"pixrec_assets.{name}") for name in ("cli", "execution"))
    monkeypatch.setattr(execution, "open_instance", lambda _: instance)

    def items(work: Work) -> dict:
        if work.dataset == "b" and not (work.settings.root / "mended").exists():
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
    code, out, err = call(f"--config {config} backfill --datasets a,b --variants text_only")
    assert code == 1
    assert "Traceback" not in out + err
    assert "interactions b: skipped, for want of items b" in out
    assert "1 failed: items" in out
    assert "SourceError: no items of b" in err
    tags = {(run.tags["dagster/partition"], run.status.value) for run in instance.get_runs()}
    assert tags == {("a", "SUCCESS"), ("a|text_only", "SUCCESS"), ("b", "SUCCESS"), ("b", "FAILURE")}

    (datasets.root / "mended").touch()
    retry = err.strip().rpartition("To go on: pixrec ")[2]
    assert retry == f"--config {config} backfill --datasets b --variants text_only --workers 1"
    code, out, _ = call(retry)
    assert code == 0
    assert len(made(out)) == 5 + 5, "all of b but its raw files"
    assert pipeline.RANKING.is_current(Work(datasets, "b", "text_only"))


ONLY_DATA = ("--assets", "raw,items,interactions")


@pytest.mark.slow
def test_a_worker_that_is_killed_is_one_failed_task(pixrec_process, datasets, project):
    (project / "items.b.dies").touch()
    done = pixrec_process("backfill", "--datasets", "a,b", "--workers", "2", *ONLY_DATA)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "1 failed: items" in done.stdout
    assert "the worker process of b was killed by SIGKILL" in done.stderr
    assert pipeline.INTERACTIONS.is_current(Work(datasets, "a"))
    told = [(run.tags["dagster/partition"], run.status.value) for run in runs(datasets)]
    assert sorted(told) == [("a", "SUCCESS")] * 3 + [("b", "FAILURE"), ("b", "SUCCESS")]


@contextmanager
def lasting(environment: dict[str, str], project: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A backfill in the middle of a step, in a session of its own, and the process that the step is in."""
    (project / "items.a.lasts").touch()
    command = [*COMMAND, "backfill", "--datasets", "a", "--workers", "2", *ONLY_DATA]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    ) as process:
        assert process.stdout
        while not (line := process.stdout.readline()).startswith("LASTING"):
            assert process.poll() is None
        yield process, int(line.split()[1])


@pytest.mark.slow
def test_ctrl_c_ends_the_steps_of_workers_and_a_later_call_goes_on(environment, pixrec_process, datasets, project):
    with lasting(environment, project) as (process, step):
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=40)
    assert process.returncode == 130, out + err
    assert "Traceback" not in out + err
    assert not psutil.pid_exists(step)
    assert "1 stopped: items" in out
    assert "1 not begun: interactions" in out
    assert "pixrec backfill --datasets a --assets raw,items,interactions --workers 2" in err
    assert sorted(run.status.value for run in runs(datasets)) == ["FAILURE", "SUCCESS"]

    (project / "items.a.lasts").unlink()
    again = pixrec_process("backfill", "--datasets", "a", *ONLY_DATA)
    assert again.returncode == 0, again.stderr
    assert made(again.stdout) == ["items a", "interactions a"]


@pytest.mark.slow
def test_workers_end_with_a_parent_that_is_killed(environment, project):
    with lasting(environment, project) as (process, step):
        process.kill()
        deadline = time.monotonic() + 20
        while psutil.pid_exists(step):
            assert time.monotonic() < deadline, "its step goes on for nobody"
            time.sleep(0.05)


def test_wrong_names_are_told_with_the_known_ones(pixrec):
    code, _, err = pixrec("backfill", "--datasets", "nope")
    assert (code, "unknown dataset 'nope'" in err) == (1, True)
    code, _, err = pixrec("backfill", "--assets", "raw,nope")
    assert (code, "'nope' is not one of raw, items" in err) == (2, True)
    assert pixrec("backfill", "--workers", "0")[0] == 2


def test_without_datasets_all_are_made_and_the_summary_has_a_row_a_partition(pixrec):
    code, out, _ = pixrec("backfill", "--variants", "text_only")
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in out.splitlines() if line.startswith("│")]
    assert code == 0
    assert rows == [["sample", "6 made"], ["sample|text_only", "5 made"]]
