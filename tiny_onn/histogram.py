"""Histograms of logarithms in fixed bins, so that those of calls, steps and workers add up."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class LogBins(NamedTuple):
    """Bins of log10(value), each with its upper edge: (low, low + 1/per_decade], ... up to `high`.

    One more bin before them holds what is at most 10^low, zeros among it, and one after them what is above 10^high.
    """

    low: int
    high: int
    per_decade: int

    @property
    def size(self) -> int:
        """The number of bins, the two outer ones included."""
        return (self.high - self.low) * self.per_decade + 2

    def edges(self) -> list[float]:
        """The `size - 1` edges between the bins, as log10."""
        return [self.low + place / self.per_decade for place in range(self.size - 1)]


COST_BINS = LogBins(-12, 4, 4)
GOODNESS_BINS = LogBins(-6, 0, 8)


def log_bins(values: Float[Tensor, "*n"], bins: LogBins) -> Float[Tensor, "*n"]:
    """The place of each value's bin, from 0; in float32. What is negative or not a number counts as 0."""
    # In float32: a bin is far wider than its rounding. Never the logarithm of 0, which takes several times as long, nor
    # `nan_to_num`, for which Inductor has no vector instructions: a comparison with NaN is False, too.
    values, least = values.detach().float(), 10.0 ** (bins.low - 1)
    places = (torch.where(values > least, values, least).log10() - bins.low) * bins.per_decade
    return places.ceil().clamp(0, bins.size - 1)
