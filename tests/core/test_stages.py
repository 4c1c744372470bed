"""What makes a stage current, and who may make it."""

import dataclasses
from pathlib import Path

import pytest
from filelock import FileLock

from pixrec_core import files
from pixrec_core.errors import BusyError, MissingArtefactError, SourceError
from pixrec_core.settings import Settings
from pixrec_core.stages import Stage, Work


@pytest.fixture
def work(tmp_path: Path) -> Work:
    shop = {"source": {"kind": "sample"}}
    return Work(Settings(root=tmp_path, data_dir=tmp_path, datasets={"shop": shop}), "shop")


def made(name: str, **more) -> Stage:
    """A stage that writes its own name."""

    def run(work: Work) -> dict:
        files.write_json(work.paths.root / name, name)
        return {"rows": 1}

    return Stage(name, run, lambda work: work.paths.root / name, **more)


def changed(work: Work, **sections: dict) -> Work:
    own = work.settings.datasets["shop"].model_dump() | sections
    return Work(Settings(root=work.settings.root, data_dir=work.settings.data_dir, datasets={"shop": own}), "shop")


def test_a_stage_is_current_once_made(work: Work) -> None:
    stage = made("one")
    assert not stage.is_current(work)
    assert stage.materialise(work)["stats"] == {"rows": 1}
    assert stage.is_current(work)


def test_a_stage_whose_artefact_is_gone_is_not_current(work: Work) -> None:
    stage = made("one")
    stage.materialise(work)
    files.remove(work.paths.root / "one")
    assert not stage.is_current(work)


def test_only_its_own_sections_make_a_stage_stale(work: Work) -> None:
    stage = made("one", sections=("retrieval",))
    stage.materialise(work)
    assert stage.is_current(changed(work, training={"epochs": 9}))
    assert not stage.is_current(changed(work, retrieval={"depth": 9}))


def test_a_new_version_of_the_code_makes_a_stage_stale(work: Work) -> None:
    stage = made("one")
    stage.materialise(work)
    assert not dataclasses.replace(stage, version=2).is_current(work)


def test_what_an_input_became_makes_a_stage_stale(work: Work) -> None:
    content = ["old"]
    first = made("one", digest=lambda _: content[0])
    second = made("two", inputs=(first,))
    first.materialise(work)
    second.materialise(work)
    first.materialise(work)
    assert second.is_current(work)  # made again, the same came out
    content[0] = "new"
    first.materialise(work)
    assert not second.is_current(work)


def test_a_stage_without_its_input_says_which(work: Work) -> None:
    second = made("two", inputs=(made("one"),))
    with pytest.raises(MissingArtefactError, match="two of shop needs one of shop"):
        second.materialise(work)


def test_a_failing_stage_leaves_no_stamp(work: Work) -> None:
    stage = made("one")
    stage.materialise(work)

    def fail(_: Work) -> dict:
        raise SourceError("broken")

    with pytest.raises(SourceError):
        dataclasses.replace(stage, run=fail).materialise(work)
    assert stage.stamp(work) is None
    assert not stage.is_current(work)


def test_a_stage_that_cannot_be_judged_is_not_current(work: Work) -> None:
    def gone(_: Work) -> None:
        raise SourceError("the folder is gone")

    stage = made("one")
    stage.materialise(work)
    assert not dataclasses.replace(stage, outside=gone).is_current(work)


def test_a_stage_that_another_process_makes_is_refused(work: Work) -> None:
    stage = made("one")
    stage.materialise(work)
    with FileLock(stage.stamp_path(work).with_suffix(".lock")), pytest.raises(BusyError, match="one"):
        stage.materialise(work)
    assert stage.is_current(work)
