"""Starts the server: uvicorn, with one or several processes."""

import os
import signal
import tempfile
from collections.abc import Sequence
from functools import partial

import uvicorn
from fastapi import FastAPI
from uvicorn.config import LOGGING_CONFIG

from pixrec_core.child_process import end_with_parent
from pixrec_core.errors import MissingArtefactError
from pixrec_core.paths import DatasetPaths
from pixrec_core.serving.recommender import Recommender
from pixrec_core.serving.server.app import create_app
from pixrec_core.serving.server.live import open_recommenders
from pixrec_core.settings import Settings, load_settings

DATASETS = "SERVED_DATASETS"  # names joined by commas, for the processes that uvicorn starts; no setting

LOGGED = {"handlers": ["default"], "level": "INFO", "propagate": False}  # which promotion serves, and warnings


def run_server(settings: Settings, datasets: Sequence[str]) -> None:
    """Serve datasets until a signal ends the process; running requests are answered first.

    Raises:
        MissingArtefactError: nothing of a dataset has been promoted, or it cannot be loaded.
    """
    server = settings.server
    options = {
        "host": server.host,
        "port": server.port,
        "log_level": "info",
        "log_config": LOGGING_CONFIG | {"loggers": LOGGING_CONFIG["loggers"] | {"pixrec_core": LOGGED}},
        "access_log": False,  # it would print ids of users
        "timeout_graceful_shutdown": int(server.timeout_s) + 1,
        "server_header": False,
        "timeout_worker_healthcheck": 60,  # a busy machine is no dead process
    }
    if server.workers == 1:
        uvicorn.run(partial(_create, settings, datasets), factory=True, **options)  # type: ignore[arg-type]
        return
    for name in datasets:  # uvicorn starts a process that fails again and again
        Recommender.open(DatasetPaths.of(settings.data_dir, name).promoted.root)
    with tempfile.TemporaryDirectory(prefix="pixrec-metrics-") as folder:
        os.environ |= {
            "PROMETHEUS_MULTIPROC_DIR": folder,
            "PIXREC_SERVER__HOST": server.host,  # may differ from the settings file's
            DATASETS: ",".join(datasets),
        }
        uvicorn.run(f"{__name__}:create_worker_app", factory=True, workers=server.workers, **options)  # type: ignore[arg-type]


def create_worker_app() -> FastAPI:
    """The application of one of several processes, from the settings file and the environment."""
    end_with_parent(signal.SIGTERM)  # uvicorn leaves the processes of a killed supervisor behind
    return _create(load_settings(), os.environ[DATASETS].split(","))


def _create(settings: Settings, datasets: Sequence[str]) -> FastAPI:
    live = open_recommenders(settings.data_dir, {name: settings.dataset(name).rules for name in datasets})
    for each in live.values():
        if each.current is None:
            raise MissingArtefactError(each.error or f"{each.paths.root.name} cannot be loaded")
    return create_app(live, settings.server)
