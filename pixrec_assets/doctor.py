"""Checks before a run: machine, settings, folders and network. See `pixrec doctor`.

Without a setting that needs a host, nothing is requested from it.
"""

import ctypes
import os
import platform
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Final

import polars as pl
import psutil
import requests

from pixrec_assets.home import VARIABLE, dagster_home
from pixrec_core import engine, hub, pipeline
from pixrec_core.data import raw_files
from pixrec_core.errors import BackboneError, PixRecError
from pixrec_core.models.encoders import encoder_names
from pixrec_core.paths import DatasetPaths
from pixrec_core.printable import shown_url, without_secrets
from pixrec_core.schemas import IMAGE_URL
from pixrec_core.settings import (
    TINY,
    DatasetSettings,
    EngineSettings,
    ImageSettings,
    Settings,
    SourceSettings,
    config_path,
    load_settings,
)

PYTHON: Final = (3, 11)
SETUP: Final = "reinstall PixRec: `make setup` in a checkout, else `pip install`"
#: Free bytes below which any run may fail, and below which a run of a large category may.
MIN_FREE: Final = 2**30
ENOUGH_FREE: Final = 10 * 2**30
MOST_FILES: Final = 4  # that are named
#: What a folder of a backbone must have, as patterns.
BACKBONE_FILES: Final = ("config.json", "*.safetensors", "tokenizer.json", "preprocessor_config.json")
HUB_NAME: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*")
TIMEOUT_S: Final = 3.0
#: `https://host:port` of a URL.
HOST: Final = r"^(https?://[^/?#]+)"


class Level(StrEnum):
    """Severity: a fault stops a run, a warning may."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of `pixrec doctor`.

    Attributes:
        subject: what was checked.
        level: severity.
        text: what was found.
        fix: what to do about it; empty if nothing is wrong.
        details: lines that show what was read.
    """

    subject: str
    level: Level
    text: str
    fix: str = ""
    details: tuple[str, ...] = ()


def check_machine() -> Iterator[Finding]:
    """Yield findings on Python, cores and memory, PyTorch and its device, and LightGBM."""
    yield _python()
    memory = psutil.virtual_memory()
    yield Finding(
        "machine", Level.OK, f"{os.cpu_count()} cores, {_gib(memory.available)} of {_gib(memory.total)} memory free"
    )
    yield _torch()
    yield _lightgbm()


def _python() -> Finding:
    text = f"{platform.python_version()} in {sys.prefix}"
    if sys.version_info < PYTHON:
        return Finding("python", Level.FAULT, text, f"PixRec needs {'.'.join(map(str, PYTHON))} or newer: {SETUP}")
    return Finding("python", Level.OK, text)


def _torch() -> Finding:
    try:
        import torch
    except (ImportError, OSError) as error:  # OSError: a CUDA library is missing
        return Finding("torch", Level.FAULT, f"cannot be imported: {error}", SETUP)
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        text = f"{torch.__version__} on {properties.name}, {_gib(properties.total_memory)} of GPU memory"
        return Finding("torch", Level.OK, text)
    if torch.version.cuda:
        fix = "check `nvidia-smi` and the driver, or use the CPU"
        return Finding("torch", Level.WARNING, f"{torch.__version__} is built for CUDA but sees no GPU", fix)
    return Finding("torch", Level.OK, f"{torch.__version__} on the CPU, enough for small backbones such as `tiny`")


def _lightgbm() -> Finding:
    """Load only its library, which needs OpenMP: an import of the package takes more than a second."""
    try:
        for path in metadata.files("lightgbm") or ():
            if path.stem == "lib_lightgbm":
                ctypes.CDLL(str(path.locate()))
        return Finding("lightgbm", Level.OK, metadata.version("lightgbm"))
    except (ImportError, OSError) as error:
        fix = f"on macOS: `brew install libomp`; on Debian and Ubuntu: `apt install libgomp1`; else {SETUP}"
        return Finding("lightgbm", Level.FAULT, f"cannot be loaded: {error}", fix)


def _gib(count: float) -> str:
    return f"{count / 2**30:.1f} GiB"


def check_folders(settings: Settings) -> Iterator[Finding]:
    """Yield findings on source, models and wrong names of each dataset, the data folder, and the Dagster instance."""
    for name, dataset in settings.datasets.items():
        yield _source(name, dataset.source, settings.root)
    yield from _local_models(settings)
    yield from _names(settings)
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


def _models(dataset: DatasetSettings) -> Iterator[tuple[str, str, str | None]]:
    """Yield setting, name and revision of each model of a dataset that is a folder, or on the hub."""
    model = dataset.model
    if (model.user_encoder == "tokens" or model.item_encoder == "backbone") and model.backbone != TINY:
        yield "backbone", model.backbone, model.revision
    for setting in ("text_encoder", "photo_encoder"):
        if (name := getattr(model, setting)) not in encoder_names():
            yield setting, name, None


def _local_models(settings: Settings) -> Iterator[Finding]:
    """Check models in local folders; those of the hub are checked with the network."""
    for dataset, section in settings.datasets.items():
        for setting, model, _ in _models(section):
            subject, folder = f"{setting} {dataset}", Path(model)
            fix = f"correct `{setting}` in [datasets.{dataset}.model] or [model] of pixrec.toml; docs/how-it-works.md"
            if folder.is_dir():
                needed = BACKBONE_FILES if setting == "backbone" else ()
                missing = [pattern for pattern in needed if not any(folder.glob(pattern))]
                text = f"{folder} lacks {', '.join(missing)}" if missing else str(folder)
                yield Finding(subject, *((Level.FAULT, text, fix) if missing else (Level.OK, text)))
            elif not HUB_NAME.fullmatch(model):
                text = f"{model!r} is neither a name of PixRec's own, nor a folder, nor a model of the Hugging Face hub"
                yield Finding(subject, Level.FAULT, text, fix)


