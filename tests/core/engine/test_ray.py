"""What Ray brings besides: workers that die and are replaced, and a cluster of its own that nobody else reaches."""

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from pixrec_core import engine
from pixrec_core.engine import _ray_actor_pool
from pixrec_core.engine import ray as ray_engine
from pixrec_core.errors import ContractError, EngineError, SettingsError
from pixrec_core.settings import EngineSettings
from tests.core.engine import work
from tests.core.engine.conftest import WORKERS, require_ray

pytestmark = pytest.mark.slow


@pytest.fixture(params=[1, WORKERS])
def mapping(request, ray_engines):
    return ray_engines[request.param]


def test_a_worker_killed_at_its_work_changes_no_result(mapping, tmp_path):
    shards = list(range(8))
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(work.kill_what_waits, tmp_path)
        assert list(mapping.map_shards(work.Waiting(tmp_path, 3), shards)) == [2 * shard for shard in shards]
    assert killed.result() != os.getpid()


def test_a_shard_that_kills_every_worker_ends_the_map(ray_engines, monkeypatch):
    monkeypatch.setattr(ray_engine, "RETRIES", 1)
    with pytest.raises(EngineError, match="lost its worker 2 times"):
        list(ray_engines[1].map_shards(work.deadly, [0]))


def test_what_a_worker_holds_is_brought_to_it_once(ray_engines, tmp_path):
    list(ray_engines[WORKERS].map_shards(work.Costly(tmp_path), range(12)))
    used = {path.name.split(".")[1] for path in tmp_path.glob("used.*")}
    brought = [path.name.split(".")[1] for path in tmp_path.glob("brought.*")]
    assert len(used) == WORKERS
    assert sorted(brought) == sorted(used)


def processes(mapping) -> set[int]:
    """The workers' process ids, each of which has one shard."""
    return set(mapping.map_shards(work.process, range(WORKERS)))


def test_maps_that_follow_each_other_have_the_same_workers(ray_engines):
    first = processes(ray_engines[WORKERS])
    assert len(first) == WORKERS
    assert os.getpid() not in first
    assert processes(ray_engines[WORKERS]) == first


def test_a_kept_worker_lets_go_of_what_it_held(ray_engines, tmp_path):
    for worker in set(ray_engines[WORKERS].map_shards(work.Mourned(tmp_path), range(WORKERS))):
        work.wait_for(tmp_path / f"gone.{worker}")


def test_a_worker_that_died_without_work_is_replaced(ray_engines):
    first = processes(ray_engines[WORKERS])
    victim = min(first)
    os.kill(victim, signal.SIGKILL)
    second = processes(ray_engines[WORKERS])
    assert len(second) == WORKERS
    assert victim not in second


def test_an_error_leaves_no_worker_that_the_next_map_waits_for(ray_engines, tmp_path):
    with pytest.raises(ContractError, match="the first shard is broken"):
        list(ray_engines[WORKERS].map_shards(work.Stuck(tmp_path), [0, 1]))
    after = processes(ray_engines[WORKERS])
    assert len(after) == WORKERS
    assert int((tmp_path / "stuck").read_text()) not in after


def test_workers_without_work_end_after_a_while(ray_engines, monkeypatch):
    monkeypatch.setattr(_ray_actor_pool, "IDLE_S", 0.01)
    gone = [psutil.Process(worker) for worker in processes(ray_engines[WORKERS])]
    assert psutil.wait_procs(gone, timeout=work.WAIT_S)[1] == []
    assert len(processes(ray_engines[WORKERS])) == WORKERS


def test_maps_of_two_threads_share_the_workers(ray_engines):
    with ThreadPoolExecutor(2) as threads:
        maps = [threads.submit(processes, ray_engines[WORKERS]) for _ in range(4)]
    assert all(len(each.result()) in range(1, WORKERS + 1) for each in maps)


def test_more_workers_than_there_is_room_for_are_not_waited_for(ray_engines):
    many = engine.choose(EngineSettings(kind="ray", workers=50))
    assert list(many.map_shards(work.doubled, range(6))) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("wanted", [{"cpus": 4}, {"gpus": 1}])
def test_no_room_for_one_worker_is_an_error(ray_engines, wanted):
    greedy = engine.choose(EngineSettings(kind="ray", workers=1, **wanted))
    with pytest.raises(EngineError, match=r"no room for a worker .*; its largest machine has 2 CPUs and 0 GPUs"):
        list(greedy.map_shards(work.doubled, [1]))


def listening(process):
    try:
        sockets = process.net_connections("inet")
    except psutil.Error:  # a worker of the test before that is going
        return set()
    return {ip_address(each.laddr.ip) for each in sockets if each.status == psutil.CONN_LISTEN}


def test_a_ray_of_ones_own_listens_on_loopback_alone(ray_engines):
    children = psutil.Process().children(recursive=True)
    assert any("raylet" in child.name() for child in children)
    heard = {address for process in [psutil.Process(), *children] for address in listening(process)}
    assert heard
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in heard)


def test_its_token_is_left_on_and_its_statistics_off(ray_engines):
    assert os.environ.get("RAY_AUTH_MODE") == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_sigterm_stays_with_whom_it_was(ray_engines):
    handler = signal.getsignal(signal.SIGTERM)  # Dagster has set its own, where its tests came before
    assert not getattr(handler, "__module__", "").startswith("ray")


RUN = """
from pathlib import Path
from pixrec_core.engine import choose
from pixrec_core.settings import EngineSettings
print(list(choose(EngineSettings(kind="ray", workers=1)).map_shards(abs, [-1, 2])))
import ray
print(Path(ray._private.worker._global_node.get_session_dir_path()).parent)
"""


def test_a_ray_of_ones_own_leaves_nothing_behind():
    require_ray()
    done = subprocess.run([sys.executable, "-W", "error", "-c", RUN], capture_output=True, text=True, check=True)
    results, folder = done.stdout.splitlines()
    assert results == "[1, 2]"
    assert done.stderr == ""
    assert folder.startswith("/tmp/pixrec-ray-")
    assert not Path(folder).exists()


def test_without_ray_the_way_to_it_is_told(monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'pip install "\.\[ray\]"'):
        engine.choose(EngineSettings(kind="ray"))


UNHEARD = """
from pixrec_core.engine import choose
from pixrec_core.settings import EngineSettings
list(choose(EngineSettings(kind="ray", address="127.0.0.1:1")).map_shards(abs, [1]))
"""


def test_an_address_where_nothing_answers_is_an_error():
    require_ray()
    done = subprocess.run([sys.executable, "-c", UNHEARD], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "EngineError: no Ray answers at engine.address '127.0.0.1:1'" in done.stderr.splitlines()[-1]
