"""Checks of folders: raw files, artefacts, and Dagster's history."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from pixrec_assets.doctor.finding import Finding, Level
from pixrec_assets.home import VARIABLE, dagster_home
from pixrec_core.data import raw_files
from pixrec_core.errors import PixRecError
from pixrec_core.settings import TINY, Settings, SourceSettings

#: Free bytes below which any run may fail, and below which a run of a large category may.
MIN_FREE: Final = 2**30
ENOUGH_FREE: Final = 10 * 2**30
MOST_FILES: Final = 4  # that are named


#: What a folder of a backbone must have, as patterns.
BACKBONE_FILES: Final = ("config.json", "*.safetensors", "tokenizer.json", "preprocessor_config.json")
HUB_NAME: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def check_folders(settings: Settings) -> Iterator[Finding]:
    """Yield findings on source and backbone of each dataset, the data folder, and the Dagster instance."""
    for name, dataset in settings.datasets.items():
        yield _source(name, dataset.source, settings.root)
    yield from _backbones(settings)
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
        fix = f"`export {VARIABLE}={home}`, so `dagster dev` shows the same runs"
        yield Finding(VARIABLE, Level.WARNING, f"not set; pixrec uses {home}, dagster a temporary folder", fix)
    yield _instance(home)


def _source(name: str, source: SourceSettings, root: Path) -> Finding:
    """Check its options and that the local files exist, and show how their first rows are read."""
    subject = f"source {name}"
    try:
        files = [str(path) for path in raw_files.watched(source, root)]
        details = raw_files.preview(source, root, name)
    except PixRecError as error:
        return Finding(
            subject, Level.FAULT, str(error).replace("<name>", name), f"correct [datasets.{name}.source] of pixrec.toml"
        )
    warns = any(line.startswith("warning:") for line in details)
    shown = ", ".join([*files[:MOST_FILES], *([f"{len(files):,} files in all"] if len(files) > MOST_FILES else [])])
    return Finding(
        subject,
        Level.WARNING if warns else Level.OK,
        shown or "generated or downloaded by a run",
        "correct the files, or the mapping of their columns; docs/your-data.md" if warns else "",
        tuple(details),
    )


def _backbones(settings: Settings) -> Iterator[Finding]:
    """Check each dataset's backbone in a local folder; models of the hub are checked with the network."""
    for name, dataset in settings.datasets.items():
        backbone = dataset.model.backbone
        subject, folder = f"backbone {name}", Path(backbone)
        fix = f"correct `backbone` in [datasets.{name}.model] or [model] of pixrec.toml; docs/how-it-works.md"
        if backbone == TINY:
            yield Finding(subject, Level.OK, f"`{TINY}`, built by the training")
        elif folder.is_dir():
            missing = [pattern for pattern in BACKBONE_FILES if not any(folder.glob(pattern))]
            text = f"{folder} lacks {', '.join(missing)}" if missing else str(folder)
            yield Finding(subject, *((Level.FAULT, text, fix) if missing else (Level.OK, text)))
        elif not HUB_NAME.fullmatch(backbone):
            text = f"{backbone!r} is neither `{TINY}`, nor a folder, nor a name on the Hugging Face hub (owner/model)"
            yield Finding(subject, Level.FAULT, text, fix)


def _folder(subject: str, folder: Path) -> Iterator[Finding]:
    """Check that it is writable, and its free disk space."""
    existing = next(each for each in (folder, *folder.parents) if each.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        text = f"{existing} is not writable: {error.strerror}"
        yield Finding(subject, Level.FAULT, text, f"`chown` it to this user, or set {subject} to another folder")
        return
    free = shutil.disk_usage(existing).free
    level = Level.FAULT if free < MIN_FREE else Level.WARNING if free < ENOUGH_FREE else Level.OK
    fix = f"free disk space, or set {subject} to a folder on another disk" if level is not Level.OK else ""
    yield Finding(subject, level, f"{folder}, {free / 2**30:.1f} GiB free", fix)


def _instance(home: Path) -> Finding:
    """Check that Dagster's storage answers: SQLite in a folder or a PostgreSQL server."""
    import dagster as dg

    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            runs = instance.get_runs_count()
            pools = instance.get_concurrency_config().pool_config.pool_granularity
    except Exception as error:  # of a database driver, YAML or Dagster
        first = str(error).strip().split("\n")[0]
        fix = f"correct dagster.yaml in {home}; for PostgreSQL see docs/operations.md"
        return Finding("dagster", Level.FAULT, f"the instance does not open: {first}", fix)
    if pools is None or pools.value != "op":
        fix = f"set `concurrency: {{pools: {{granularity: op}}}}` in {home}/dagster.yaml"
        return Finding("dagster", Level.WARNING, "pools have no effect without a daemon", fix)
    return Finding("dagster", Level.OK, f"the instance in {home} has {runs} runs")
