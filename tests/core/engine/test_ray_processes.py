"""Training in two Ray actors: it ends as training in two processes does, and the end of one process ends all."""

import logging

import psutil
import pytest
import torch

from pixrec_core import files, pipeline
from pixrec_core.errors import ContractError, EngineError, LostProcessError
from pixrec_core.models import checkpoint
from pixrec_core.stages import Work
from tests.core.training.group_work import log_and_wait, refuse
from tests.core.training.test_processes import epochs, weights

pytestmark = pytest.mark.slow


def training_processes() -> list[psutil.Process]:
    """Training processes of Ray that are alive."""
    return [child for child in psutil.Process().children(recursive=True) if is_training(child)]


def is_training(process: psutil.Process) -> bool:
    try:
        return "ray::_TrainingProcess." in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def test_a_training_that_lost_a_process_resumes_with_shards_and_ends_like_two_local_processes(
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
    on_ray, reported = work(engine=engine), []

    def kill(epoch: dict) -> None:
        reported.append(epoch["epoch"])
        if epoch["epoch"] == 2:
            training_processes()[0].kill()

    caplog.clear()
    with pytest.raises(LostProcessError, match=r"^training process [01] \(of 0 to 1\) died .*resumes"):
        pipeline.CHECKPOINT.materialise(on_ray, on_epoch=kill)
    assert reported == [1, 2]
    lines = [record.message for record in caplog.records if record.message.startswith("multimodal: epoch")]
    assert [line.partition(",")[0] for line in lines] == ["multimodal: epoch 1", "multimodal: epoch 2"]
    psutil.wait_procs(training_processes())
    reported.clear()
    on_ray = work(engine=engine, fsdp=True)
    stats = pipeline.CHECKPOINT.materialise(on_ray, on_epoch=lambda epoch: reported.append(epoch["epoch"]))["stats"]
    assert reported in ([2, 3], [3]), "the checkpoint of one epoch, or of two, was complete"
    assert stats["processes"] == 2
    for one, other in zip(expected[0], epochs(on_ray), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    for name, value in weights(on_ray).items():
        torch.testing.assert_close(value, expected[1][name], rtol=1e-2, atol=1e-4)
    checkpoint.load(on_ray.variant_paths.checkpoint)
    assert pipeline.CHECKPOINT.is_current(work()), "the engine makes nothing stale"
    assert not on_ray.variant_paths.training.exists()


def test_an_interrupt_ends_all_processes_and_none_listens_on_other_interfaces(ray_engines) -> None:
    reported = []

    def interrupt(epoch: dict) -> None:
        reported.extend([epoch, *training_processes()])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ray_engines[2].run_process_group(log_and_wait, 2, interrupt)
    epoch, *processes = reported
    assert len(processes) == 2
    psutil.wait_procs(processes)
    assert epoch["addresses"]
    assert {ip.removeprefix("::ffff:") for ip in epoch["addresses"]} == {"127.0.0.1"}


def test_an_error_of_one_process_is_raised_unchanged(ray_engines, monkeypatch) -> None:
    """With a rendezvous at a port, as on a cluster."""
    from pixrec_core.engine import _ray_processes

    monkeypatch.setattr(_ray_processes, "_is_loopback_only", lambda: False)
    with pytest.raises(ContractError, match=r"^nothing to train on$"):
        ray_engines[2].run_process_group(refuse, 2, print)
    psutil.wait_procs(training_processes())


def test_more_processes_than_the_cluster_has_room_for_are_refused(ray_engines) -> None:
    message = r"training\.processes is 3, but Ray has room for 2 .* raise engine\.workers"
    with pytest.raises(EngineError, match=message):
        ray_engines[2].run_process_group(refuse, 3, print)
