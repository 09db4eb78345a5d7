"""Objectives: how far routing is from what Goodness would have it be, and the gradient of that.

An objective compares a token's routing logits with its target scores, [n, o] or [o] where all tokens share one:
mas(Goodness)^sharpness, or, where it is signed, Goodness as it is. The scores are constants: the gradient flows into
the logits alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.mas import EPS, mas, mas_backward, normalise

ValueAndGradient = tuple[Float[Tensor, ""], Float[Tensor, "n o"]]


@dataclass(frozen=True)
class Objective:
    """One way to compare.

    Attributes:
        value: `value(logits [n, O], scores [n, O] or [O]) -> [n]` in nats, differentiable in the logits.
        signed: whether its scores are Goodness itself, which may be negative and has a unit.
        weighted: `weighted(logits, scores, token_weights [n]) -> (sum_n token_weights_n value_n, its gradient)`, in
            closed form; None: autograd differentiates `value`.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    weighted: Callable[[Tensor, Tensor, Tensor], ValueAndGradient] | None = None
    signed: bool = False

    @torch.no_grad()
    def value_and_gradient(
        self, logits: Float[Tensor, "n o"], scores: Float[Tensor, "*n o"], token_weights: Float[Tensor, " n"]
    ) -> ValueAndGradient:
        """sum_n token_weights_n value_n, and its gradient with respect to the logits. A weight of 0 is padding."""
        if self.weighted is not None:
            return self.weighted(logits, scores, token_weights)
        with torch.enable_grad():
            free = logits.detach().requires_grad_(True)
            total = (self.value(free, scores.detach()) * token_weights).sum()
            (gradient,) = torch.autograd.grad(total, free)
        return total.detach(), gradient


def jensen_shannon(p: Float[Tensor, "*b o"], q: Float[Tensor, "*b o"]) -> Float[Tensor, " *b"]:
    """JSD(p || q) in nats over the last axis, between 0 and log 2 for distributions.

    EPS inside the logarithms keeps value and gradient finite where a probability is zero.
    """
    middle = torch.log((p + q) / 2 + EPS)
    divergence = p * (torch.log(p + EPS) - middle) + q * (torch.log(q + EPS) - middle)
    return divergence.sum(dim=-1) / 2


def _jsd(logits: Tensor, scores: Tensor) -> Tensor:
    return jensen_shannon(normalise(mas(logits)), normalise(scores).expand_as(logits))


def _jsd_weighted(logits: Tensor, scores: Tensor, token_weights: Tensor) -> ValueAndGradient:
    # With y = mas(l), p = y / S, S = sum y + EPS and m = (p + q) / 2:
    #     dJSD/dp_i = (log(p_i + EPS) + p_i / (p_i + EPS) - log(m_i + EPS) - m_i / (m_i + EPS)) / 2
    #     dJSD/dy_i = (dJSD/dp_i - sum_j p_j dJSD/dp_j) / S
    # and `mas_backward` from there. No graph is built and nothing is kept.
    y = mas(logits)
    total = y.sum(dim=-1, keepdim=True) + EPS
    p, q = y / total, normalise(scores)
    p_safe, m_safe = p + EPS, (p + q) / 2 + EPS
    gradient = (p_safe / m_safe).log()
    divergence = (p * gradient).sum(dim=-1) + (q * ((q + EPS) / m_safe).log()).sum(dim=-1)
    loss = (divergence * token_weights).sum() / 2
    # x / (x + EPS) = 1 - EPS / (x + EPS), and the ones cancel.
    gradient = (gradient - EPS / p_safe + EPS / m_safe) * (token_weights[:, None] / 2)
    gradient = (gradient - (p * gradient).sum(dim=-1, keepdim=True)) / total
    return loss, mas_backward(gradient, logits, y)


def _cross_entropy(logits: Tensor, scores: Tensor) -> Tensor:
    return -(normalise(scores) * torch.log_softmax(logits, dim=-1)).sum(dim=-1)


