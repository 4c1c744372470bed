"""Checks of the hosts that a run with these settings needs; without one, nothing is requested."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import polars as pl
import requests

from pixrec_assets.doctor.finding import Finding, Level
from pixrec_assets.doctor.folders import HUB_NAME
from pixrec_core import engine
from pixrec_core.data import raw_files
from pixrec_core.errors import PixRecError
from pixrec_core.paths import DatasetPaths
from pixrec_core.printable import shown_url, without_secrets
from pixrec_core.schemas import IMAGE_URL
from pixrec_core.settings import TINY, EngineSettings, ImageSettings, Settings

TIMEOUT_S: Final = 3.0

#: `https://host:port` of a URL.
HOST: Final = r"^(https?://[^/?#]+)"


def check_network(settings: Settings) -> Iterator[Finding]:
    """Yield a finding for the engine, and for each dataset's backbone on the hub, URLs and main photo host."""
    if settings.engine.kind != "local":
        yield _engine(settings.engine)
    for name, dataset in settings.datasets.items():
        model = dataset.model
        if model.backbone != TINY and not Path(model.backbone).is_dir() and HUB_NAME.fullmatch(model.backbone):
            yield _hub_model(name, model.backbone, model.revision)
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


def _hub_model(dataset: str, name: str, revision: str | None) -> Finding:
    """Check that a backbone is in the local cache, or can be had from the hub."""
    from huggingface_hub import constants, try_to_load_from_cache

    subject = f"backbone {dataset}"
    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return Finding(subject, Level.OK, f"{name}, in the local cache")
    try:
        status = requests.get(f"{constants.ENDPOINT}/api/models/{name}", timeout=TIMEOUT_S).status_code
    except requests.RequestException as error:
        fix = f"download it elsewhere, and set `backbone` in [datasets.{dataset}.model] or [model] to the folder"
        return Finding(subject, Level.FAULT, f"the hub cannot be reached for {name}: {type(error).__name__}", fix)
    if status != requests.codes.ok:
        fix = f"correct `backbone` in [datasets.{dataset}.model] or [model] of pixrec.toml, or log in to the hub"
        return Finding(subject, Level.FAULT, f"the hub answers HTTP {status} for {name}", fix)
    return Finding(subject, Level.OK, f"{name}, on the hub")


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
