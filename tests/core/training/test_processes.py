"""Training in two processes: it ends as training in one does, and the end of one process ends all and is reported."""

import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pixrec_core import files, pipeline
from pixrec_core.engine import LOCAL, _local_processes
from pixrec_core.errors import ContractError, LostProcessError, SettingsError
from pixrec_core.models import checkpoint
from pixrec_core.settings import Sections
from pixrec_core.stages import Work
from pixrec_core.training.trainer import FINISHED
from tests.core.training.group_work import fail_in_another_way, log_and_wait, refuse

pytestmark = pytest.mark.usefixtures("_no_process_left")


@pytest.fixture
def _no_process_left():
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
def test_a_training_resumed_with_one_process_and_replicas_ends_like_one_process(shop, caplog) -> None:
    """Started with shards. `test_ray_processes` resumes replicas with shards."""
    caplog.set_level(logging.INFO, "pixrec_core")

    def work(count: int, *, fsdp: bool = False) -> Work:
        return shop(training={"epochs": 4, "patience": 4, "processes": count, "fsdp": fsdp, "batch_size": 15})

    pipeline.CHECKPOINT.materialise(work(1))
    expected = epochs(work(1)), weights(work(1))
    files.remove(work(1).variant_paths.root)
    state, reported = work(1).variant_paths.training, []

    def kill(epoch: dict) -> None:
        reported.append(epoch["epoch"])
        if epoch["epoch"] == 2:
            second = max(multiprocessing.active_children(), key=lambda child: int(child.name.rpartition("-")[2]))
            os.kill(second.pid, signal.SIGKILL)

    caplog.clear()
    with pytest.raises(LostProcessError, match=r"^training process 1 \(of 0 to 1\) was killed by SIGKILL, .*resumes"):
        pipeline.CHECKPOINT.materialise(work(2, fsdp=True), on_epoch=kill)
    assert reported == [1, 2]
    lines = [record.message for record in caplog.records if record.message.startswith("multimodal: epoch")]
    assert [line.partition(",")[0] for line in lines] == ["multimodal: epoch 1", "multimodal: epoch 2"]
    assert multiprocessing.active_children() == []
    assert list(state.glob(f"*/*/{FINISHED}"))
    assert not work(2).variant_paths.checkpoint.exists()

    def crash(epoch: dict) -> None:
        reported.append(epoch["epoch"])
        if epoch["epoch"] == 3:
            raise CrashError

    reported.clear()
    with pytest.raises(CrashError):
        pipeline.CHECKPOINT.materialise(work(1), on_epoch=crash)
    assert reported in ([2, 3], [3]), "the checkpoint of the last reported epoch may have been complete or not"
    reported.clear()
    last = work(2)
    stats = pipeline.CHECKPOINT.materialise(last, on_epoch=lambda epoch: reported.append(epoch["epoch"]))["stats"]
    assert reported in ([3, 4], [4])
    assert stats["processes"] == 2
    for one, other in zip(expected[0], epochs(last), strict=True):
        assert one == pytest.approx(other, rel=1e-3)
    assert weights(last).keys() == expected[1].keys()
    for name, value in weights(last).items():
        torch.testing.assert_close(value, expected[1][name], rtol=1e-2, atol=1e-4)
    checkpoint.load(last.variant_paths.checkpoint)
    assert pipeline.CHECKPOINT.is_current(work(1)), "the number of processes makes nothing stale"
    assert not state.exists()


@pytest.mark.slow
def test_adapters_train_with_shards(shop) -> None:
    """With everything that changes how a layer runs: half precision, recomputed activations, photo features."""

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


