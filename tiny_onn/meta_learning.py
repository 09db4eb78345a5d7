"""From Goodness to the gradients of P and G, in closed form: what both engines do for every call.

All of it is elementwise over [tokens, experts] with sums over experts, so it is written as two pure functions that
`torch.compile` can turn into a few passes over memory.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.learning_cost import TokenCost, WeightState
from tiny_onn.meta_loss import meta_loss_and_gradient
from tiny_onn.routing import Routing
from tiny_onn.signals import token_signals


class MetaGradient(NamedTuple):
    """The meta-loss of some tokens, summed, and its gradient with respect to the routing's two products."""

    loss: Float[Tensor, ""]
    match: Float[Tensor, "n o"]
    gate: Float[Tensor, "n o"]


class Moment(NamedTuple):
    """One call's tensors as the backward pass goes by: x, what the layer returned, and dL/d(computation_output)."""

    x: Float[Tensor, "n i"]
    masked_output: Float[Tensor, "n o"]
    grad_output: Float[Tensor, "n o"]


@torch.no_grad()
def towards(goodness: Float[Tensor, "*n o"], routing: Routing, counts: Float[Tensor, " n"]) -> MetaGradient:
    """The meta-loss between the routing and a Goodness, [n, o] or [o] shared by all tokens; summed over tokens."""
    loss, logits_gradient = meta_loss_and_gradient(routing.logits(), goodness, counts)
    return MetaGradient(loss, *routing.backward(logits_gradient))


@torch.no_grad()
def towards_token_goodness(
    cost: TokenCost, moment: Moment, routing: Routing, weight: WeightState, counts: Float[Tensor, " n"], labels: Tensor
) -> MetaGradient:
    """`towards` every token's own Goodness. `labels` makes of grad_output that of the summed loss."""
    signals = token_signals(cost, moment.x, moment.masked_output, moment.grad_output * labels, weight)
    return towards(signals.goodness, routing, counts)