def _names(settings: Settings) -> Iterator[Finding]:
    """Report the first unknown encoder, baseline or method of the blend of each dataset."""
    for name, dataset in settings.datasets.items():
        try:
            pipeline.check_names(dataset, settings.variants)
        except PixRecError as error:
            yield Finding(f"settings {name}", Level.FAULT, str(error), "correct the setting in pixrec.toml")


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


def check_network(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for the engine, and for each dataset's models on the hub, URLs and main photo host."""
    if settings.engine.kind != "local":
        yield _engine(settings.engine)
    for name, dataset in settings.datasets.items():
        for setting, model, revision in _models(dataset):
            if not Path(model).is_dir() and HUB_NAME.fullmatch(model):
                yield _hub_model(name, setting, model, revision)
        try:
            urls = raw_files.urls(dataset.source)
        except PixRecError:
            continue  # the check of the source has reported it
        yield from (_raw(name, url) for url in urls)
        if url := _photo(DatasetPaths.of(settings.data_dir, name)):
            yield _photo_host(f"network {name}", url, dataset.images)


def _engine(settings: EngineSettings) -> Finding:
    """Check that its library is installed and the cluster's port answers; no token is tried."""
    try:
        engine.create_engine(settings)
    except PixRecError as error:
        return Finding("engine", Level.FAULT, str(error), "install it, or remove [engine] from pixrec.toml")
    host, _, port = (settings.address or "").rpartition(":")
    subject = f"{settings.kind} at {shown_url(settings.address or '')}"
    if not host:
        return Finding("engine", Level.OK, f"{settings.kind}, on this machine")
    try:
        socket.create_connection((host, int(port)), TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        fix = "start the cluster, or correct `address` in [engine]: HOST:PORT of its head; docs/scale.md"
        return Finding(
            "engine",
            Level.FAULT,
            f"{subject} does not answer: {without_secrets(str(error))}",
            fix,
        )
    return Finding("engine", Level.OK, f"{subject} answers")


def _hub_model(dataset: str, setting: str, name: str, revision: str | None) -> Finding:
    """Check that a model can be had from the hub, with the token of the user, or is in the local cache."""
    subject = f"{setting} {dataset}"
    try:
        commit = hub.resolve_commit(name, revision, f"model.{setting}")
    except BackboneError as error:
        return Finding(
            subject, Level.FAULT, str(error), f"it is in [datasets.{dataset}.model] or [model] of pixrec.toml"
        )
    return Finding(subject, Level.OK, f"{name}, commit {commit}")


def _raw(dataset: str, url: str) -> Finding:
    subject = f"network {dataset}"
    shown = shown_url(url)
    try:
        with requests.get(url, timeout=TIMEOUT_S, stream=True) as response:  # some servers refuse HEAD
            status = response.status_code
    except requests.RequestException as error:
        text = f"{shown} cannot be reached: {type(error).__name__}"
        return Finding(
            subject, Level.FAULT, text, "check the network and proxy, or download the files and set `folder`"
        )
    if status >= requests.codes.bad_request:
        fix = f"correct the URL in [datasets.{dataset}.source] of pixrec.toml, or try again later"
        return Finding(subject, Level.FAULT, f"{shown} answers HTTP {status}", fix)
    return Finding(subject, Level.OK, f"{shown} answers")


def _photo(paths: DatasetPaths) -> str | None:
    """A photo URL of the host with most photos; None without a catalogue or if photos are local."""
    if not paths.items.exists():
        return None
    from pixrec_core.data.local_photos import is_local

    urls = pl.scan_parquet(paths.items, glob=False).filter(~is_local(pl.col(IMAGE_URL)))
    urls = urls.select(IMAGE_URL, host=pl.col(IMAGE_URL).str.extract(HOST)).drop_nulls()
    hosts = urls.group_by("host").agg(pl.len(), pl.col(IMAGE_URL).first()).sort("len", "host", descending=True)
    found = hosts.head(1).collect()
    return None if found.is_empty() else str(found[IMAGE_URL][0])


def _photo_host(subject: str, url: str, images: ImageSettings) -> Finding:
    """Download one photo with the limits of all photos."""
    from pixrec_core.data.fetching import Fetcher, FetchError

    shown = shown_url(url)
    quick = images.model_copy(update={"timeout_s": TIMEOUT_S, "deadline_s": 2 * TIMEOUT_S})
    try:
        with Fetcher(quick) as fetcher:
            fetcher.get(url)
    except FetchError as error:
        fix = "check the network, and `allow_hosts`, `deny_hosts`, `allow_private_hosts` in [images]; docs/your-data.md"
        return Finding(subject, Level.WARNING, f"the photo {shown} cannot be downloaded: {error.reason}", fix)
    return Finding(subject, Level.OK, f"the photo {shown} can be downloaded")


def check_all() -> Iterator[Finding]:
    """Yield findings, each as soon as it is known; without readable settings only those of the machine."""
    yield from check_machine()
    try:
        settings = load_settings()
    except PixRecError as error:
        yield Finding(
            "settings", Level.FAULT, str(error), "correct the setting named there; docs/settings.md lists all settings"
        )
        return
    yield _settings(settings)
    yield from check_folders(settings)
    yield from check_network(settings)


def _settings(settings: Settings) -> Finding:
    path = config_path()
    source = str(path) if path.is_file() else f"no {path}: only the sample dataset"
    return Finding("settings", Level.OK, f"{source}; datasets: {', '.join(settings.datasets)}")
