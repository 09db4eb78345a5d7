"""The meta-loss: how far routing is from what Goodness would have it be."""

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.mas import EPS, mas, mas_backward, normalise


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


@torch.no_grad()
def meta_loss_and_gradient(
    routing_logits: Float[Tensor, "n o"], goodness: Float[Tensor, "*n o"], counts: Float[Tensor, " n"]
) -> tuple[Float[Tensor, ""], Float[Tensor, "n o"]]:
    """sum_n counts_n `meta_loss`_n, and its gradient with respect to `routing_logits`, in closed form.

    `counts` is 1 for a token that counts and 0 for padding. With y = mas(l), p = y / S, S = sum y + EPS and
    m = (p + q) / 2:

        dJSD/dp_i = (log(p_i + EPS) + p_i / (p_i + EPS) - log(m_i + EPS) - m_i / (m_i + EPS)) / 2
        dJSD/dy_i = (dJSD/dp_i - sum_j p_j dJSD/dp_j) / S

    and `mas_backward` from there. No graph is built and nothing is kept.
    """
    y = mas(routing_logits)
    total = y.sum(dim=-1, keepdim=True) + EPS
    p, q = y / total, normalise(mas(goodness))
    p_safe, m_safe = p + EPS, (p + q) / 2 + EPS
    gradient = (p_safe / m_safe).log()
    divergence = (p * gradient).sum(dim=-1) + (q * ((q + EPS) / m_safe).log()).sum(dim=-1)
    loss = (divergence * counts).sum() / 2
    # x / (x + EPS) = 1 - EPS / (x + EPS), and the ones cancel.
    gradient = (gradient - EPS / p_safe + EPS / m_safe) * (counts[:, None] / 2)
    gradient = (gradient - (p * gradient).sum(dim=-1, keepdim=True)) / total
    return loss, mas_backward(gradient, routing_logits, y)
