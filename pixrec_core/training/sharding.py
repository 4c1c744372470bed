"""Sharded models: each process of a group holds a shard of weights, gradients and optimiser state.

This is PyTorch's fully sharded data parallelism (arXiv 2304.11277), the third stage of ZeRO (arXiv 1910.02054). What is
saved is complete, so that a training can resume in any number of processes, sharded or not.
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

from pixrec_core.models.dual_tower import Tower


def shard(model: Tower) -> None:
    """Shard the first process's weights over all processes, in place.

    Each layer of the decoder and the vision tower is gathered while it runs. The rest is gathered for a whole step:
    small modules, and the embeddings, to which the output head may be tied, so that a step uses them first and last.
    """
    for weight in model.parameters():  # other processors may have computed other last bits
        distributed.broadcast(weight.data, src=0)
    mesh = init_device_mesh(model.device.type, (distributed.get_world_size(),))
    for module in reversed(list(model.backbone.modules())):  # inner modules first
        if isinstance(module, GradientCheckpointingLayer):  # the base class of layers in every model family
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


@contextmanager
def gathered_weights(model: Tower) -> Iterator[None]:
    """Give every process the complete weights, for reading, until the end of the block.

    So each process can encode other inputs. Layers that gather weights as they run would need all processes at once.
    """
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    layers = shards[1:]  # the first is the model itself, which keeps its gathered weights
    for module in shards:
        module.unshard()
    for layer in layers:
        layer.set_reshard_after_forward(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.set_reshard_after_forward(True)
        if shards:  # also forgets the order of layers, by which the next backward would prefetch them
            shards[0].reset_iter_state()


def full_state_dict(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state dict of complete CPU tensors. All processes must call it; only the first one gets the tensors."""
    first = not distributed.is_initialized() or distributed.get_rank() == 0

    def complete(value: Any) -> Any:
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if isinstance(value, Tensor):
            return value.cpu() if first else None
        return value

    return cast("dict[str, Any]", tree_map(complete, state))


def shard_optimizer_state(state: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """Return the result of `full_state_dict` for an optimiser with this process's shard of each sharded weight."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]

    def shard_like(value: Any, weight: Tensor) -> Any:
        if isinstance(weight, DTensor) and isinstance(value, Tensor) and value.shape == weight.shape:
            return distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
        return value

    sharded = {
        number: {name: shard_like(value, weights[number]) for name, value in values.items()}
        for number, values in state["state"].items()
    }
    return {**state, "state": sharded}
