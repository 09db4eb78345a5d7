"""Sums over workers: the one way in which shards speak to each other, but for the comparison of what each of them has.

Losses are sums over tokens divided by the *global* number of tokens, so gradients are added over the workers, never
averaged: nothing then depends on how the tokens are sharded, and grad_output is the same number on any shard.
"""

from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tiny_onn.layers import router_parameters


def sum_over_workers(tensor: Tensor) -> Tensor:
    """Adds the tensor up over all workers, in place; the tensor as it is where there is one worker."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_over_workers(tensor: Tensor) -> Tensor:
    """[workers, ...]: every worker's tensor, by rank. All are of one shape."""
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return tensor[None]
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor.contiguous())
    return torch.stack(found)


class Reductions:
    """How many backward passes of a step had their gradients added up over the workers."""

    def __init__(self) -> None:
        self.passes = 0


_of_model: WeakKeyDictionary[nn.Module, Reductions] = WeakKeyDictionary()


def reductions(model: nn.Module) -> Reductions:
    """Of the model that `distribute` was given; none are counted where there is one worker."""
    return _of_model.get(model) or Reductions()


def _sum_bucket(state: Reductions, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    state.passes += bucket.is_last()
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    assert work is not None
    return work.get_future().then(lambda future: future.value()[0])


def distribute(model: nn.Module, *, router_in_backward: bool) -> nn.Module:
    """`model` in DDP with gradients summed over the workers; the model itself where there is one worker.

    Of several backward passes in a step, all but the last belong under DDP's `no_sync()`: a sum that had been reduced
    already would be added up over the workers once more. LearningDynamics refuses such a step.

    Args:
        router_in_backward: P and G get their gradients in the backward pass, as in the control arm and from the fused
            engine. Otherwise DDP must not wait for them: they are left to the hooks' engine, which reduces them in one
            message.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return model
    apart = [] if router_in_backward else [p for p in router_parameters(model) if p.requires_grad]
    for parameter in apart:
        parameter.requires_grad_(False)
    device = next(model.parameters()).device
    wrapped = DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    for parameter in apart:
        parameter.requires_grad_(True)
    wrapped.register_comm_hook(_of_model.setdefault(model, Reductions()), _sum_bucket)
    return wrapped
