"""Memory and time of training in two processes: each with its part of the model, against each with a copy of it.

The architecture of `tiny`, with a decoder of some tens of millions of random weights, trained by the pipeline itself:
`training.fsdp` against DistributedDataParallel, in turns, in fresh processes each time. Memory is the most that the
second process had to itself (unique set size) from its start to its end, looked at every few milliseconds: it writes
nothing, so what it has is what would lie in its GPU, and some 0.5 GiB of libraries and data. The first gathers whole
states as it writes them. Freed memory goes back to the system at once, which costs both some time: by itself glibc
keeps what layers leave. Time is that of the epoch, validation included.

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

from benchmarks.generated_shop import DATA_STAGES, open_shop, shop
from pixrec_core import files, pipeline, prompts
from pixrec_core.data.sequences import read_items
from pixrec_core.models import checkpoint
from pixrec_core.models.backbones import tiny
from pixrec_core.paths import DatasetPaths

LOOK_EVERY_S = 0.005
PROCESSES = 2
KEEP_NOTHING = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}  # bytes
SMALL_STEPS = {
    "batch_size": 4,
    "max_history_len": 4,
    "num_sampled_negatives": 4,
}  # what a step computes is alike in both
HEAD = 64  # numbers of an attention head


class Watch(Thread):
    """The most memory that the second of the processes which this one starts had, in MiB."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most, self._over = 0.0, Event()

    def run(self) -> None:
        """Look until the end."""
        while not self._over.wait(LOOK_EVERY_S):
            if len(processes := multiprocessing.active_children()) == PROCESSES:
                second = max(processes, key=lambda process: process.name)
                with suppress(psutil.Error):  # it has just ended
                    self.most = max(self.most, psutil.Process(second.pid).memory_full_info().uss / 2**20)

    def end(self) -> float:
        """The most, now that there is no more."""
        self._over.set()
        self.join()
        return self.most


def save_backbone(folder: Path, paths: DatasetPaths, width: int, layers: int) -> int:
    """Write a backbone of random weights; how many there are."""
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


def measure(folder: Path, users: int, backbone: Path, fsdp: bool) -> tuple[float, float]:
    """MiB and seconds of one training."""
    training = {"processes": PROCESSES, "fsdp": fsdp, **SMALL_STEPS}
    work = shop({"users": users}, folder, model={"backbone": str(backbone)}, training=training)
    files.remove(work.variant_paths.root)
    watch = Watch()
    watch.start()
    pipeline.CHECKPOINT.materialise(work)
    (epoch,) = files.read_json(work.variant_paths.checkpoint / checkpoint.CURVES)["epochs"]
    return watch.end(), epoch["seconds"]


def main() -> None:
    """Print memory and time of both, and their ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--users", type=int, default=32)
    parser.add_argument("--width", type=int, default=768, help=f"of the decoder, a multiple of {HEAD}")
    parser.add_argument("--layers", type=int, default=8)
    given = parser.parse_args()
    os.environ |= KEEP_NOTHING  # read by the processes that start from here
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder, backbone = Path(temporary, "shop"), Path(temporary, "backbone")
        work = open_shop(folder, given.users, DATA_STAGES)
        weights = save_backbone(backbone, work.paths, given.width, given.layers)
        print(f"{weights / 1e6:.1f} million weights, {PROCESSES} processes")
        for _ in range(given.rounds):
            for fsdp, each in found.items():
                each.append(measure(folder, given.users, backbone, fsdp))
    for what, number in (("MiB of a process", 0), ("s an epoch", 1)):
        parts, copies = ([run[number] for run in each] for each in found.values())
        ratios = [part / copy for part, copy in zip(parts, copies, strict=True)]
        for name, values, unit in (("in parts", parts, what), ("in copies", copies, what), ("ratio", ratios, "x")):
            print(f"{name:10} {statistics.median(values):10,.2f} ({min(values):,.2f} to {max(values):,.2f}) {unit}")


if __name__ == "__main__":
    main()
