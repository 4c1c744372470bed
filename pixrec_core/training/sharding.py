"""A model in parts: each process of a group holds its share of weights, gradients and optimiser state.

ZeRO's third stage (arXiv 1910.02054) as PyTorch's fully sharded data parallelism (arXiv 2304.11277) has it. What is
written is whole, so that any number of processes can go on from it, with parts or without.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from torch import Tensor, distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from transformers.modeling_layers import GradientCheckpointingLayer

from pixrec_core.models.dual_tower import DualTower


def shard(model: DualTower) -> None:
    """Deal the first process's weights out, in place.

    A layer of the decoder or the vision tower is gathered while it runs. The rest is gathered for a whole step: small
    things, and the embeddings, which the output head may be tied to and which are the first and the last to be used.
    """
    for weight in model.parameters():  # those of others may differ in the last bit, where their processors do
        distributed.broadcast(weight.data, src=0)
    mesh = init_device_mesh(model.device.type, (distributed.get_world_size(),))
    for module in reversed(list(model.backbone.modules())):  # what lies within another comes first
        if isinstance(module, GradientCheckpointingLayer):  # each layer is one, in every family
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def gathered_weights(model: DualTower) -> Iterator[None]:
    """Every process has all weights, for reading, until the end; a model that was never dealt out has them anyway.

    So each can encode what it likes. Layers that gathered their weights as they ran would make them keep in step.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    layers = parts[1:]  # the first is the model itself, which keeps what it gathered
    for part in parts:
        part.unshard()
    for layer in layers:
        layer.set_reshard_after_forward(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
        if parts:  # forgets what ran, too: the next backward would gather it ahead, in step with who ran the same
            parts[0].reset_iter_state()


def full_state_dict(state: dict[str, Any]) -> dict[str, Any]:
    """A state dict of whole tensors on the CPU. Every process must ask for it; the first alone gets tensors."""
    first = not distributed.is_initialized() or distributed.get_rank() == 0

    def own(value: Any) -> Any:
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if isinstance(value, Tensor):
            return value.cpu() if first else None
        return value

    return cast("dict[str, Any]", tree_map(own, state))


def shard_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's state dict with this process's part of what belongs to weights that are dealt out.

    Args:
        state: as `whole` gave it.
        optimizer: that will load it.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def part(value: Any, weight: Tensor) -> Any:
        if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
            return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
        return value

    own = {
        number: {name: part(value, weights[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": own}
