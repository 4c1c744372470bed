"""Training in several workers of Ray, on whichever machines of its cluster have room, by Ray Train.

Ray Train finds the room, starts the workers, forms their process group and sees when one dies; this process holds the
lock and tells what they tell, as it does for processes of its own machine (`processes`). It is led from a task, since
a task can be ended at any moment, and with it goes all that it started.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple

import ray
import ray.train
import torch
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.train.backend import BackendConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pixrec_core.engine.ray import room
from pixrec_core.errors import EngineError
from pixrec_core.settings import EngineSettings
from pixrec_core.training.processes import PATIENCE, POLL_S, join
from pixrec_core.training.reports import CORE, lost, relay, take_part
from pixrec_core.training.trainer import Epoch

STARTS: Final = 10  # tries to start all workers, of a minute each where others hold the room

#: Ray Train's: stay in the folder where the process was started; let the GPUs of one machine see each other.
ENVIRONMENT: Final = {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TRAIN_ENABLE_SHARE_CUDA_VISIBLE_DEVICES": "1"}


def run(
    function: Callable[..., None],
    arguments: tuple[Any, ...],
    count: int,
    on_epoch: Callable[[Epoch], None],
    settings: EngineSettings,
    folder: Path,
) -> None:
    """Call a function in `count` workers of Ray that form a process group, and wait for all of them.

    Args:
        function: of a module, so that a worker can find it; called with `arguments` and `on_epoch`.
        arguments: that can be pickled.
        count: workers.
        on_epoch: told here of what the first worker tells. Its log lines are written here too.
        settings: what Ray sets aside for a worker.
        folder: that all machines see, for Ray Train's own notes.

    Raises:
        EngineError: there is no room for them, or Ray itself failed.
        LostProcessError: one died.
        PixRecError: what one of them raised.
        WorkerGroupError: Ray Train's: one failed in another way; the text has its traceback.
    """
    needs = {"CPU": settings.cpus} | ({"GPU": 1} if settings.gpus else {})  # NCCL wants a whole one for each
    if (fitting := room(needs)) < count:
        raise EngineError(
            f"training.processes is {count}, and Ray has room for {fitting}, with engine.cpus = {settings.cpus:g}"
            f"{' and one GPU' if settings.gpus else ''} for each: lower it, raise engine.workers where Ray is started "
            "here, or let more machines join the cluster"
        )
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    reports = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    workers: list[ActorHandle] = []

    def tell(report: Any) -> None:
        (workers.append if isinstance(report, ActorHandle) else on_epoch)(report)

    with TemporaryDirectory(prefix="pixrec-") as own:
        meeting = (Path(own) / "meeting").as_uri() if _is_alone() else None
        part = _Part(function, arguments, reports, CORE.getEffectiveLevel(), max(1, int(settings.cpus)), meeting)
        lead = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here, runtime_env={"env_vars": ENVIRONMENT})
        leader = lead(_lead).remote(part, count, needs, folder)
        try:
            while not ray.wait([leader], timeout=POLL_S)[0]:
                relay(reports, tell)
            relay(reports, tell)
            ray.get(leader)
        except RayError as error:
            raise _cause(error, count) from error
        finally:
            ray.cancel(leader, force=True)
            _end(workers)
            reports.shutdown(force=True)


class _Part(NamedTuple):
    """What one worker has to do.

    Attributes:
        function: to be called in a process group.
        arguments: of the function.
        reports: to the process that started the training.
        level: from which on it wants log lines.
        threads: of the CPU, for this worker.
        meeting: URL of a file where the workers meet; None where Ray Train has brought them together.
    """

    function: Callable[..., None]
    arguments: tuple[Any, ...]
    reports: Queue
    level: int
    threads: int
    meeting: str | None

    def take(self) -> None:
        """In a worker: join the group, call the function."""
        self.reports.put(ray.get_runtime_context().current_actor)
        if self.meeting:
            context = ray.train.get_context()
            join(context.get_world_rank(), context.get_world_size(), self.meeting, self.threads)
        torch.set_num_threads(self.threads)
        take_part(self.function, self.arguments, self.reports, self.level)


def _is_alone() -> bool:
    """Whether Ray is of this machine alone: then nothing of a training may listen to others either.

    torch's own meeting place does. A cluster's ports are open to its machines anyway.
    """
    return ip_address(ray.util.get_node_ip_address()).is_loopback


def _lead(part: _Part, count: int, needs: dict[str, float], folder: Path) -> None:
    """In a task: run Ray Train to the end."""
    TorchTrainer(
        part.take,
        torch_config=BackendConfig() if part.meeting else TorchConfig(timeout_s=int(PATIENCE.total_seconds())),
        scaling_config=ray.train.ScalingConfig(num_workers=count, use_gpu="GPU" in needs, resources_per_worker=needs),
        run_config=ray.train.RunConfig(
            name="ray-train",
            storage_path=str(folder),
            failure_config=ray.train.FailureConfig(
                max_failures=0, max_preemption_failures=0, controller_failure_limit=STARTS
            ),
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    ).fit()


def _cause(error: RayError, count: int) -> Exception:
    """Why it ended. A worker that is killed breaks the connections of the others, which may fail as well."""
    failure = error.cause if isinstance(error, RayTaskError) else error
    if not isinstance(failure, ray.train.WorkerGroupError):
        return EngineError(f"Ray itself failed: {failure}; run again, and training goes on after its last whole epoch")
    for rank, each in failure.worker_failures.items():
        death = getattr(each, "health_check_failure", None)
        if isinstance(death, RayActorError):
            return lost(rank, count, f"died ({death})")
    return failure


def _end(workers: list[ActorHandle]) -> None:
    """Kill workers, and wait until none is left that could write where the next training begins."""
    for worker in workers:
        ray.kill(worker)
    for worker in workers:
        with suppress(RayActorError):
            while True:
                ray.get(worker.__ray_ready__.remote())
                time.sleep(POLL_S)
