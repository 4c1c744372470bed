"""Process groups of Ray actors, on any machines of the cluster that have room.

Ray Train is not used: its rendezvous listens on all interfaces, and its clean-up waits for the dashboard, which is off,
even after an interrupt.
"""

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy, PlacementGroupSchedulingStrategy

from pixrec_core.engine._contract import Report
from pixrec_core.engine._process_group import (
    POLL_S,
    call_and_report,
    forward_reports,
    join_process_group,
    log_level,
    lost_process_error,
)
from pixrec_core.engine.ray import cluster_capacity
from pixrec_core.errors import EngineError
from pixrec_core.settings import EngineSettings


def run_process_group(
    function: Callable[..., None],
    world_size: int,
    on_report: Callable[[Report], None],
    settings: EngineSettings,
) -> None:
    """See `RayEngine.run_process_group`."""
    this_machine = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    with _reserved_room(world_size, settings) as room, TemporaryDirectory(prefix="pixrec-") as folder:
        reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": this_machine})
        processes = [_start(room, index) for index in range(world_size)]
        runs: list[Any] = []
        try:
            loopback = _is_loopback_only()
            file = (Path(folder) / "rendezvous").as_uri()
            rendezvous = file if loopback else ray.get(processes[0].free_port.remote())
            given = (world_size, rendezvous, max(1, int(settings.cpus)), loopback, reports, log_level())
            runs += [each.run.remote(rank, *given, function) for rank, each in enumerate(processes)]
            _wait(processes, runs, reports, on_report)
        finally:
            for process in processes:  # at once: files are written completely or not at all
                ray.kill(process)
            if runs:  # until they have ended: the next training writes to the same files
                ray.wait(runs, num_returns=world_size)
            reports.shutdown(force=True)


@contextmanager
def _reserved_room(world_size: int, settings: EngineSettings) -> Iterator[PlacementGroup]:
    """Reserve room for all processes at once: two trainings with half of it each would wait for each other.

    Raises:
        EngineError: the cluster is too small.
    """
    needs = {"CPU": settings.cpus} | ({"GPU": 1} if settings.gpus else {})  # NCCL needs a whole GPU per process
    if (capacity := cluster_capacity(needs)) < world_size:
        each = f"engine.cpus = {settings.cpus:g}{' and one GPU' if settings.gpus else ''}"
        raise EngineError(
            f"training.processes is {world_size}, but Ray has room for {capacity} with {each} each: lower it, or raise "
            "engine.workers if Ray is started here, or add machines to the cluster"
        )
    room = placement_group([needs] * world_size)
    try:
        ray.get(room.ready())  # waits while others use the room
        yield room
    finally:
        remove_placement_group(room)


def _start(room: PlacementGroup, index: int) -> Any:
    needs = room.bundle_specs[index]
    where = PlacementGroupSchedulingStrategy(room, placement_group_bundle_index=index)
    options = {"num_cpus": needs["CPU"], "num_gpus": needs.get("GPU", 0), "scheduling_strategy": where}
    return ray.remote(max_concurrency=2, **options)(_TrainingProcess).remote()  # `ping` answers during `run`


class _TrainingProcess:
    """One process of the group; it sees only its GPU."""

    def __init__(self) -> None:
        logging.basicConfig(level=logging.WARNING, format="%(message)s")  # Ray sends this output to the driver

    def ping(self) -> None:
        """Return if the process is alive."""

    def free_port(self) -> str:
        """Return the URL at which the others can meet this process."""
        with socket.socket() as free:
            free.bind(("", 0))
            return f"tcp://{ray.util.get_node_ip_address()}:{free.getsockname()[1]}"

    def run(
        self,
        rank: int,
        world_size: int,
        rendezvous: str,
        threads: int,
        loopback: bool,
        reports: Queue,
        level: int,
        function: Callable[..., None],
    ) -> None:
        """Join the group and call the function."""
        join_process_group(rank, world_size, rendezvous, threads, device=0, loopback=loopback)
        call_and_report(function, reports, level)


def _is_loopback_only() -> bool:
    """Return whether Ray runs on this machine only; then no training may listen on other interfaces either."""
    return ip_address(ray.util.get_node_ip_address()).is_loopback


def _wait(processes: list[Any], runs: list[Any], reports: Queue, on_report: Callable[[Report], None]) -> None:
    """Forward reports until all processes have ended or one has failed."""
    remaining = runs
    try:
        while remaining:
            done, remaining = ray.wait(remaining, timeout=POLL_S)
            forward_reports(reports, on_report)
            ray.get(done)
    except RayError as error:
        forward_reports(reports, on_report)
        raise _failure(processes, error) from error


def _failure(processes: list[Any], error: Exception) -> Exception:
    """Return the error of a dead process, if any: the others fail too, since their connections to it break."""
    for rank, process in enumerate(processes):
        try:
            ray.get(process.ping.remote())
        except RayActorError as death:
            reason = str(death).strip().splitlines()[-1].partition(" Some common causes")[0]
            return lost_process_error(rank, len(processes), f"died ({reason})")
    return error
