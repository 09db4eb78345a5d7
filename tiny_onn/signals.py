"""The signals of the second stream: contribution, relevance and cost of each expert, and Goodness from them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.distributed import sum_over_workers
from tiny_onn.goodness import goodness
from tiny_onn.learning_cost import LayerCost, TokenCost, WeightState

NO_SIGNAL = (
    1e-5  # nats per unit of computation_output; float32 rounds such a gradient, a difference of terms near 1, at 1e-7
)


@dataclass(frozen=True)
class Signals:
    """Goodness of a call, and what it is made of: [n, o] per token, or [o] where the whole layer shares one."""

    goodness: Float[Tensor, "*n o"]
    contribution: Float[Tensor, "*n o"]
    relevance: Float[Tensor, "*n o"]
    cost: Float[Tensor, "*n o"]


def _signals(contribution: Tensor, relevance: Tensor, cost: Tensor) -> Signals:
    if cost.shape != relevance.shape:  # it would be broadcast, and pass for a cost that all experts or tokens share
        raise ValueError(f"the learning cost has shape {list(cost.shape)}; expected {list(relevance.shape)}")
    return Signals(goodness(contribution, relevance, cost), contribution, relevance, cost)


@torch.no_grad()
def token_signals(
    cost: TokenCost,
    x: Float[Tensor, "n i"],
    masked_output: Float[Tensor, "n o"],
    grad_output: Float[Tensor, "n o"],
    weight: WeightState,
) -> Signals:
    """Every token's own signals: |masked_output|, |grad_output| and the token cost. Needs no other worker.

    `grad_output` is that of the loss *summed* over its labels, so that its size does not depend on how many there are.
    A token whose largest gradient is below NO_SIGNAL has a Goodness of 0. There are such tokens: the first of a
    sequence, whose query can choose among one key only, has a gradient of exactly 0 but for rounding. Goodness, being
    free of scale, would make a full-sized target of that noise.
    """
    size = grad_output.abs().amax(dim=-1, keepdim=True)
    grad_output = grad_output * (size > NO_SIGNAL)
    return _signals(masked_output.abs(), grad_output.abs(), cost.measure(grad_output, x, weight))


@torch.no_grad()
def layer_signals(
    squares: dict[str, tuple[Tensor, Tensor]], gradients: dict[str, Tensor], cost: LayerCost
) -> dict[str, Signals]:
    """One set of signals for each module, from the valid tokens of all its calls on all workers.

    Args:
        squares: by module, masked_output^2 and grad_output^2 summed over this worker's valid tokens, [o] each. One
            reduction adds up the workers'; contribution and relevance are the roots.
        gradients: by module, W.grad [o, i], which DDP has already summed; the cost is measured on it.
    """
    parts = [part for pair in squares.values() for part in pair]
    reduced = iter(sum_over_workers(torch.cat(parts)).split([len(part) for part in parts]))
    return {
        name: _signals(next(reduced).sqrt(), next(reduced).sqrt(), cost.measure(gradients[name])) for name in squares
    }
