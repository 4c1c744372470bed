"""The Ray engine beyond the contract: dead workers are replaced, workers are reused, ports are local."""

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
from pixrec_core.engine import ray as ray_engine
from pixrec_core.errors import ContractError, EngineError, SettingsError
from pixrec_core.settings import EngineSettings
from tests.core.engine import work
from tests.core.engine.conftest import WORKERS, require_ray

pytestmark = pytest.mark.slow


@pytest.fixture(params=[1, WORKERS])
def mapping(request, ray_engines):
    return ray_engines[request.param]


def test_a_worker_killed_during_a_shard_changes_no_result(mapping, tmp_path):
    shards = list(range(8))
    with ThreadPoolExecutor(1) as killer:
        killed = killer.submit(work.kill_waiting_process, tmp_path)
        assert list(mapping.map_shards(work.Waiting(tmp_path, 3), shards)) == [2 * shard for shard in shards]
    assert killed.result() != os.getpid()


def test_a_shard_that_kills_every_worker_ends_the_map(ray_engines, monkeypatch):
    monkeypatch.setattr(ray_engine, "RESTARTS", 1)
    with pytest.raises(EngineError, match="a Ray worker died 2 times"):
        list(ray_engines[1].map_shards(work.deadly, [0]))
    assert list(ray_engines[1].map_shards(work.doubled, [1])) == [2]


def test_a_function_is_sent_to_each_worker_once(ray_engines, tmp_path):
    list(ray_engines[WORKERS].map_shards(work.Costly(tmp_path), range(12)))
    used = {path.name.split(".")[1] for path in tmp_path.glob("used.*")}
    sent = [path.name.split(".")[1] for path in tmp_path.glob("sent.*")]
    assert len(used) == WORKERS
    assert sorted(sent) == sorted(used)


def processes(mapping) -> set[int]:
    """The process ids of the workers, which get one shard each."""
    return set(mapping.map_shards(work.process, range(WORKERS)))


def test_the_map_after_an_error_waits_for_no_worker(ray_engines, tmp_path):
    with pytest.raises(ContractError, match="the first shard is broken"):
        list(ray_engines[WORKERS].map_shards(work.Stuck(tmp_path), [0, 1]))
    after = processes(ray_engines[WORKERS])
    assert len(after) == WORKERS
    assert int((tmp_path / "stuck").read_text()) not in after


def test_maps_of_two_threads_take_turns_and_their_workers_end(ray_engines):
    with ThreadPoolExecutor(2) as threads:
        maps = [threads.submit(processes, ray_engines[WORKERS]) for _ in range(2)]
    workers = [each.result() for each in maps]
    assert [len(each) for each in workers] == [WORKERS, WORKERS]
    psutil.wait_procs([each for each in psutil.process_iter() if each.pid in set.union(*workers)])


def test_workers_without_room_are_not_waited_for(ray_engines):
    many = engine.create_engine(EngineSettings(kind="ray", workers=50))
    assert list(many.map_shards(work.doubled, range(6))) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("wanted", [{"cpus": 4}, {"gpus": 1}])
def test_a_worker_too_large_for_the_cluster_is_an_error(ray_engines, wanted):
    greedy = engine.create_engine(EngineSettings(kind="ray", workers=1, **wanted))
    with pytest.raises(EngineError, match=r"no room for a worker .*: its largest machine has 2 CPUs and 0 GPUs"):
        list(greedy.map_shards(work.doubled, [1]))


def listening(process):
    try:
        sockets = process.net_connections("inet")
    except psutil.Error:  # a worker of an earlier test that is ending
        return set()
    return {ip_address(each.laddr.ip) for each in sockets if each.status == psutil.CONN_LISTEN}


def test_a_local_ray_listens_on_loopback_only(ray_engines):
    children = psutil.Process().children(recursive=True)
    assert any("raylet" in child.name() for child in children)
    heard = {address for process in [psutil.Process(), *children] for address in listening(process)}
    assert heard
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in heard)


def test_token_authentication_is_on_and_usage_statistics_are_off(ray_engines):
    assert os.environ.get("RAY_AUTH_MODE") == "token"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_rays_sigterm_handler_is_removed(ray_engines):
    handler = signal.getsignal(signal.SIGTERM)  # earlier tests may have set Dagster's
    assert not getattr(handler, "__module__", "").startswith("ray")


RUN = """
from pathlib import Path
from pixrec_core.engine import create_engine
from pixrec_core.settings import EngineSettings
print(list(create_engine(EngineSettings(kind="ray", workers=1)).map_shards(abs, [-1, 2])))
import ray
print(Path(ray._private.worker._global_node.get_session_dir_path()).parent)
"""


def test_a_local_ray_leaves_no_files():
    require_ray()
    done = subprocess.run([sys.executable, "-W", "error", "-c", RUN], capture_output=True, text=True, check=True)
    results, folder = done.stdout.splitlines()
    assert results == "[1, 2]"
    assert done.stderr == ""
    assert folder.startswith("/tmp/pixrec-ray-")
    assert not Path(folder).exists()


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(ray_engine, "find_spec", lambda name: None)
    with pytest.raises(SettingsError, match=r'pip install "\.\[ray\]"'):
        engine.create_engine(EngineSettings(kind="ray"))


NO_CLUSTER = """
from pixrec_core.engine import create_engine
from pixrec_core.settings import EngineSettings
list(create_engine(EngineSettings(kind="ray", address="127.0.0.1:1")).map_shards(abs, [1]))
"""


def test_an_address_without_a_cluster_is_an_error():
    require_ray()
    done = subprocess.run([sys.executable, "-c", NO_CLUSTER], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "EngineError: no Ray cluster answers at engine.address '127.0.0.1:1'" in done.stderr.splitlines()[-1]
