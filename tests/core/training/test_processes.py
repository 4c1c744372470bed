"""Training in two processes: what it leaves is what one leaves, and whatever ends one of them ends all and is named."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from pixrec_core import files, pipeline
from pixrec_core.errors import ContractError, LostProcessError, SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.settings import TrainingSettings
from pixrec_core.stages import Work
from pixrec_core.training import processes
from pixrec_core.training.trainer import FINISHED

pytestmark = pytest.mark.usefixtures("_nobody_left")


@pytest.fixture
def _nobody_left():
    yield
    assert multiprocessing.active_children() == []


def epochs(work: Work) -> list[dict]:
    record = files.read_json(work.variant_paths.checkpoint / checkpoint.CURVES)
    return [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record["epochs"]]


def weights(work: Work) -> dict[str, torch.Tensor]:
    return load_file(work.variant_paths.checkpoint / checkpoint.WEIGHTS)


class CrashError(Exception):
    """Ends a training as a crash would."""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_training_that_passes_from_parts_to_one_process_to_copies_and_back_ends_as_that_of_one(shop, caplog) -> None:
    caplog.set_level(logging.INFO, "pixrec_core")

    def work(count: int, *, fsdp: bool = False) -> Work:
        return shop(training={"epochs": 5, "patience": 5, "processes": count, "fsdp": fsdp, "batch_size": 15})

    pipeline.CHECKPOINT.materialise(work(1))
    expected = epochs(work(1)), weights(work(1))
    files.remove(work(1).variant_paths.root)
    state, told = work(1).variant_paths.training, []

    def kill(epoch: dict) -> None:
        told.append(epoch["epoch"])
        if epoch["epoch"] == 2:
            second = max(multiprocessing.active_children(), key=lambda process: process.name)
            os.kill(second.pid, signal.SIGKILL)

    caplog.clear()
    with pytest.raises(LostProcessError, match=r"^process 1 of the 2 .* was killed by SIGKILL, .*Run again"):
        pipeline.CHECKPOINT.materialise(work(2, fsdp=True), on_epoch=kill)
    assert told == [1, 2]
    lines = [record.message for record in caplog.records if record.message.startswith("multimodal: epoch")]
    assert [line.partition(",")[0] for line in lines] == ["multimodal: epoch 1", "multimodal: epoch 2"]
    assert multiprocessing.active_children() == []
    assert list(state.glob(f"*/*/{FINISHED}"))
    assert not work(2).variant_paths.checkpoint.exists()

    for end, others in ((3, work(1)), (4, work(2))):

        def crash(epoch: dict, end: int = end) -> None:
            told.append(epoch["epoch"])
            if epoch["epoch"] == end:
                raise CrashError

        told.clear()
        with pytest.raises(CrashError):
            pipeline.CHECKPOINT.materialise(others, on_epoch=crash)
        assert told in ([end - 1, end], [end]), "the epoch before the last one told may have been written whole or not"
    told.clear()
    last = work(2, fsdp=True)
    stats = pipeline.CHECKPOINT.materialise(last, on_epoch=lambda epoch: told.append(epoch["epoch"]))["stats"]
    assert told in ([4, 5], [5])
    assert stats["processes"] == 2
    for one, other in zip(expected[0], epochs(last), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert weights(last).keys() == expected[1].keys()
    for name, value in weights(last).items():
        torch.testing.assert_close(value, expected[1][name], rtol=1e-2, atol=1e-4)
    checkpoint.load(last.variant_paths.checkpoint)
    assert pipeline.CHECKPOINT.is_current(work(1)), "how many processes there are makes nothing stale"
    assert not state.exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_adapters_learn_in_parts_too(shop) -> None:
    """With all that changes how a layer runs: half precision, activations made twice, features from a file."""

    def work(count: int) -> Work:
        model = {"tune": "lora", "lora": {"rank": 3, "dropout": 0}, "vision": "frozen"}
        how = {"epochs": 2, "batch_size": 15, "precision": "bfloat16", "gradient_checkpointing": True}
        return shop(model=model, training=how | {"processes": count, "fsdp": count > 1})

    pipeline.CHECKPOINT.materialise(work(1))
    expected = epochs(work(1)), weights(work(1))
    files.remove(work(1).variant_paths.root)
    pipeline.CHECKPOINT.materialise(work(2))
    for one, other in zip(expected[0], epochs(work(2)), strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=2e-2)
    assert weights(work(2)).keys() == expected[1].keys()
    for name, value in weights(work(2)).items():
        torch.testing.assert_close(value, expected[1][name], rtol=5e-2, atol=1e-3)


def speak_and_wait(*, on_epoch) -> None:
    logging.getLogger("pixrec_core.somewhere").info("at work in %d", os.getpid())
    on_epoch({"pid": os.getpid()})
    signal.pause()


def refuse(*, on_epoch) -> None:
    if torch.distributed.get_rank() == 1:
        raise ContractError("nothing to train on")
    torch.distributed.barrier()


@pytest.mark.slow
def test_an_interrupt_ends_all_of_them(caplog) -> None:
    caplog.set_level(logging.INFO, "pixrec_core")
    told = []

    def interrupt(epoch: dict) -> None:
        told.append(epoch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run(speak_and_wait, (), 2, interrupt)
    (epoch,) = told
    assert [r.message for r in caplog.records if r.name == "pixrec_core.somewhere"] == [f"at work in {epoch['pid']}"]
    assert not psutil.pid_exists(epoch["pid"])


@pytest.mark.slow
def test_what_one_refuses_is_raised_as_it_is() -> None:
    with pytest.raises(ContractError, match=r"^nothing to train on$"):
        processes.run(refuse, (), 2, print)


PARENT = """
from pixrec_core.training import processes
from tests.core.training.test_processes import speak_and_wait
import multiprocessing

