"""What a data-parallel step costs with any number of workers: compute, and all-reduces over a ring.

    step(W)       = compute + reduction(W)
    reduction(W)  = sum over messages of  2 (W - 1) / W * bytes / bandwidth  +  2 (W - 1) * latency

A ring all-reduce is a reduce-scatter and an all-gather, each of W - 1 rounds in which every worker sends bytes / W to
its neighbour (Patarasuk and Yuan, 2009). Nothing here is measured; what goes in is.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Network:
    """A link between neighbours in the ring: bytes a second each way, and seconds before the first byte arrives."""

    bandwidth: float
    latency: float

    @property
    def gigabits(self) -> float:
        """The bandwidth in Gbit/s."""
        return self.bandwidth * 8 / 1e9


@dataclass(frozen=True)
class StepCost:
    """What a step of one worker consists of.

    Attributes:
        compute: seconds of a step without any reduction.
        backward: those of them that are the backward pass.
        in_backward: bytes of the messages that leave while the backward pass runs.
        apart: bytes of those that leave before or after it, which nothing hides.
    """

    compute: float
    backward: float
    in_backward: tuple[int, ...]
    apart: tuple[int, ...]


def all_reduce_seconds(size: float, workers: int, network: Network) -> float:
    """Of `size` bytes over a ring; 0 for one worker."""
    return 2 * (workers - 1) * (size / workers / network.bandwidth + network.latency)


def step_seconds(cost: StepCost, workers: int, network: Network, *, overlap: bool) -> float:
    """A step's time. With `overlap`, the messages of the backward pass cost only what is longer than that pass: no
    implementation does better, as the last gradients are ready when it ends."""
    hidden = cost.backward if overlap else 0.0
    reduction = sum(all_reduce_seconds(size, workers, network) for size in cost.in_backward)
    apart = sum(all_reduce_seconds(size, workers, network) for size in cost.apart)
    return cost.compute + max(0.0, reduction - hidden) + apart


def efficiency(cost: StepCost, workers: int, network: Network, *, overlap: bool) -> float:
    """Of a step with the same tokens on every worker: one worker's time over that with `workers`."""
    return step_seconds(cost, 1, network, overlap=overlap) / step_seconds(cost, workers, network, overlap=overlap)


def fit_network(sizes: Sequence[int], seconds: Sequence[float], workers: int) -> Network:
    """The network in which all-reduces of these sizes take these times.

    Least squares of the relative error, so that small messages count as much as large ones; the latency is never
    negative.

    Raises:
        ValueError: the times do not rise with the size, so there is no bandwidth to be told.
    """
    rounds = 2 * (workers - 1)
    pairs = [(size * rounds / workers, time) for size, time in zip(sizes, seconds, strict=True)]
    # time / time ~ a / time + b * size / time: two normal equations in a and b.
    aa = sum(1 / t**2 for _, t in pairs)
    ab = sum(s / t**2 for s, t in pairs)
    bb = sum((s / t) ** 2 for s, t in pairs)
    a_one = sum(1 / t for _, t in pairs)
    b_one = sum(s / t for s, t in pairs)
    determinant = aa * bb - ab**2
    if determinant <= 0:
        raise ValueError(f"all-reduces of {list(sizes)} bytes tell no bandwidth; expected several sizes")
    start, slope = (bb * a_one - ab * b_one) / determinant, (aa * b_one - ab * a_one) / determinant
    if start < 0:
        start, slope = 0.0, b_one / bb
    if slope <= 0:
        raise ValueError(f"all-reduces of {list(sizes)} bytes took {list(seconds)} seconds, no longer for more bytes")
    return Network(1 / slope, start / rounds)