def _cross_entropy_weighted(logits: Tensor, scores: Tensor, token_weights: Tensor) -> ValueAndGradient:
    q, log_p = normalise(scores), torch.log_softmax(logits, dim=-1)
    loss = -((q * log_p).sum(dim=-1) * token_weights).sum()
    gradient = (log_p.exp() * q.sum(dim=-1, keepdim=True) - q) * token_weights[:, None]
    return loss, gradient


def _entropy(z: Tensor) -> Tensor:
    log_p = torch.log_softmax(z, dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)


def _entropy_of_sum(logits: Tensor, scores: Tensor) -> Tensor:
    return _entropy(logits + scores)


def _entropy_of_difference(logits: Tensor, scores: Tensor) -> Tensor:
    return _entropy(logits - scores)


def _entropy_weighted(z: Tensor, token_weights: Tensor) -> ValueAndGradient:
    # dH/dz_i = -p_i (log p_i + H)
    log_p = torch.log_softmax(z, dim=-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(dim=-1)
    return (entropy * token_weights).sum(), -p * (log_p + entropy[:, None]) * token_weights[:, None]


def _entropy_of_sum_weighted(logits: Tensor, scores: Tensor, token_weights: Tensor) -> ValueAndGradient:
    return _entropy_weighted(logits + scores, token_weights)


def _entropy_of_difference_weighted(logits: Tensor, scores: Tensor, token_weights: Tensor) -> ValueAndGradient:
    return _entropy_weighted(logits - scores, token_weights)


def _policy(logits: Tensor, scores: Tensor) -> Tensor:
    return -(torch.softmax(logits, dim=-1) * scores).sum(dim=-1)


def _policy_weighted(logits: Tensor, scores: Tensor, token_weights: Tensor) -> ValueAndGradient:
    p = torch.softmax(logits, dim=-1)
    expected = (p * scores).sum(dim=-1, keepdim=True)
    loss = -(expected.squeeze(-1) * token_weights).sum()
    return loss, p * (expected - scores) * token_weights[:, None]


def _straight_through(logits: Tensor, scores: Tensor) -> Tensor:
    return -(logits * (scores - scores.mean(dim=-1, keepdim=True))).sum(dim=-1)


def _straight_through_weighted(logits: Tensor, scores: Tensor, token_weights: Tensor) -> ValueAndGradient:
    gradient = (scores.mean(dim=-1, keepdim=True) - scores).expand_as(logits) * token_weights[:, None]
    return (logits * gradient).sum(), gradient


JSD = Objective(_jsd, _jsd_weighted)
"""JSD(normalise(mas(l)) || normalise(scores)): ADR-0004's meta-loss."""
CROSS_ENTROPY = Objective(_cross_entropy, _cross_entropy_weighted)
"""-sum_o normalise(scores)_o log softmax(l)_o. Its gradient, softmax(l) - target, also reaches closed experts."""
ENTROPY_OF_SUM = Objective(_entropy_of_sum, _entropy_of_sum_weighted)
"""H(softmax(l + scores)), minimised: later work of ADR-0004's authors (dmf-archive/Tiny-ONN, commit 255e6fa)."""
ENTROPY_OF_DIFFERENCE = Objective(_entropy_of_difference, _entropy_of_difference_weighted)
"""H(softmax(l - scores)), minimised: theirs, too (commit df8925a)."""
POLICY = Objective(_policy, _policy_weighted, signed=True)
"""-sum_o softmax(l)_o G_o: less the Goodness that a token expects of one expert drawn from softmax(l), so that its
gradient is the policy gradient without the noise of a draw (Williams 1992; Sutton et al. 2000)."""
STRAIGHT_THROUGH = Objective(_straight_through, _straight_through_weighted, signed=True)
"""-sum_o l_o (G_o - mean G): the gradient on a routing weight passed on to its logit as if the gate were the identity
(Bengio et al. 2013, arXiv 1308.3432), less what all experts share, which changes no token's choice."""

OBJECTIVES: dict[str, Objective] = {
    "jsd": JSD,
    "cross_entropy": CROSS_ENTROPY,
    "entropy_of_sum": ENTROPY_OF_SUM,
    "entropy_of_difference": ENTROPY_OF_DIFFERENCE,
    "policy": POLICY,
    "straight_through": STRAIGHT_THROUGH,
}