def tell(_):
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    processes.run(speak_and_wait, (), 2, tell)
"""


@pytest.mark.slow
def test_none_outlives_a_parent_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        ranks = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(ranks) == 2
        parent.kill()
    assert psutil.wait_procs(ranks, timeout=30)[1] == []


def group(*codes: int) -> SimpleNamespace:
    return SimpleNamespace(processes=[SimpleNamespace(exitcode=code) for code in codes])


def test_the_process_that_was_killed_is_named_whoever_is_seen_to_fail_first() -> None:
    lost = processes._cause(group(1, -signal.SIGKILL), ProcessRaisedException("connection closed", 0, 17))
    assert str(lost).startswith("process 1 of the 2 that trained (0 to 1) was killed by SIGKILL,")
    stopped = ProcessExitedException("", 0, 17, -signal.SIGTERM, "SIGTERM")
    lost = processes._cause(group(-signal.SIGTERM, -signal.SIGTERM), stopped)
    assert "process 0 of the 2 that trained (0 to 1) was killed by SIGTERM," in str(lost)
    lost = processes._cause(group(-signal.SIGTERM, 3), ProcessExitedException("", 1, 18, 3))
    assert "process 1 of the 2 that trained (0 to 1) ended with exit code 3," in str(lost)
    fault = ProcessRaisedException("a traceback", 1, 18)
    assert processes._cause(group(-signal.SIGTERM, 1), fault) is fault


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(SettingsError, match=r"training\.processes is 2, .* this machine has 1, so set it to that"):
        processes.run(refuse, (), 2, print)


def test_parts_go_to_several() -> None:
    with pytest.raises(ValidationError, match="fsdp deals weights out to several processes, but processes is 1"):
        TrainingSettings(fsdp=True)


def test_a_batch_has_a_window_for_each_process() -> None:
    with pytest.raises(ValidationError, match="processes is 3, but a batch has 2 windows to share"):
        TrainingSettings(batch_size=2, processes=3)
