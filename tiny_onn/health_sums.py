"""What routing health is made of: sums over a call's tokens, and the signals of those few whose experts are ranked.

Elementwise but for sums over tokens and over experts, and so written as pure functions that `torch.compile` can turn
into a few passes over memory.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int32
from torch import Tensor

from tiny_onn.goodness import JUDGED_GOOD
from tiny_onn.histogram import COST_BINS, GOODNESS_BINS, log_bins
from tiny_onn.mas import mas

RANKED_TOKENS = 32  # enough for a mean of rank correlations; of a call that is longer, at most twice as many
# A pair's bins in one number of 14 bits, so that one pass counts both: that of the cost in 7, that of Goodness in 6,
# and whether the expert's number is odd: a counter that neighbours share is slow, and most pairs are in one bin.
_COSTS, _GOODNESS, _PARITIES = 128, 64, 2
_NOT_COUNTED = _COSTS - 1  # of a token's pairs that does not count


class CallSums(NamedTuple):
    """What a call adds to its module's Health; detached. The last three are None without Goodness.

    `scalars` [6] as the first of Health's. `experts` [3, o]: Health's `routing`, `active` and `good`. Both in float64.
    `bins` [n, o], or [o] where all tokens share one Goodness: the bin of each pair's cost, of COST_BINS, and of its
    Goodness, of GOODNESS_BINS; see `counted`. `ranked` [4, r, o]: Goodness, contribution, relevance and cost of some
    tokens, and `mask` [r, o] those of their experts that are ranked.
    """

    scalars: Float[Tensor, " 6"]
    experts: Float[Tensor, "3 o"]
    bins: Int32[Tensor, "*n o"] | None
    ranked: Float[Tensor, "4 r o"] | None
    mask: Float[Tensor, "r o"] | None


def ranked_places(valid: Bool[Tensor, " *b"] | None, tokens: int, device: torch.device) -> Int[Tensor, " r"]:
    """Which of a call's tokens, in a flat row, have their experts ranked: of those that count, evenly spread."""
    if valid is None:
        return torch.arange(0, tokens, max(1, tokens // RANKED_TOKENS), device=device)
    places = valid.reshape(-1).nonzero().squeeze(1)
    return places[:: max(1, len(places) // RANKED_TOKENS)]


@torch.no_grad()
def call_sums(
    weights: Float[Tensor, "n o"],
    counts: Float[Tensor, " n"],
    ranked: Int[Tensor, " r"],
    signals: tuple[Tensor, Tensor, Tensor, Tensor] | None,
) -> CallSums:
    """The sums of a call over the tokens that count.

    Args:
        weights: routing weights.
        counts: 1 for a token that counts, 0 for padding.
        ranked: see `ranked_places`.
        signals: Goodness, contribution, relevance and cost: [n, o], or [o] where all tokens share one.
    """
    once = counts[:, None]
    wide, tokens = weights.double(), counts.double()
    total = wide.sum(dim=-1)
    safe = total.where(total > 0, 1)
    routed = (total > 0).double() * tokens
    share = routed / safe  # of a token's distribution w / total: 1 / total, or 0 if routed nowhere
    # w log w, which is 0 where w is. Never the logarithm of 0, which takes several times as long.
    products = weights.clamp(min=torch.finfo(weights.dtype).tiny).log() * weights
    entropies = tokens * safe.log() - share * products.sum(dim=-1, dtype=torch.float64)
    routing = (share[:, None] * wide).sum(dim=0)
    active = ((weights > 0).to(weights.dtype) * once).sum(dim=0).double()
    number = tokens.sum()
    if signals is None:
        good, judged = torch.zeros_like(active), torch.zeros_like(number)
        bins = of_ranked = mask = None
    else:
        goodness, _, _, cost = signals
        best, judged = mas(goodness), number
        is_good = (best > JUDGED_GOOD).to(weights.dtype)
        # In numbers for which Inductor has vector instructions: neither `%` nor int16.
        half = torch.arange(weights.shape[-1], device=weights.device, dtype=torch.float32) / _PARITIES
        parity = (half - half.floor()) * _PARITIES
        bins = log_bins(cost, COST_BINS) + log_bins(best, GOODNESS_BINS) * _COSTS + parity * (_COSTS * _GOODNESS)
        if goodness.ndim == 1:
            good = is_good.double() * number
            of_ranked = torch.stack(signals)[:, None]
            mask = torch.ones_like(of_ranked[0])
        else:
            good = (is_good * once).sum(dim=0).double()
            bins = torch.where(once > 0, bins, _NOT_COUNTED)
            of_ranked = torch.stack([each[ranked] for each in signals])
            mask = (weights[ranked] > 0).to(weights.dtype)
        bins = bins.to(torch.int32)
    scalars = torch.stack([number, active.sum(), good.sum(), judged, number - routed.sum(), entropies.sum()])
    return CallSums(scalars, torch.stack([routing, active, good]), bins, of_ranked, mask)


def counted(bins: Int32[Tensor, "*n o"]) -> Int[Tensor, " k"]:
    """How many pairs have each number of `CallSums.bins`."""
    return torch.bincount(bins.flatten(), minlength=_PARITIES * _GOODNESS * _COSTS)


def histograms(
    numbers: list[Int[Tensor, " k"]],
) -> list[tuple[Float[Tensor, " c"], Float[Tensor, " g"]]]:
    """How many pairs lie in each of COST_BINS, and in each of GOODNESS_BINS, of what `counted` found for some calls."""
    if not numbers:
        return []
    table = torch.stack(numbers).view(-1, _PARITIES, _GOODNESS, _COSTS).sum(dim=1)
    table = table[:, : GOODNESS_BINS.size, : COST_BINS.size]
    return list(zip(table.sum(dim=1).double(), table.sum(dim=2).double(), strict=True))
