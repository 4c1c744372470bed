"""Assets and command line over fake stages, in a project folder of their own with real files."""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

import pixrec_assets.definitions  # noqa: F401  # partitions are read at import, before any test moves elsewhere
from pixrec_assets import cli, execution
from pixrec_core.settings import Settings, load_settings
from tests.assets import fake_stages


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project folder to work in, whatever the environment says, and fake stages."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith(("PIXREC_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    fake_stages.install(monkeypatch.setattr)
    return tmp_path


@pytest.fixture
def settings(project: Path) -> Settings:
    """Settings of an empty project folder: the sample dataset and the default variants."""
    return load_settings()


@pytest.fixture
def instance(tmp_path: Path) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance that keeps its history in memory: as real as the one in files, and quicker."""
    with dg.DagsterInstance.ephemeral(tempdir=str(tmp_path / "instance")) as instance:
        yield instance


@pytest.fixture
def pixrec(
    settings: Settings, instance: dg.DagsterInstance, monkeypatch, capsys
) -> Callable[..., tuple[int, str, str]]:
    """Run `pixrec` with arguments: exit code, standard output, standard error."""
    monkeypatch.setattr(execution, "open_instance", lambda _: instance)
    return partial(call_pixrec, monkeypatch, capsys)


def call_pixrec(monkeypatch: pytest.MonkeyPatch, capsys: Any, *arguments: str) -> tuple[int, str, str]:
    """Run `pixrec` in this process: exit code, standard output, standard error."""
    monkeypatch.setattr(sys, "argv", ["pixrec", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    reported = capsys.readouterr()
    return int(end.value.code or 0), reported.out, reported.err
