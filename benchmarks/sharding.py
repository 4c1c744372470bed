"""Memory and time of training in two processes, with a sharded model and with a replica per process.

The pipeline trains the architecture of `tiny` with a decoder of some tens of millions of random weights, with
`training.fsdp` and with DistributedDataParallel in turns, in fresh processes each time. Memory is the peak unique set
size of the second process, sampled every few milliseconds. That process writes nothing, so the peak is what a GPU would
hold plus some 0.5 GiB of libraries and data. (The first process also gathers complete states to save them.) glibc is
set to return freed memory at once, which costs both some time. Time is that of an epoch with its validation.

    python -m benchmarks.sharding [--rounds 3] [--users 32] [--width 768] [--layers 8]
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread

import psutil
from transformers import SmolVLMForConditionalGeneration, set_seed

from benchmarks.generated_shop import open_shop, shop
from pixrec_core import files, pipeline, prompts
from pixrec_core.data.sequences import read_items
from pixrec_core.models import checkpoint
from pixrec_core.models.backbones import tiny
from pixrec_core.paths import DatasetPaths

SAMPLE_EVERY_S = 0.005
PROCESSES = 2
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}  # bytes
SMALL_STEPS = {"batch_size": 4, "max_history_len": 4, "num_sampled_negatives": 4}
HEAD = 64  # dimension of an attention head


class PeakMemory(Thread):
    """Samples the memory of the second training process, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak, self._ended = 0.0, Event()

    def run(self) -> None:
        """Sample until `end`."""
        while not self._ended.wait(SAMPLE_EVERY_S):
            if len(processes := multiprocessing.active_children()) == PROCESSES:
                second = max(processes, key=lambda process: int(process.name.rpartition("-")[2]))
                with suppress(psutil.Error):  # it has just ended
                    self.peak = max(self.peak, psutil.Process(second.pid).memory_full_info().uss / 2**20)

    def end(self) -> float:
        """Stop and return the peak."""
        self._ended.set()
        self.join()
        return self.peak


def save_backbone(folder: Path, paths: DatasetPaths, width: int, layers: int) -> int:
    """Write a backbone with random weights and return their number."""
    set_seed(0)
    small, processor = tiny.create(prompts.item_text(item) for item in read_items(paths).iter_rows(named=True))
    text = small.config.text_config
    text.hidden_size, text.intermediate_size, text.num_hidden_layers = width, 3 * width, layers
    text.num_attention_heads = text.num_key_value_heads = width // HEAD
    text.head_dim = HEAD
    model = SmolVLMForConditionalGeneration(small.config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return int(sum(weight.numel() for weight in model.parameters()))


def measure_training(folder: Path, users: int, backbone: Path, fsdp: bool) -> tuple[float, float]:
    """Return MiB and seconds of one training."""
    training = {"processes": PROCESSES, "fsdp": fsdp, **SMALL_STEPS}
    work = shop({"users": users}, folder, model={"backbone": str(backbone)}, training=training)
    files.remove(work.variant_paths.root)
    memory = PeakMemory()
    memory.start()
    pipeline.CHECKPOINT.materialise(work)
    (epoch,) = files.read_json(work.variant_paths.checkpoint / checkpoint.CURVES)["epochs"]
    return memory.end(), epoch["seconds"]


def main() -> None:
    """Print memory and time of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--width", type=int, default=768, help=f"of the decoder, a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    os.environ |= MALLOC  # read by the training processes
    measured: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder, backbone = Path(temporary, "shop"), Path(temporary, "backbone")
        work = open_shop(folder, given.users, pipeline.DATA)
        weights = save_backbone(backbone, work.paths, given.width, given.layers)
        print(f"{weights / 1e6:.1f} million weights, {PROCESSES} processes")
        for _ in range(given.rounds):
            for fsdp, each in measured.items():
                each.append(measure_training(folder, given.users, backbone, fsdp))
    for what, number in (("MiB per process", 0), ("s per epoch", 1)):
        sharded, replicas = ([run[number] for run in each] for each in measured.values())
        ratios = [one / other for one, other in zip(sharded, replicas, strict=True)]
        for name, values, unit in (("sharded", sharded, what), ("replicas", replicas, what), ("ratio", ratios, "x")):
            print(f"{name:10} {statistics.median(values):10,.2f} ({min(values):,.2f} to {max(values):,.2f}) {unit}")


if __name__ == "__main__":
    main()
