"""Learning costs between `per_token` and `aggregated`: they part the two things that tell those arms apart.

`aggregated` differs from `per_token` in the cost *and* in that all tokens share one Goodness. In both arms here every
token has a Goodness of its own, from its own contribution and relevance; only the cost carries no token's gradient.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.learning_cost import TokenCost, WeightState, aggregated, per_token_gradients


def summed(grad_output: Float[Tensor, "n o"], x: Float[Tensor, "n i"], _: WeightState) -> Float[Tensor, "n o"]:
    """The `aggregated` cost of the call, ||sum_n grad_output[n,o] x[n,:]||_2, the same for each of its n tokens.

    The call's tokens are those of one worker and one micro-batch: with one of each, it is the cost of `W.grad`.
    """
    return aggregated(per_token_gradients(grad_output, x).sum()).expand_as(grad_output)


def free(grad_output: Float[Tensor, "n o"], _x: Float[Tensor, "n i"], _: WeightState) -> Float[Tensor, "n o"]:
    """1: learning costs nothing, and Goodness is contribution times relevance."""
    return torch.ones_like(grad_output)


SUMMED_COST = TokenCost(summed)
NO_COST = TokenCost(free)
