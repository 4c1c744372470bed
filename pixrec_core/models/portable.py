"""What holds a model and is sent to another process."""

import copy
from typing import Any

import torch

from pixrec_core.models.checkpoint import device
from pixrec_core.models.dual_tower import DualTower


class DevicePickle:
    """Base of what has a `model`: on arrival that moves to the GPU, if there is one.

    It computes there with as many threads as where it came from: how a sum is parted among threads shows in its last
    bits, and a worker's vectors are to be those of the process that it works for.
    """

    model: DualTower

    def __getstate__(self) -> dict[str, Any]:
        model = self.model if self.model.device.type == "cpu" else copy.deepcopy(self.model).cpu()
        return {**self.__dict__, "model": model, "threads": torch.get_num_threads()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.set_num_threads(state.pop("threads"))
        self.__dict__.update(state)
        self.model.to(device())
