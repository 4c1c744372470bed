"""Hosts that the settings make a run ask; nothing is asked where no dataset needs the network."""

import socket
from collections.abc import Iterator
from typing import Final

import polars as pl
import requests

from pixrec_assets.doctor.finding import Finding, Level
from pixrec_core import engine
from pixrec_core.data import raw_files
from pixrec_core.errors import PixRecError
from pixrec_core.paths import DatasetPaths
from pixrec_core.schemas import IMAGE_URL
from pixrec_core.settings import EngineSettings, ImageSettings, Settings, without_secrets

TIMEOUT_S: Final = 3.0

#: `https://host:port/` of a URL.
HOST: Final = r"^(https?://[^/?#]+)"


def findings(settings: Settings) -> Iterator[Finding]:
    """Where stages run if not here, one a URL of raw files, and one a dataset for the host of most of its photos."""
    if settings.engine.kind != "local":
        yield _engine(settings.engine)
    for name, dataset in settings.datasets.items():
        try:
            urls = raw_files.urls(dataset.source)
        except PixRecError:
            continue  # told of its source already
        yield from (_raw(f"network {name}", url) for url in urls)
        if url := _photo(DatasetPaths.of(settings.data_dir, name)):
            yield _photo_host(f"network {name}", url, dataset.images)


def _engine(settings: EngineSettings) -> Finding:
    """Whether its library is installed and its cluster's port answers; a token is not tried."""
    try:
        engine.create_engine(settings)
    except PixRecError as error:
        return Finding("engine", Level.FAULT, str(error), "install it, or leave [engine] out of pixrec.toml")
    host, _, port = (settings.address or "").rpartition(":")
    if not host:
        return Finding("engine", Level.OK, f"{settings.kind}, on this machine")
    try:
        socket.create_connection((host, int(port)), TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        mend = "start the cluster, or mend `address` in [engine]: HOST:PORT of its head; docs/ray.md"
        return Finding("engine", Level.FAULT, f"{settings.kind} at {settings.address} does not answer: {error}", mend)
    return Finding("engine", Level.OK, f"{settings.kind} at {settings.address} answers")


def _raw(subject: str, url: str) -> Finding:
    shown = without_secrets(url)
    try:
        with requests.get(url, timeout=TIMEOUT_S, stream=True) as response:  # some servers refuse HEAD
            status = response.status_code
    except requests.RequestException as error:
        told = f"{shown} cannot be reached: {type(error).__name__}"
        return Finding(
            subject, Level.FAULT, told, "check the network and proxy, or fetch the files and name a `folder`"
        )
    if status >= requests.codes.bad_request:
        mend = "mend the URL in [datasets.<name>.source] of pixrec.toml, or try again later"
        return Finding(subject, Level.FAULT, f"{shown} answers HTTP {status}", mend)
    return Finding(subject, Level.OK, f"{shown} answers")


def _photo(paths: DatasetPaths) -> str | None:
    """A photo's URL on the host that most come from; None before there is a catalogue, or where photos are local."""
    if not paths.items.exists():
        return None
    from pixrec_core.data.local_photos import is_local

    urls = pl.scan_parquet(paths.items).filter(~is_local(pl.col(IMAGE_URL)))
    urls = urls.select(IMAGE_URL, host=pl.col(IMAGE_URL).str.extract(HOST)).drop_nulls()
    hosts = urls.group_by("host").agg(pl.len(), pl.col(IMAGE_URL).first()).sort("len", "host", descending=True)
    found = hosts.head(1).collect()
    return None if found.is_empty() else str(found[IMAGE_URL][0])


def _photo_host(subject: str, url: str, images: ImageSettings) -> Finding:
    """One photo, fetched by the rules that hold for all."""
    from pixrec_core.data.fetching import Fetcher, FetchError

    shown = without_secrets(url)
    quick = images.model_copy(update={"timeout_s": TIMEOUT_S, "deadline_s": 2 * TIMEOUT_S})
    try:
        with Fetcher(quick) as fetcher:
            fetcher.get(url)
    except FetchError as error:
        mend = "check the network, and `allow_hosts`, `deny_hosts`, `allow_private_hosts` in [images]; docs/images.md"
        return Finding(subject, Level.WARNING, f"the photo {shown} does not come: {error.reason}", mend)
    return Finding(subject, Level.OK, f"the photo {shown} comes")
