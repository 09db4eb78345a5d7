"""The signals of the second stream: contribution, relevance and cost of each expert, and Goodness from them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.capture import CapturedCall
from tiny_onn.distributed import sum_over_workers
from tiny_onn.goodness import goodness
from tiny_onn.learning_cost import LayerCost, TokenCost

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
    return Signals(goodness(contribution, relevance, cost), contribution, relevance, cost)


@torch.no_grad()
def token_signals(
    cost: TokenCost,
    x: Float[Tensor, "n i"],
    masked_output: Float[Tensor, "n o"],
    grad_output: Float[Tensor, "n o"],
) -> Signals:
    """Every token's own signals: |masked_output|, |grad_output| and the token cost. Needs no other worker.

    `grad_output` is that of the loss *summed* over its labels, so that its size does not depend on how many there are.
    A token whose largest gradient is below NO_SIGNAL has a Goodness of 0. There are such tokens: the first of a
    sequence, whose query can choose among one key only, has a gradient of exactly 0 but for rounding. Goodness, being
    free of scale, would make a full-sized target of that noise.
    """
    size = grad_output.abs().amax(dim=-1, keepdim=True)
    grad_output = grad_output * (size > NO_SIGNAL)
    return _signals(masked_output.abs(), grad_output.abs(), cost.measure(grad_output, x))


@torch.no_grad()
def layer_signals(by_module: dict[str, list[CapturedCall]], cost: LayerCost) -> dict[str, Signals]:
    """One set of signals for each module, from the valid tokens of all its calls on all workers.

    Contribution and relevance are L2 norms over those tokens; the cost is measured on the weight gradient, which DDP
    has already summed. One reduction over the workers.
    """
    squares: list[Tensor] = []
    for calls in by_module.values():
        tokens = [call.tokens() for call in calls]
        squares += [torch.stack([part[place].square().sum(dim=0) for part in tokens]).sum(dim=0) for place in (1, 2)]
    reduced = sum_over_workers(torch.cat(squares)).split([len(part) for part in squares])
    signals = {}
    for place, (name, calls) in enumerate(by_module.items()):
        gradient = calls[0].module.mu_weight.grad
        if gradient is None:
            raise RuntimeError(f"{name!r} has no weight gradient; a cost of granularity 'layer' is measured on it")
        contribution, relevance = reduced[2 * place].sqrt(), reduced[2 * place + 1].sqrt()
        signals[name] = _signals(contribution, relevance, cost.measure(gradient))
    return signals
