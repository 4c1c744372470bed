"""Folders: raw files, artefacts, and Dagster's history."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pixrec_assets.doctor.finding import Finding, Level
from pixrec_assets.home import VARIABLE, dagster_home
from pixrec_core.data import raw_files
from pixrec_core.errors import PixRecError
from pixrec_core.settings import Settings, SourceSettings

#: Bytes free under which nothing can be expected to end well, and under which a category of real size may not.
LEAST_FREE: Final = 2**30
ROOMY: Final = 10 * 2**30


def findings(settings: Settings) -> Iterator[Finding]:
    """Each dataset's source, the data folder, and the Dagster instance."""
    for name, dataset in settings.datasets.items():
        yield _source(f"source {name}", dataset.source, settings.root)
    yield from _folder("data_dir", settings.data_dir)
    before = os.environ.get(VARIABLE)
    try:
        home = dagster_home(settings)
    except (PixRecError, OSError) as error:
        yield Finding(VARIABLE, Level.FAULT, str(error), f"`export {VARIABLE}=$PWD` in the folder of dagster.yaml")
        return
    if before:
        yield from _folder(VARIABLE, home)
    else:
        mend = f"`export {VARIABLE}={home}`, so that `dagster dev` shows the same runs"
        yield Finding(VARIABLE, Level.WARNING, f"not set; pixrec takes {home}, dagster a temporary folder", mend)
    yield _instance(home)


def _source(subject: str, source: SourceSettings, root: Path) -> Finding:
    """Whether its options are right and the local files that it reads are there."""
    try:
        described = raw_files.describe(source, root)
    except PixRecError as error:
        return Finding(subject, Level.FAULT, str(error), "mend [datasets.<name>.source] of pixrec.toml")
    files = ", ".join(described) if described else "made or downloaded by a run"
    return Finding(subject, Level.OK, files)


def _folder(subject: str, folder: Path) -> Iterator[Finding]:
    """Whether it can be written to, and the room there."""
    there = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        told = f"{there} cannot be written to: {error.strerror}"
        yield Finding(subject, Level.FAULT, told, f"`chown` it to this user, or name another folder as {subject}")
        return
    free = shutil.disk_usage(there).free
    level = Level.FAULT if free < LEAST_FREE else Level.WARNING if free < ROOMY else Level.OK
    mend = f"make room, or name a folder on another disk as {subject}" if level is not Level.OK else ""
    yield Finding(subject, level, f"{folder}, {free / 2**30:.1f} GiB free", mend)


def _instance(home: Path) -> Finding:
    """Whether Dagster's storage answers, be it SQLite in a folder or a PostgreSQL server."""
    import dagster as dg

    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            runs = instance.get_runs_count()
            pools = instance.get_concurrency_config().pool_config.pool_granularity
    except Exception as error:  # whatever a storage raises: a driver's, YAML's, Dagster's own
        first = str(error).strip().split("\n")[0]
        mend = f"mend dagster.yaml in {home}; for PostgreSQL see docs/operations.md"
        return Finding("dagster", Level.FAULT, f"the instance does not open: {first}", mend)
    if pools is None or pools.value != "op":
        mend = f"set `concurrency: {{pools: {{granularity: op}}}}` in {home}/dagster.yaml"
        return Finding("dagster", Level.WARNING, "pools do not hold without a daemon", mend)
    return Finding("dagster", Level.OK, f"the instance in {home} has {runs} runs")
