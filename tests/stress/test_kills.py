"""Stages that are killed at random moments leave no partial artefact, and build the same when they run again."""

from pathlib import Path

import pytest

from pixrec_core import files, pipeline
from pixrec_core.stages import Work
from tests.core.forks import CONTEXT
from tests.core.shop import open_shop, settings
from tests.core.test_faults import content, tables

STAGES = {stage.name: stage for stage in (pipeline.ITEMS, pipeline.INTERACTIONS, pipeline.IMAGES, pipeline.SEQUENCES)}
LONGEST_S = 2.0


def run_stage(root: Path, name: str) -> None:
    """The target of a process."""
    STAGES[name].materialise(Work(settings(root), "shop"))


def contents(work: Work, name: str) -> object:
    path = STAGES[name].artefact(work)
    return tables(path) if path.suffix == ".duckdb" else content(path)


@pytest.mark.timeout(0)
def test_kills(tmp_path: Path, rounds) -> None:
    work = open_shop(tmp_path)
    expected = {name: contents(work, name) for name in STAGES}
    for random in rounds():
        name = random.choice([*STAGES])
        files.remove(STAGES[name].stamp_path(work))
        process = CONTEXT.Process(target=run_stage, args=(work.settings.root, name))
        process.start()
        process.join(random.uniform(0, LONGEST_S))
        process.kill()
        process.join()
        assert contents(work, name) == expected[name], "the artefact is the earlier one or a complete new one"
        STAGES[name].materialise(work)
        assert contents(work, name) == expected[name]
        assert not list(work.paths.root.rglob(".*.partial"))
