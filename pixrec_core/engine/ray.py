"""Shards by worker processes of Ray: started here for as long as this process lasts, or of a running cluster.

Ray brings what is hard about it: functions and results between machines, workers where there is room, and shards
worked on again when a worker dies. Its token authentication is left as it is: docs/ray.md says when that is on.
"""

import atexit
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Final

from pixrec_core.engine._contract import R, S
from pixrec_core.engine._ray_actor_pool import ActorPool
from pixrec_core.errors import EngineError, SettingsError
from pixrec_core.settings import EngineSettings

#: Before the first of the retries; it doubles. By itself Ray has none left after five seconds, while a worker that was
#: lost may take ten to come back on a busy machine.
RETRY_AFTER_MS: Final = 4_000
RETRIES: Final = 3  # of a shard whose worker died; one that kills every worker (memory) ends the stage
PATIENCE_S: Final = 10.0  # for a cluster to take a connection; Ray itself would try for many minutes
#: Sockets lie in it, and their names may have 107 bytes: the folder that `TMPDIR` names may be too long.
TEMPORARY: Final = "/tmp"  # noqa: S108  # a folder of our own is made there, closed to others

_ACTOR_POOL: Final = ActorPool()


def make(settings: EngineSettings) -> "RayEngine":
    """An engine that starts or joins Ray with its first map.

    Raises:
        SettingsError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise SettingsError(
            'engine.kind = "ray" needs Ray, which is not installed: pip install ".[ray]" in the checkout'
        )
    return RayEngine(settings)


@dataclass(frozen=True)
class RayEngine:
    """Maps over the workers of this process, each of which holds the function."""

    settings: EngineSettings

    @property
    def workers(self) -> int:
        return self.settings.workers

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """See `Engine`."""
        self.connect()
        import ray

        function_refs = [ray.put(function)]  # held to the end: a worker that is started again asks for it

        def work(worker: Any, shard: S) -> Any:
            return worker.run.options(max_task_retries=RETRIES).remote(function_refs, shard)

        needs = {"num_cpus": self.settings.cpus, "num_gpus": self.settings.gpus}
        most = self._most_workers()
        try:
            with _ACTOR_POOL.pool(needs, min(most, len(shards)), most) as pool:
                yield from pool.map(work, shards)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise EngineError(f"a shard lost its worker {1 + RETRIES} times, or Ray itself failed: {error}") from error

    def connect(self) -> None:
        """Join or start Ray, once a process. Whoever imports it does so after this, which prepares its environment.

        Raises:
            EngineError: nothing answers at the address, or Ray refuses.
        """
        _connect(self.settings)

    def make_room(self) -> None:
        """Let go of the workers that are kept for the next map, for others that need all the room."""
        _ACTOR_POOL.end_idle()

    def _most_workers(self) -> int:
        """Workers that there will be: one that never finds room would be waited for without end.

        Raises:
            EngineError: not one finds room.
        """
        fitting = min(self.workers, room({"CPU": self.settings.cpus, "GPU": self.settings.gpus}))
        if fitting == 0:
            raise EngineError(
                f"Ray has no room for a worker with engine.cpus = {self.settings.cpus:g} and engine.gpus = "
                f"{self.settings.gpus:g}; its largest machine has {max(_size(node) for node in _machines())}"
            )
        return fitting


def room(needs: Mapping[str, float]) -> int:
    """Processes that fit the cluster as it stands, busy or not.

    Args:
        needs: of each process, by Ray's names ("CPU", "GPU"); at least one is over 0.
    """
    wanted = {name: amount for name, amount in needs.items() if amount}
    return sum(int(min(node.get(name, 0) // amount for name, amount in wanted.items())) for node in _machines())


def _machines() -> list[dict[str, float]]:
    """What each machine of the cluster has."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _size(node: dict[str, float]) -> str:
    return f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs"


def _connect(settings: EngineSettings) -> None:
    """See `RayEngine.connect`; a process that Ray itself started is connected already."""
    if settings.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # on Linux too: all of its ports on loopback
    os.environ.setdefault("RAY_task_actor_unavailable_retry_delay_base_ms", str(RETRY_AFTER_MS))
    import ray  # only now: on being imported it looks at the environment

    if ray.is_initialized():
        return
    options = _here(settings) if settings.address is None else _there(settings.address)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise EngineError(f"Ray at {settings.address or 'this machine'} cannot be used: {error}") from error
    finally:
        if is_main:  # Ray takes the signal for itself, which Dagster and the command line have a use for
            signal.signal(signal.SIGTERM, before)


def _here(settings: EngineSettings) -> dict[str, Any]:
    """Options of a Ray of this process alone, without dashboard, and gone without trace at the end."""
    folder = tempfile.mkdtemp(prefix="pixrec-ray-", dir=TEMPORARY)
    atexit.register(_end, folder)
    cpus = math.ceil(settings.workers * settings.cpus)
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}


def _there(address: str) -> dict[str, Any]:
    """Options of a running cluster, where something listens."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), PATIENCE_S).close()
        except OSError as error:
            raise EngineError(f"no Ray answers at engine.address {address!r}: {error}") from error
    return {"address": address}


def _end(folder: str) -> None:
    import ray

    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
