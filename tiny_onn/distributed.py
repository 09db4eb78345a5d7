"""Sums over workers: the one way in which shards speak to each other, but for the comparison of what each of them has.

Losses are sums over tokens divided by the *global* number of tokens, so gradients are added over the workers, never
averaged: nothing then depends on how the tokens are sharded, and grad_output is the same number on any shard.
"""

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tiny_onn.capture import CaptureError
from tiny_onn.layers import router_parameters, sparse_layers


def sum_over_workers(tensor: Tensor) -> Tensor:
    """Adds the tensor up over all workers, in place; the tensor as it is where there is one worker."""
    if several_workers():
        dist.all_reduce(tensor)
    return tensor


def gather_over_workers(tensor: Tensor) -> Tensor:
    """[workers, ...]: every worker's tensor, by rank. All are of one shape."""
    if not several_workers():
        return tensor[None]
    gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.stack(gathered)


_SYNC_BUFFERS = (  # renamed in torch 2.13
    "forward_sync_buffers"
    if "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
    else "broadcast_buffers"
)


class Reductions:
    """How many backward passes of a step had their gradients added up over the workers."""

    def __init__(self) -> None:
        self.passes = 0


def reductions(model: nn.Module) -> Reductions:
    """Of the model that `distribute` was given, whose layers have them; none are counted where there is one worker."""
    counted = (layer.reductions for layer in sparse_layers(model).values() if layer.reductions is not None)
    return next(counted, None) or Reductions()


def check_summed(model: nn.Module) -> None:
    """Whether a step's gradients were added up over the workers once, and not averaged; called after its backward pass.

    Raises:
        CaptureError: they were not; on every worker alike.
    """
    if not several_workers():
        return
    passes = reductions(model).passes
    if passes > 1:  # on every worker, or one would still wait for another
        raise CaptureError(
            f"the gradients of {passes} backward passes of this step were each added up over the workers, and with "
            "them those of the passes before; run all but the last under DDP's no_sync()"
        )
    if passes < 1:
        raise CaptureError(
            "the gradients of this step were not summed over the workers: the forward pass did not go through the "
            "model that tiny_onn.distributed.distribute(model, ...) returned, or all backward passes ran under "
            "no_sync(). Plain DistributedDataParallel averages gradients; wrap the bare model with distribute() and "
            "call the result"
        )


def several_workers() -> bool:
    """Whether there is anybody to send sums to."""
    return dist.is_initialized() and dist.get_world_size() > 1


def _sum_bucket(state: Reductions, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    state.passes += bucket.is_last()
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


def distribute(model: nn.Module, *, router_in_backward: bool, **options: Any) -> nn.Module:
    """`model` in DDP with gradients summed over the workers; the model itself where there is one worker.

    Of several backward passes in a step, all but the last belong under DDP's `no_sync()`: a sum that had been reduced
    already would be added up over the workers once more. LearningDynamics refuses such a step.

    Args:
        router_in_backward: P and G get their gradients in the backward pass, as from the task loss and from the fused
            engine. Otherwise DDP must not wait for them: they are left to the hooks' engine, which reduces them in one
            message.
        options: further ones of DistributedDataParallel, such as static_graph or find_unused_parameters.

    Raises:
        ValueError: the model has no SparseProtoLinear, by which LearningDynamics knows of the sums.
    """
    if not several_workers():
        return model
    layers = sparse_layers(model).values()
    if not layers:
        raise ValueError("the model has no SparseProtoLinear; for such a model use DistributedDataParallel itself")
    apart = [] if router_in_backward else [p for p in router_parameters(model) if p.requires_grad]
    for parameter in apart:
        parameter.requires_grad_(False)
    device = next(model.parameters()).device
    # A regulation's buffers come of sums over the workers, so they are equal without a message.
    options = {**options, "device_ids": [device] if device.type == "cuda" else None, _SYNC_BUFFERS: False}
    wrapped = DistributedDataParallel(model, **options)
    for parameter in apart:
        parameter.requires_grad_(True)
    counted = reductions(model)
    for layer in layers:
        layer.reductions = counted
    wrapped.register_comm_hook(counted, _sum_bucket)
    return wrapped
