"""Disks that cannot be written: full, read-only, or a file in place of the folder. Dagster's history is on them too."""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pixrec_assets import execution
from tests.assets import fake_stages
from tests.assets.conftest import call_pixrec

Pixrec = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pixrec(small_disk: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> Iterator[Pixrec]:
    """Run `pixrec` in a project on a small disk: exit code, standard output, standard error."""
    monkeypatch.chdir(small_disk)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    for name in [name for name in os.environ if name.startswith(("PIXREC_", "DAGSTER_"))]:
        monkeypatch.delenv(name)
    fake_stages.install(monkeypatch.setattr)
    execution.open_instance.cache_clear()
    yield partial(call_pixrec, monkeypatch, capsys)
    execution.open_instance.cache_clear()


@contextmanager
def full(disk: Path) -> Iterator[None]:
    with (disk / "filler").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free))
    yield
    (disk / "filler").unlink()


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    yield
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)


@pytest.mark.parametrize("first", [True, False], ids=["first run", "later run"])
@pytest.mark.parametrize(
    ("disk", "problem", "fix"),
    [(full, "No room in", "Free disk space"), (read_only, "is not writable", "Make it writable")],
)
def test_a_disk_that_cannot_be_written_is_one_message(pixrec, small_disk, disk, problem, fix, first) -> None:
    if not first:
        assert pixrec("run", "--up-to", "items")[0] == 0
    with disk(small_disk):
        code, _, err = pixrec("run", "--up-to", "items", "--force")
    assert code == 1
    assert "Traceback" not in err, err
    assert problem in err
    assert f"{small_disk / 'data'}" in err
    assert fix in err
    assert pixrec("run", "--up-to", "items")[0] == 0


def test_what_needs_no_writing_works_on_a_read_only_disk(pixrec, small_disk) -> None:
    assert pixrec("run", "--up-to", "images")[0] == 0
    with read_only(small_disk):
        code, out, err = pixrec("run", "--up-to", "images")
        assert (code, "building" in out, err) == (0, False, "")
        for command in (["status"], ["photos"], ["photos", "--failed", "--json"], ["settings"]):
            assert pixrec(*command)[0] == 0


def test_a_file_in_place_of_the_data_folder_is_one_message(pixrec, small_disk) -> None:
    (small_disk / "data").write_text("")
    code, _, err = pixrec("run")
    assert code == 1
    assert "Traceback" not in err, err
    assert f"{small_disk / 'data'}, or a folder in it, is a file" in err
    assert pixrec("status")[0] == 0
