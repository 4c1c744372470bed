"""When a stage is current, and what happens if several processes build it."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Timer

import duckdb
import pytest
from filelock import FileLock

from pixrec_core import files
from pixrec_core.errors import BusyError, MissingArtefactError, SourceError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Stamp, Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    shop = {"source": {"kind": "sample"}}
    return Work(Settings(root=tmp_path, data_dir=tmp_path, datasets={"shop": shop}), "shop")


def make_stage(name: str, **more) -> Stage:
    """Return a stage that writes its own name."""

    def run(work: Work) -> dict:
        files.write_json(work.paths.root / name, name)
        return {"rows": 1}

    return Stage(name, run, lambda work: work.paths.root / name, **more)


def changed(work: Work, **sections: dict) -> Work:
    own = work.settings.datasets["shop"].model_dump() | sections
    return Work(Settings(root=work.settings.root, data_dir=work.settings.data_dir, datasets={"shop": own}), "shop")


def test_a_stage_is_current_once_built(work: Work) -> None:
    stage = make_stage("one")
    assert not stage.is_current(work)
    assert stage.materialise(work)["stats"] == {"rows": 1}
    assert stage.is_current(work)


def test_a_stage_without_its_artefact_is_not_current(work: Work) -> None:
    stage = make_stage("one")
    stage.materialise(work)
    files.remove(work.paths.root / "one")
    assert not stage.is_current(work)


def test_only_its_own_sections_make_a_stage_stale(work: Work) -> None:
    stage = make_stage("one", config_sections=("retrieval",))
    stage.materialise(work)
    assert stage.is_current(changed(work, training={"epochs": 9}))
    assert not stage.is_current(changed(work, retrieval={"depth": 90}))


def test_a_new_version_of_the_code_makes_a_stage_stale(work: Work) -> None:
    stage = make_stage("one")
    stage.materialise(work)
    assert not dataclasses.replace(stage, version=2).is_current(work)


def test_a_changed_input_makes_a_stage_stale(work: Work) -> None:
    content = ["old"]
    first = make_stage("one", digest=lambda _: content[0])
    second = make_stage("two", inputs=(first,))
    first.materialise(work)
    second.materialise(work)
    first.materialise(work)
    assert second.is_current(work)  # built again with the same content
    content[0] = "new"
    first.materialise(work)
    assert not second.is_current(work)


def test_a_missing_input_is_reported(work: Work) -> None:
    second = make_stage("two", inputs=(make_stage("one"),))
    with pytest.raises(
        MissingArtefactError,
        match=r"Cannot run `two` for shop: its input `one` has not been built. Run `pixrec run shop --up-to two`",
    ):
        second.materialise(work)


def test_a_failing_stage_leaves_no_stamp(work: Work) -> None:
    stage = make_stage("one")
    stage.materialise(work)

    def fail(_: Work) -> dict:
        raise SourceError("broken")

    with pytest.raises(SourceError):
        dataclasses.replace(stage, run=fail).materialise(work)
    assert stage.stamp(work) is None
    assert not stage.is_current(work)


def test_a_signal_during_a_query_is_an_interruption(work: Work) -> None:
    def run(_: Work) -> dict:
        Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        # It takes seconds and ends: DuckDB waits for the part of an interrupted query that another thread runs.
        duckdb.sql("SELECT sum(range % 7) FROM range(500_000_000)").fetchall()
        return {}

    with pytest.raises(KeyboardInterrupt):
        dataclasses.replace(make_stage("one"), run=run).materialise(work)


def test_a_stage_with_missing_external_inputs_is_not_current(work: Work) -> None:
    def gone(_: Work) -> None:
        raise SourceError("the folder is gone")

    stage = make_stage("one")
    stage.materialise(work)
    assert not dataclasses.replace(stage, external_inputs=gone).is_current(work)


def test_what_another_process_has_built_since_the_inspection_is_kept(work: Work) -> None:
    content = ["old"]
    stage = make_stage("one", external_inputs=lambda _: content[0])
    inputs = stage.inspect_inputs(work)
    built = stage.materialise(work)
    stage = dataclasses.replace(stage, run=lambda _: {"rows": 2})
    assert stage.materialise(work, inputs=inputs) == built
    assert stage.materialise(work)["stats"] == {"rows": 2}, "without an inspection, it is built again"
    content[0] = "new"
    assert stage.materialise(work)["stats"] == {"rows": 2}
    stage = dataclasses.replace(stage, run=lambda _: {"rows": 3})
    assert stage.materialise(work, inputs=inputs)["stats"] == {"rows": 3}, "the other one was built from other inputs"


OTHER_PROCESS = """
import sys
from pathlib import Path
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work
def run(work):
    print("RUNNING", flush=True)
    (work.paths.root / "one").write_text(sys.stdin.readline())
    return {"by": "the other process"}
