"""The meta-loss: how far routing is from what Goodness would have it be."""

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.mas import EPS, mas, normalise


def jensen_shannon(p: Float[Tensor, "*b o"], q: Float[Tensor, "*b o"]) -> Float[Tensor, " *b"]:
    """JSD(p || q) in nats over the last axis, between 0 and log 2 for distributions.

    EPS inside the logarithms keeps value and gradient finite where a probability is zero.
    """
    middle = torch.log((p + q) / 2 + EPS)
    divergence = p * (torch.log(p + EPS) - middle) + q * (torch.log(q + EPS) - middle)
    return divergence.sum(dim=-1) / 2


def meta_loss(routing_logits: Float[Tensor, "n o"], goodness: Float[Tensor, "*n o"]) -> Float[Tensor, " n"]:
    """JSD(normalise(mas(routing_logits)) || normalise(mas(goodness))) of every token, in nats.

    `goodness` is a constant: [n, o], or [o] shared by all tokens. The gradient flows into `routing_logits` alone.
    """
    target = normalise(mas(goodness.detach()))
    return jensen_shannon(normalise(mas(routing_logits)), target.expand_as(routing_logits))
