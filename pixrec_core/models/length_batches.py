"""Encoding of many inputs: in batches of similar length, so that little is padding, in any processes."""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from pixrec_core.engine import Engine
from pixrec_core.models.checkpoint import device
from pixrec_core.progress import track

log = logging.getLogger(__name__)

T = TypeVar("T")
Vectors = NDArray[np.float32]

#: Padded tokens per batch. On a CPU, small batches keep activations in its cache: `tiny` takes half as long again
#: with GPU-sized ones.
CPU_TOKENS: Final = 2_048
GPU_TOKENS: Final = 16_384


def encode_all(
    encode_batch: Callable[[Sequence[T]], Vectors],
    inputs: Sequence[T],
    lengths: Sequence[int],
    device: Any,
    progress: str,
    engine: Engine,
) -> Vectors:
    """Return the vectors of all inputs in their order, (len(inputs), ...); `lengths` are in tokens."""
    batches = length_batches(lengths, CPU_TOKENS if device.type == "cpu" else GPU_TOKENS)
    encoded = engine.map_shards(encode_batch, [[inputs[row] for row in rows] for rows in batches])
    vectors: Vectors | None = None
    for rows, part in zip(batches, track(encoded, progress + ", batches", len(batches), log), strict=True):
        if vectors is None:
            vectors = np.empty((len(lengths), *part.shape[1:]), np.float32)
        vectors[rows] = part
    assert vectors is not None, "there is no input to encode"
    return vectors


def length_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Return indices of inputs in batches of at most `max_tokens` padded tokens, shortest inputs first.

    A longer input forms a batch alone.
    """
    batches, batch = [], list[int]()
    for row in np.argsort(lengths, kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[row] > max_tokens:
            batches.append(batch)
            batch = []
        batch.append(row)
    return [*batches, batch] if batch else batches


def to_numpy(vectors: torch.Tensor) -> Vectors:
    """Return a tensor as float32 in main memory."""
    array: Vectors = vectors.float().cpu().numpy()
    return array


class DevicePickle:
    """Base class of picklable objects with a `model`: unpickling moves it to the GPU, if there is one.

    Unpickling also sets the sender's number of torch threads: the last bits of a sum depend on it, and workers must
    compute the same vectors as the sender.
    """

    model: Any

    def __getstate__(self) -> dict[str, Any]:
        model = self.model if self.model.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return {**self.__dict__, "model": model, "threads": torch.get_num_threads()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.set_num_threads(state.pop("threads"))
        self.__dict__.update(state)
        self.model.to(device())
