"""Training in several workers of Ray, on whichever machines of its cluster have room.

They are actors that form a process group of torch, as processes of one machine do (`processes`); this process holds
the lock and tells what they tell. Ray Train would start them too, and was tried: it lets the processes meet at a port
that all the world reaches, and what clears up after it asks a dashboard that is off here.
"""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from pixrec_core.engine.ray import room
from pixrec_core.errors import EngineError
from pixrec_core.settings import EngineSettings
from pixrec_core.training.processes import POLL_S, join
from pixrec_core.training.reports import CORE, lost, relay, take_part
from pixrec_core.training.trainer import Epoch

ROOM_S: Final = 600.0  # longest wait for room that others hold
GRACE_S: Final = 5.0  # for Ray to tell of a dead worker, where another has failed for its lack


def run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    count: int,
    on_epoch: Callable[[Epoch], None],
    settings: EngineSettings,
) -> None:
    """Call a function in `count` workers of Ray that form a process group, and wait for all of them.

    Args:
        function: of a module, so that a worker can find it; called with `arguments` and `on_epoch`.
        arguments: that can be pickled.
        count: workers.
        on_epoch: told here of what the first worker tells. Its log lines are written here too.
        settings: what Ray sets aside for a worker.

    Raises:
        EngineError: there is no room for them.
        LostProcessError: one died.
        PixRecError: what one of them raised.
        RayTaskError: one failed in another way; the text is its traceback.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    with _places(count, settings) as places, TemporaryDirectory(prefix="pixrec-") as folder:
        reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        workers = [_worker(places, place) for place in range(count)]
        running: list[Any] = []
        try:
            alone = _is_alone()
            meeting = (Path(folder) / "meeting").as_uri() if alone else ray.get(workers[0].free_port.remote())
            threads = max(1, int(settings.cpus))
            part = (count, meeting, threads, alone, function, arguments, reports, CORE.getEffectiveLevel())
            running += [worker.work.remote(rank, *part) for rank, worker in enumerate(workers)]
            _wait(running, reports, on_epoch)
        except RayActorError as error:  # before they worked
            raise EngineError(f"a training worker of Ray died as it was started: {error}") from error
        finally:
            for worker in workers:  # at once: whatever is written is whole or not there
                ray.kill(worker)
            if running:  # until Ray has ended them: the next training writes where they did
                ray.wait(running, num_returns=count)
            reports.shutdown(force=True)


@contextmanager
def _places(count: int, settings: EngineSettings) -> Iterator[PlacementGroup]:
    """Room for all workers at once: two trainings that each had half of it would wait for each other.

    Raises:
        EngineError: there is none.
    """
    needs = {"CPU": settings.cpus} | ({"GPU": 1} if settings.gpus else {})  # NCCL wants a whole one for each
    each = f"engine.cpus = {settings.cpus:g}{' and one GPU' if settings.gpus else ''} for each"
    if (fitting := room(needs)) < count:
        raise EngineError(
            f"training.processes is {count}, and Ray has room for {fitting}, with {each}: lower it, raise "
            "engine.workers where Ray is started here, or let more machines join the cluster"
        )
    places = placement_group([needs] * count)
    try:
        if not places.wait(ROOM_S):
            raise EngineError(
                f"others have held Ray's room for {ROOM_S:g} s; training.processes = {count} wants {each}: "
                "try again later"
            )
        yield places
    finally:
        remove_placement_group(places)


def _worker(places: PlacementGroup, place: int) -> Any:
    needs = places.bundle_specs[place]
    where = PlacementGroupSchedulingStrategy(places, placement_group_bundle_index=place)
    options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "scheduling_strategy": where}
    return ray.remote(**options)(_Worker).remote()


class _Worker:
    """One process, which sees no GPU but its own."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")  # what it logs, Ray brings to its driver

    def free_port(self) -> str:
        """Where the others can meet this one."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def work(
        self,
        rank: int,
        count: int,
        meeting: str,
        threads: int,
        alone: bool,
        function: Callable[..., None],
        arguments: tuple[Any, ...],
        reports: Queue,
        level: int,
    ) -> None:
        """Join the group, call the function."""
        join(rank, count, meeting, threads, device=0, loopback=alone)
        take_part(function, arguments, reports, level)


def _is_alone() -> bool:
    """Whether Ray is of this machine alone: then nothing of a training may listen to others either."""
    return ip_address(ray.util.get_node_ip_address()).is_loopback


def _wait(running: list[Any], reports: Queue, on_epoch: Callable[[Epoch], None]) -> None:
    """Until all have ended, or one has failed. One that dies breaks the connections of others, which may fail first."""
    left = running
    try:
        while left:
            done, left = ray.wait(left, timeout=POLL_S)
            relay(reports, on_epoch)
            ray.get(done)
    except RayError as error:
        relay(reports, on_epoch)
        ray.wait(running, num_returns=len(running), timeout=GRACE_S)
        for rank, one in enumerate(running):
            if death := _death(one):
                why = str(death).strip().splitlines()[-1].partition(" Some common causes")[0]
                raise lost(rank, len(running), f"died ({why})") from error
        raise


def _death(one: Any) -> RayActorError | None:
    try:
        ray.get(one, timeout=0)
    except RayActorError as error:
        return error
    except (RayTaskError, TimeoutError):
        return None
    return None