root = Path(sys.argv[1])
work = Work(Settings(root=root, data_dir=root, datasets={"shop": {"source": {"kind": "sample"}}}), "shop")
Stage("one", run, lambda work: work.paths.root / "one").materialise(work)
"""


@pytest.fixture
def other(work: Work) -> Iterator[subprocess.Popen[str]]:
    """A process that is building the stage `one` until it is sent a line."""
    command = [sys.executable, "-c", OTHER_PROCESS, str(work.settings.root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "RUNNING\n"
        yield process


def built_after(end: Callable[[], object], stage: Stage, work: Work, caplog: pytest.LogCaptureFixture) -> Stamp:
    """Start the stage, call `end` once it waits for another process, and return its stamp."""
    caplog.set_level(logging.INFO, "pixrec_core")
    with ThreadPoolExecutor(1) as thread:
        stamp = thread.submit(stage.materialise, work)
        while "waiting for another process that is building `one` of shop" not in caplog.text:
            assert not stamp.done()
            time.sleep(0.01)
        end()
        return stamp.result()


@pytest.mark.parametrize("is_input", [False, True])
def test_a_stage_waits_for_another_process_and_keeps_what_that_has_built(work, other, caplog, is_input) -> None:
    stage = make_stage("two", inputs=(make_stage("one"),)) if is_input else make_stage("one")
    stamp = built_after(lambda: other.communicate("\n"), stage, work, caplog)
    assert stamp["stats"] == ({"rows": 1} if is_input else {"by": "the other process"})
    assert stage.is_current(work)


def test_a_stage_that_waits_for_a_process_that_dies_is_built(work, other, caplog) -> None:
    stage = make_stage("one")
    assert built_after(other.kill, stage, work, caplog)["stats"] == {"rows": 1}
    assert stage.is_current(work)


def test_a_command_that_needs_the_artefact_alone_does_not_wait(work: Work) -> None:
    stage = make_stage("one")
    with (
        FileLock(stage.stamp_path(work).with_suffix(".lock")),
        pytest.raises(BusyError, match="Cannot run `one` for shop: another process is building it"),
        stage.exclusive(work),
    ):
        pass


def with_joint_training(work: Work, **joint: dict) -> Settings:
    datasets = {
        "shop": {"source": {"kind": "sample"}, "start_from": "all"},
        "other": {"source": {"kind": "sample", "seed": 1}},
    }
    joint = {"datasets": ["shop", "other"], **joint}
    return Settings(root=work.settings.root, data_dir=work.settings.data_dir, datasets=datasets, joint={"all": joint})


def test_a_joint_stage_reads_all_its_datasets_and_feeds_those_that_start_from_it(work: Work) -> None:
    content = {"shop": "1", "other": "1"}
    first = make_stage("one", digest=lambda work: content[work.dataset])
    joint = dataclasses.replace(
        make_stage("joint", partitioned_by="joint", config_sections=("training",)), inputs=(first,)
    )
    last = make_stage("last", partitioned_by="variant", inputs=(first, joint))
    settings = with_joint_training(work)
    shop, other, both = (Work(settings, name, "text_only") for name in ("shop", "other", "all"))
    with pytest.raises(
        MissingArtefactError, match=r"`joint` for all\|text_only: its input `one` of shop has not been built"
    ):
        joint.materialise(both)
    first.materialise(shop)
    first.materialise(other)
    with pytest.raises(
        MissingArtefactError,
        match=r"`last` for shop\|text_only: its input `joint` of all\|text_only has not been built",
    ):
        last.materialise(shop)
    last.materialise(other)
    joint.materialise(both)
    last.materialise(shop)
    assert joint.is_current(both)
    assert last.is_current(shop)

    content["other"] = "2"
    first.materialise(other)
    assert not joint.is_current(both)
    assert not last.is_current(other)
    assert last.is_current(shop), "until the joint stage has been built again"
    joint.materialise(both)
    assert not last.is_current(shop)
    changed = Work(with_joint_training(work, training={"epochs": 9}), "all", "text_only")
    assert not joint.is_current(changed)