@pytest.mark.slow
def test_an_interrupt_ends_all_processes_which_listen_on_loopback_only(caplog) -> None:
    caplog.set_level(logging.INFO, "pixrec_core")
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
    handlers = [signal.getsignal(each) for each in signals]
    reported = []

    def interrupt(epoch: dict) -> None:
        reported.append(epoch)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        LOCAL.run_process_group(log_and_wait, 2, interrupt)
    (epoch,) = reported
    assert [r.message for r in caplog.records if r.name == "pixrec_core.somewhere"] == [f"at work in {epoch['pid']}"]
    assert not psutil.pid_exists(epoch["pid"])
    assert {address.removeprefix("::ffff:") for address in epoch["addresses"]} == {"127.0.0.1"}
    assert [signal.getsignal(each) for each in signals] == handlers


@pytest.mark.slow
def test_an_error_of_one_process_is_raised_unchanged() -> None:
    with pytest.raises(ContractError, match=r"^nothing to train on$"):
        LOCAL.run_process_group(refuse, 2, print)


PARENT = """
from pixrec_core.engine import LOCAL
from tests.core.training.group_work import log_and_wait
import multiprocessing

def print_pids(_):
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)

if __name__ == "__main__":
    LOCAL.run_process_group(log_and_wait, 2, print_pids)
"""


@pytest.mark.slow
def test_no_process_outlives_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        ranks = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
        assert len(ranks) == 2
        parent.kill()
    psutil.wait_procs(ranks)  # until the test's own timeout


@pytest.mark.slow
def test_another_error_is_raised_with_the_traceback_of_its_process() -> None:
    before = set(Path(tempfile.gettempdir()).glob("pytorch-errorfile-*"))
    with pytest.raises(
        ChildFailedError, match=r"(?s)rank +: 1 .*fail_in_another_way.*ValueError: a mistake in the code"
    ):
        LOCAL.run_process_group(fail_in_another_way, 2, print)
    assert set(Path(tempfile.gettempdir()).glob("pytorch-errorfile-*")) <= before


def failure(tmp_path: Path, rank: int, *codes: int, traceback: str = "") -> Exception:
    """The error of a group with these exit codes, whose launcher reports one rank."""
    group = SimpleNamespace(_pc=SimpleNamespace(processes=[SimpleNamespace(exitcode=code) for code in codes]))
    file = tmp_path / "error.json"
    if traceback:
        files.write_json(file, {"message": {"message": traceback, "extraInfo": {"timestamp": "0"}}})
    failed = ProcessFailure(rank, 17, codes[rank], str(file))
    return _local_processes._failure(group, SimpleNamespace(failures={rank: failed}))


def test_the_killed_process_is_reported_even_if_another_is_seen_to_fail_first(tmp_path: Path) -> None:
    lost = failure(tmp_path, 0, 1, -signal.SIGKILL)
    assert str(lost).startswith("training process 1 (of 0 to 1) was killed by SIGKILL,")
    lost = failure(tmp_path, 0, -signal.SIGTERM, -signal.SIGTERM)
    assert "training process 0 (of 0 to 1) was killed by SIGTERM," in str(lost)
    lost = failure(tmp_path, 1, -signal.SIGTERM, 3)
    assert "training process 1 (of 0 to 1) ended with exit code 3," in str(lost)
    assert isinstance(failure(tmp_path, 1, -signal.SIGTERM, 1, traceback="ValueError"), ChildFailedError)


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(
        SettingsError, match=r"training\.processes is 2, but this machine has 1 GPUs .* lower training\.processes"
    ):
        LOCAL.run_process_group(refuse, 2, print)


def test_shards_need_several_processes() -> None:
    with pytest.raises(ValidationError, match="fsdp shards weights over several processes, but processes is 1"):
        Sections.model_validate({"model": {"user_encoder": "tokens"}, "training": {"fsdp": True}})


def test_a_batch_needs_a_window_for_each_process() -> None:
    with pytest.raises(ValidationError, match="processes is 3, but a batch has only 2 windows"):
        Sections.model_validate({"model": {"user_encoder": "tokens"}, "training": {"batch_size": 2, "processes": 3}})
