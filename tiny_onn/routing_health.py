"""Is routing sparse, and is it selective? Sums over tokens that add up across calls and across workers."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tiny_onn.health_sums import CallSums, call_sums, counted, histograms, ranked_places
from tiny_onn.histogram import COST_BINS, GOODNESS_BINS
from tiny_onn.rank_correlation import spearman

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
            "mutual_information": max(entropy - mean_entropy, 0.0),  # below only by rounding; NaN stays
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
    counts = routing_weights.new_ones(len(routing_weights))
    signals = None if goodness is None else (goodness, *(components or (goodness,) * 3))
    gathered = HealthOfStep()
    gathered.add("", call_sums(routing_weights, counts, ranked_places(None, len(counts), counts.device), signals))
    health = gathered.by_module()[""]
    if goodness is not None and components is None:
        health.scalars[6:] = 0
        health.costs.zero_()
    return health


class HealthOfStep:
    """Routing health of a step's calls, by module: their sums as each is added, their rank correlations all at once."""

    def __init__(self) -> None:
        self._calls: list[tuple[str, CallSums]] = []
        self._counted: list[tuple[int, Tensor]] = []  # by the number of the call

    def add(self, name: str, sums: CallSums) -> None:
        """Adds a call of a module."""
        if sums.bins is not None:
            numbers = counted(sums.bins)
            if sums.bins.ndim == 1:  # what all tokens share counts once for each
                numbers = numbers * sums.scalars[0].long()
            self._counted.append((len(self._calls), numbers))
        self._calls.append((name, sums._replace(bins=None)))

    def by_module(self) -> dict[str, Health]:
        """The health of each module, over its calls so far."""
        health: dict[str, Health] = {}
        places = [place for place, _ in self._counted]
        bins = dict(zip(places, histograms([numbers for _, numbers in self._counted]), strict=True))
        correlations = _correlations_of_calls([sums for _, sums in self._calls])
        for place, ((name, sums), found) in enumerate(zip(self._calls, correlations, strict=True)):
            none = sums.scalars.new_zeros(COST_BINS.size), sums.scalars.new_zeros(GOODNESS_BINS.size)
            costs, goodness = bins.get(place, none)
            seen = Health(torch.cat([sums.scalars, found]), costs, goodness, *sums.experts.unbind())
            health[name] = health[name] + seen if name in health else seen
        return health


def _correlations_of_calls(calls: list[CallSums]) -> list[Tensor]:
    """[6] for each call: for contribution, relevance and cost, the sum and the count of Goodness's rank correlations.

    The calls that have as many experts are ranked together: to sort many rows at once is far quicker.
    """
    found: list[Tensor] = [call.scalars.new_zeros(6) for call in calls]
    groups: dict[tuple[int, torch.dtype], list[int]] = {}
    for place, call in enumerate(calls):
        if call.ranked is not None:
            groups.setdefault((call.ranked.shape[-1], call.ranked.dtype), []).append(place)
    for places in groups.values():
        signals = torch.cat([calls[place].ranked for place in places], dim=1)  # type: ignore[misc]
        mask = torch.cat([calls[place].mask for place in places])  # type: ignore[misc]
        coefficients = spearman(signals[:1], signals[1:], mask).double()
        both = torch.stack([coefficients.nan_to_num(nan=0), (~coefficients.isnan()).double()], dim=1)
        lengths = [len(calls[place].mask) for place in places]  # type: ignore[arg-type]
        for place, each in zip(places, both.split(lengths, dim=-1), strict=True):
            found[place] = each.sum(dim=-1).flatten()
    return found


def _entropy(distribution: Float[Tensor, "*b o"]) -> Float[Tensor, " *b"]:
    return -torch.special.xlogy(distribution, distribution).sum(dim=-1)
