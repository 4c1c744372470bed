"""Training in two workers of Ray: what it leaves is what two processes leave, and whatever ends one ends all."""

import logging
import os
import time

import psutil
import pytest
import torch

from pixrec_core import files, pipeline
from pixrec_core.errors import ContractError, EngineError, LostProcessError
from pixrec_core.models import checkpoint
from pixrec_core.stages import Work
from tests.core.training.test_processes import epochs, refuse, weights

pytestmark = pytest.mark.slow


@pytest.fixture
def run(ray_engines):
    """Runs a function in two workers of Ray, in room that those of an earlier map would keep for a minute."""
    from pixrec_core.training import ray_processes

    ray_engines[2].make_room()

    def of(function, on_epoch, count: int = 2) -> None:
        ray_processes.run(function, (), count, on_epoch, ray_engines[2].settings)

    return of


def workers_of_ray() -> list[psutil.Process]:
    """Training workers that live."""
    children = psutil.Process().children(recursive=True)
    return [child for child in children if is_at_work(child)]


def is_at_work(child: psutil.Process) -> bool:
    try:
        return "ray::_Worker.work" in " ".join(child.cmdline())
    except psutil.Error:  # it has just ended
        return False


@pytest.mark.timeout(600)
def test_a_training_that_lost_a_worker_goes_on_in_parts_and_ends_as_that_of_two_processes(
    shop, ray_engines, caplog
) -> None:
    caplog.set_level(logging.INFO, "pixrec_core")

    def work(*, fsdp: bool = False, **sections: dict) -> Work:
        training = {"epochs": 3, "processes": 2, "fsdp": fsdp, "batch_size": 15}
        return shop(training=training, model={"vision": "frozen"}, **sections)

    pipeline.CHECKPOINT.materialise(work())
    expected = epochs(work()), weights(work())
    files.remove(work().variant_paths.root)
    files.remove(work().paths.cache)
    engine = {"kind": "ray", "workers": 2}
    there, told = work(engine=engine), []

    def kill(epoch: dict) -> None:
        told.append(epoch["epoch"])
        if epoch["epoch"] == 2:
            workers_of_ray()[0].kill()

    caplog.clear()
    with pytest.raises(LostProcessError, match=r"^process [01] of the 2 .* died .*Run again"):
        pipeline.CHECKPOINT.materialise(there, on_epoch=kill)
    assert told == [1, 2]
    lines = [record.message for record in caplog.records if record.message.startswith("multimodal: epoch")]
    assert [line.partition(",")[0] for line in lines] == ["multimodal: epoch 1", "multimodal: epoch 2"]
    assert psutil.wait_procs(workers_of_ray(), timeout=10)[1] == []
    told.clear()
    there = work(engine=engine, fsdp=True)
    stats = pipeline.CHECKPOINT.materialise(there, on_epoch=lambda epoch: told.append(epoch["epoch"]))["stats"]
    assert told in ([2, 3], [3]), "the first epoch, or two, had been written whole"
    assert stats["processes"] == 2
    for one, other in zip(expected[0], epochs(there), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, value in weights(there).items():
        torch.testing.assert_close(value, expected[1][name], rtol=1e-2, atol=1e-4)
    checkpoint.load(there.variant_paths.checkpoint)
    assert pipeline.CHECKPOINT.is_current(work()), "where the processes are makes nothing stale"
    assert not there.variant_paths.training.exists()


def listen_and_wait(*, on_epoch) -> None:
    ports = [each.laddr.ip for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN]
    on_epoch({"pid": os.getpid(), "listens": ports})
    time.sleep(600)


def test_an_interrupt_ends_all_of_them_and_nothing_listens_to_others(run) -> None:
    told = []

    def interrupt(epoch: dict) -> None:
        told.extend([epoch, *workers_of_ray()])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(listen_and_wait, interrupt)
    epoch, *workers = told
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=10)[1] == []
    assert epoch["listens"]
    assert {ip.removeprefix("::ffff:") for ip in epoch["listens"]} == {"127.0.0.1"}


def test_what_one_refuses_is_raised_as_it_is(run, monkeypatch) -> None:
    """In a group that meets at a port, as it does on a cluster."""
    from pixrec_core.training import ray_processes

    monkeypatch.setattr(ray_processes, "_is_alone", lambda: False)
    with pytest.raises(ContractError, match=r"^nothing to train on$"):
        run(refuse, print)
    assert psutil.wait_procs(workers_of_ray(), timeout=10)[1] == []


def test_more_workers_than_there_is_room_for_are_refused(run) -> None:
    with pytest.raises(
        EngineError, match=r"training\.processes is 3, and Ray has room for 2, .* raise engine\.workers"
    ):
        run(refuse, print, count=3)
