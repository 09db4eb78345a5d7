"""Is routing sparse, and is it selective? Sums over tokens that add up across calls and across workers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.goodness import JUDGED_GOOD
from tiny_onn.histogram import COST_BINS, GOODNESS_BINS, log_histogram
from tiny_onn.mas import mas

RANKED_TOKENS = 32  # enough for a mean of rank correlations; of a call that is longer, at most twice as many
_SCALARS = 12


@dataclass
class Health:
    """What routing did, as sums.

    `scalars` [12]: tokens, active (token, expert) pairs, good pairs, tokens judged, tokens routed nowhere, sum of the
    routed tokens' entropies, then for contribution, relevance and cost the sum and the count of rank correlations.
    `costs` [c] and `goodness` [g]: (token, expert) pairs by their learning cost, in COST_BINS, and by their Goodness as
    a part of the best expert's, mas(Goodness), in GOODNESS_BINS; zeros without Goodness. `routing` [o]: the routed
    tokens' routing distributions, summed. `active` and `good` [o]: tokens for which each expert is active, judged good.
    All in float64, detached, so that workers can add theirs.
    """

    scalars: Float[Tensor, " 12"]
    costs: Float[Tensor, " c"]
    goodness: Float[Tensor, " g"]
    routing: Float[Tensor, " o"]
    active: Float[Tensor, " o"]
    good: Float[Tensor, " o"]

    def __add__(self, other: "Health") -> "Health":
        return Health(
            self.scalars + other.scalars,
            self.costs + other.costs,
            self.goodness + other.goodness,
            self.routing + other.routing,
            self.active + other.active,
            self.good + other.good,
        )

    def flat(self) -> Float[Tensor, " k"]:
        """All sums in one vector, for one reduction."""
        return torch.cat([self.scalars, self.costs, self.goodness, self.routing, self.active, self.good])

    @staticmethod
    def from_flat(flat: Float[Tensor, " k"]) -> "Health":
        """The inverse of `flat`."""
        fixed = [_SCALARS, COST_BINS.size, GOODNESS_BINS.size]
        scalars, costs, goodness, experts = flat.split([*fixed, len(flat) - sum(fixed)])
        return Health(scalars, costs, goodness, *experts.chunk(3))

    def measures(self) -> dict[str, float]:
        """The named measures; NaN where nothing was counted (Goodness, in an arm without it).

        activation_rate, fraction_good: of (token, expert) pairs. routed_nowhere: of tokens. never_active: of experts,
        those that no token uses. effective_experts: exp(entropy of the mean routing distribution). mutual_information:
        I(expert; token) in nats, the entropy of the mean routing distribution less the mean of the tokens' entropies.
        rank_correlation_*: Spearman's coefficient over the active experts, mean over tokens; over all experts where
        all tokens share one Goodness.
        """
        tokens, active, good, judged, nowhere, entropies, *correlations = self.scalars.tolist()
        experts, routed = len(self.routing), tokens - nowhere
        mean_entropy = entropies / routed if routed else float("nan")
        entropy = float(_entropy(self.routing / routed)) if routed else float("nan")
        contribution, relevance, cost = (
            total / count if count else float("nan")
            for total, count in zip(correlations[::2], correlations[1::2], strict=True)
        )
        return {
            "activation_rate": active / (tokens * experts) if tokens else float("nan"),
            "fraction_good": good / (judged * experts) if judged else float("nan"),
            "routed_nowhere": nowhere / tokens if tokens else float("nan"),
            "never_active": float((self.active == 0).double().mean()) if tokens else float("nan"),
            "effective_experts": float(torch.tensor(entropy).exp()),
            "mutual_information": entropy - mean_entropy,
            "rank_correlation_contribution": contribution,
            "rank_correlation_relevance": relevance,
            "rank_correlation_cost": cost,
        }


@torch.no_grad()
def routing_health(
    routing_weights: Float[Tensor, "n o"],
    goodness: Float[Tensor, "*n o"] | None = None,
    components: tuple[Tensor, Tensor, Tensor] | None = None,
) -> Health:
    """The health of one call, over its n valid tokens.

    Args:
        routing_weights: mas(routing_logits).
        goodness: [n, o], or [o] where all tokens share one; None without Goodness.
        components: contribution, relevance and cost, each of goodness's shape.
    """
    weights = routing_weights.double()
    active = weights > 0
    total = weights.sum(dim=-1)
    routed = (total > 0).double()
    share = routed / total.where(total > 0, 1)  # of a token's distribution w / total: 1 / total, or 0 if routed nowhere
    # w log w, which is 0 where w is. Never the logarithm of 0, which takes several times as long.
    products = routing_weights.clamp(min=torch.finfo(routing_weights.dtype).tiny).log_().mul_(routing_weights)
    entropies = total.where(total > 0, 1).log() - share * products.sum(dim=-1, dtype=torch.float64)
    scalars = weights.new_zeros(_SCALARS)
    scalars[0] = len(weights)
    scalars[1] = active.sum()
    scalars[4] = len(weights) - routed.sum()
    scalars[5] = entropies.sum()
    good = weights.new_zeros(weights.shape[-1])
    costs, shares = weights.new_zeros(COST_BINS.size), weights.new_zeros(GOODNESS_BINS.size)
    if goodness is not None:
        best = mas(goodness)
        good = (best > JUDGED_GOOD).expand_as(weights).sum(dim=0).double()
        scalars[2] = good.sum()
        scalars[3] = len(weights)
        tokens = len(weights) if goodness.ndim == 1 else 1  # a value that all tokens share counts once for each
        shares = log_histogram(best, GOODNESS_BINS) * tokens
        if components is not None:
            scalars[6:] = _rank_correlations(goodness, components, active)
            costs = log_histogram(components[2], COST_BINS) * tokens
    return Health(scalars, costs, shares, share @ weights, active.sum(dim=0).double(), good)


def spearman(a: Float[Tensor, "n o"], b: Float[Tensor, "n o"], mask: Float[Tensor, "n o"]) -> Float[Tensor, " n"]:
    """Spearman's rank correlation of each row of a and b over the entries in `mask`, ties sharing their mean rank.

    NaN where fewer than three entries are in the mask, or where one of the two is constant.
    """
    return _correlation(_centred_ranks(a, mask), _centred_ranks(b, mask), mask)


def _rank_correlations(goodness: Tensor, components: tuple[Tensor, Tensor, Tensor], active: Tensor) -> Tensor:
    """Sum and count of Goodness's rank correlations with each component: over the active experts of some tokens, or,
    where all tokens share one Goodness, over all experts, once."""
    shared = goodness.ndim == 1
    step = max(1, len(active) // RANKED_TOKENS)
    signals = torch.stack([signal[None] if shared else signal[::step] for signal in (goodness, *components)])
    mask = torch.ones_like(signals[0]) if shared else active[::step].to(signals.dtype)
    good, *parts = _centred_ranks(signals, mask).unbind()
    coefficients = torch.stack([_correlation(good, part, mask) for part in parts]).double()
    return torch.stack([coefficients.nansum(dim=1), (~coefficients.isnan()).sum(dim=1)], dim=1).flatten()


def _correlation(ranks_a: Tensor, ranks_b: Tensor, mask: Tensor) -> Tensor:
    norms = torch.linalg.vector_norm(ranks_a, dim=-1) * torch.linalg.vector_norm(ranks_b, dim=-1)
    coefficient = (ranks_a * ranks_b).sum(-1) / norms
    return torch.where((mask.sum(-1) >= 3) & (norms > 0), coefficient, torch.nan)


def _centred_ranks(v: Tensor, mask: Tensor) -> Tensor:
    v = v.contiguous()
    ordered = torch.where(mask > 0, v, torch.inf).sort(dim=-1).values
    below = torch.searchsorted(ordered, v)
    up_to = torch.searchsorted(ordered, v, right=True)  # those that tie included
    ranks = (below + up_to).to(mask.dtype) / 2
    return (ranks - (ranks * mask).sum(-1, keepdim=True) / mask.sum(-1, keepdim=True)) * mask


def _entropy(distribution: Float[Tensor, "*b o"]) -> Float[Tensor, " *b"]:
    return -torch.special.xlogy(distribution, distribution).sum(dim=-1)
