import multiprocessing
import os
import signal
import time
from pathlib import Path

import psutil
import pytest

from pixrec_core.child_process import map_in_processes
from pixrec_core.errors import LostProcessError, SettingsError
from tests.forks import CONTEXT


def _square(number: int) -> int:
    return number**2


def _threads(_: int) -> str:
    return os.environ["OMP_NUM_THREADS"]


def _fail_at_two(number: int) -> None:
    if number == 2:
        raise SettingsError("two is wrong")
    time.sleep(3600)


def _kill_oneself(_: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _write_id_and_sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(3600)


def _parent(path: Path) -> None:
    list(map_in_processes(_write_id_and_sleep, [path], 2))


def test_every_argument_has_a_result():
    assert sorted(map_in_processes(_square, range(7), 2)) == [0, 1, 4, 9, 16, 25, 36]
    assert not multiprocessing.active_children()


def test_processes_share_the_cores(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert list(map_in_processes(_threads, [0], 3)) == ["2"]
    assert list(map_in_processes(_threads, [0], 9)) == ["1"]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert list(map_in_processes(_threads, [0], 2)) == ["2"]


def test_an_error_ends_the_other_processes():
    with pytest.raises(SettingsError, match="two is wrong"):
        list(map_in_processes(_fail_at_two, [1, 2, 3], 2))
    assert not multiprocessing.active_children()


def test_a_killed_process_is_named():
    with pytest.raises(LostProcessError, match="too little memory"):
        list(map_in_processes(_kill_oneself, [1], 2))


def test_processes_end_with_a_killed_parent(tmp_path):
    parent = CONTEXT.Process(target=_parent, args=(tmp_path / "id",))
    parent.start()
    while not (tmp_path / "id").exists() or not (tmp_path / "id").read_text():
        time.sleep(0.05)
    child = psutil.Process(int((tmp_path / "id").read_text()))
    parent.kill()
    parent.join()
    psutil.wait_procs([child])
    assert not child.is_running()
