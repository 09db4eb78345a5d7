"""Whether the workers still hold the same state, told by a checksum of each tensor in one small message."""

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor

from tiny_onn.distributed import gather_over_workers
from tiny_onn.dynamics import LearningDynamics

_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_SLOTS = ("step", "exp_avg", "exp_avg_sq")  # what Adam keeps of a parameter


class ReplicasDiffer(RuntimeError):
    """The workers' states are no longer the same. Raised on all of them, naming the first difference and its ranks."""


def check_replicas(dynamics: LearningDynamics, step: int) -> None:
    """Compares step, parameters and Adam's moments over all workers, bit by bit but for the chance of a checksum.

    Every worker calls it at the same time. It costs one pass over the state and 8 bytes a tensor and worker.

    Raises:
        ReplicasDiffer: on all workers alike.
    """
    names, sums = zip(*_checksums(dynamics), strict=True)
    device = sums[0].device
    mine = torch.stack([torch.tensor(step, device=device), *(each.to(device) for each in sums)])
    ranks = gather_over_workers(mine)
    if bool((ranks == ranks[0]).all()):
        return
    place = int((ranks != ranks[0]).any(dim=0).nonzero()[0])
    column = ranks[:, place].tolist()
    if place == 0:
        raise ReplicasDiffer(f"the workers are at different steps: {dict(enumerate(column))} by rank")
    usual, count = Counter(column).most_common(1)[0]
    others = [rank for rank, value in enumerate(column) if value != usual]
    who = f"rank {', '.join(map(str, others))} differs from the rest" if 2 * count > len(column) else "ranks differ"
    raise ReplicasDiffer(f"the workers' replicas are out of step: {who} in {names[place - 1]}")


def _checksums(dynamics: LearningDynamics) -> Iterator[tuple[str, Tensor]]:
    nothing = torch.zeros((), dtype=torch.int64)
    for name, parameter in dynamics.model.named_parameters():
        yield name, _checksum(parameter)
        for optimizer in (dynamics.computation_optimizer, dynamics.router_optimizer):
            state = optimizer.state.get(parameter)
            if state is not None:
                break
        for slot in _SLOTS:
            tensor = None if state is None else state.get(slot)
            yield f"Adam's {slot} of {name}", nothing if tensor is None else _checksum(tensor)
        others = [v for slot, v in sorted((state or {}).items()) if slot not in _SLOTS and isinstance(v, Tensor)]
        if others:
            yield f"the optimizer's state of {name}", torch.stack([_checksum(each) for each in others]).sum()


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of the tensor's bits, read as integers."""
    return tensor.detach().view(_BITS[tensor.element_size()]).sum(dtype=torch.int64)
