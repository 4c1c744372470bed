"""The engine of several machines: shards in Ray actors, process groups in Ray actors.

Ray is started for this process and ends with it, or a running cluster is joined. Ray sends functions and results,
starts actors on machines with room, and repeats the shard of a dead actor. Ray's token authentication is not changed
(docs/scale.md).
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
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Final

from pixrec_core.engine._contract import R, Report, S
from pixrec_core.errors import EngineError, SettingsError
from pixrec_core.settings import EngineSettings

CONNECT_TIMEOUT_S: Final = 10.0  # Ray itself would try for many minutes
#: Ray creates sockets in it. Their paths may have at most 107 bytes, and the folder of `TMPDIR` may be too long.
TEMPORARY: Final = "/tmp"  # noqa: S108  # a subfolder is created, closed to other users

#: Held during a map: two maps with a part of the cluster each would wait for each other.
_TURN: Final = threading.Lock()
RESTARTS: Final = 3  # of an actor whose process died; a shard that kills every process (memory) ends the map


def make(settings: EngineSettings) -> "RayEngine":
    """Return an engine that starts or joins Ray when it is first used.

    Raises:
        SettingsError: Ray is not installed.
    """
    if find_spec("ray") is None:
        raise SettingsError('engine.kind is "ray", but Ray is not installed: pip install ".[ray]" in the checkout')
    return RayEngine(settings)


class _Worker:
    """An actor that fetches the function of a map once."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")  # Ray sends this output to the driver
        logging.getLogger("pixrec_core").setLevel(logging.INFO)
        self._function: Callable[[Any], Any] | None = None

    def run(self, function_refs: list[Any], shard: Any) -> Any:
        """Return the function of the shard; Ray does not resolve the reference to the function, as it is in a list."""
        import ray

        self._function = self._function or ray.get(function_refs[0])
        assert self._function is not None, "fetched above"
        return self._function(shard)


@dataclass(frozen=True)
class RayEngine:
    """Maps shards over Ray actors, and starts process groups as Ray actors."""

    settings: EngineSettings

    @property
    def workers(self) -> int:
        return self.settings.workers

    def map_shards(self, function: Callable[[S], R], shards: Sequence[S]) -> Iterator[R]:
        """See `Engine`."""
        connect(self.settings)
        import ray
        from ray.util import ActorPool

        count = min(self._fitting_workers(), len(shards))
        retries = {"max_restarts": RESTARTS, "max_task_retries": -1}  # a shard is tried as often as actors restart
        start = ray.remote(num_cpus=self.settings.cpus, num_gpus=self.settings.gpus, **retries)(_Worker).remote
        function_refs = [ray.put(function)]  # kept to the end: an actor that is restarted fetches it again
        with _TURN:
            actors = [start() for _ in range(count)]
            try:
                yield from ActorPool(actors).map(lambda actor, shard: actor.run.remote(function_refs, shard), shards)
            except ray.exceptions.RayTaskError as error:
                raise error.cause from error
            except ray.exceptions.RayError as error:
                raise EngineError(f"a Ray worker died {1 + RESTARTS} times, or Ray itself failed: {error}") from error
            finally:  # busy ones too: a map that ends early leaves some
                for actor in actors:
                    ray.kill(actor)

    def run_process_group(
        self, function: Callable[..., None], world_size: int, on_report: Callable[[Report], None]
    ) -> None:
        """See `Launcher`.

        Raises:
            EngineError: the cluster is too small for the processes.
            RayTaskError: a process failed in any other way; the message has its traceback.
        """
        connect(self.settings)
        launcher = import_module("pixrec_core.engine._ray_processes")  # needs torch; other callers do not
        launcher.run_process_group(function, world_size, on_report, self.settings)

    def _fitting_workers(self) -> int:
        """Return the number of workers that find room; Ray would wait for others without end.

        Raises:
            EngineError: no worker finds room.
        """
        fitting = min(self.workers, cluster_capacity({"CPU": self.settings.cpus, "GPU": self.settings.gpus}))
        if fitting == 0:
            largest = max(f"{node.get('CPU', 0):g} CPUs and {node.get('GPU', 0):g} GPUs" for node in _machines())
            raise EngineError(
                f"Ray has no room for a worker with engine.cpus = {self.settings.cpus:g} and engine.gpus = "
                f"{self.settings.gpus:g}: its largest machine has {largest}"
            )
        return fitting


def cluster_capacity(needs: Mapping[str, float]) -> int:
    """Return how many processes fit the machines that are up, busy or not.

    `needs` is what each process needs, by Ray's names ("CPU", "GPU"); at least one is over 0.
    """
    required = {name: amount for name, amount in needs.items() if amount}
    return sum(int(min(node.get(name, 0) // amount for name, amount in required.items())) for node in _machines())


def _machines() -> list[dict[str, float]]:
    """Return the resources of each machine of the cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def connect(settings: EngineSettings) -> None:
    """Start or join Ray, once per process. Must be called before anything imports Ray: it prepares the environment.

    A process that Ray itself started is already connected.

    Raises:
        EngineError: nothing answers at the address, or Ray refuses.
    """
    if settings.address is None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # puts all ports on loopback, on Linux too
    import ray

    if ray.is_initialized():
        return
    options = _local_options(settings) if settings.address is None else _cluster_options(settings.address)
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(logging_level=logging.ERROR, **options)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise EngineError(f"cannot use Ray at {settings.address or 'this machine'}: {error}") from error
    finally:
        if is_main:  # Ray replaces the handler that Dagster or the command line has set
            signal.signal(signal.SIGTERM, handler)


def _local_options(settings: EngineSettings) -> dict[str, Any]:
    """Return options for a Ray of this process only, without dashboard, that leaves no files."""
    folder = tempfile.mkdtemp(prefix="pixrec-ray-", dir=TEMPORARY)
    atexit.register(_end_local_ray, folder)
    cpus = math.ceil(settings.workers * settings.cpus)
    return {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}


def _cluster_options(address: str) -> dict[str, Any]:
    """Return options for a running cluster, after checking that something listens at its address."""
    host, _, port = address.rpartition("//")[2].rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host, int(port)), CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise EngineError(f"no Ray cluster answers at engine.address {address!r}: {error}") from error
    return {"address": address}


def _end_local_ray(folder: str) -> None:
    import ray

    ray.shutdown()
    shutil.rmtree(folder, ignore_errors=True)
