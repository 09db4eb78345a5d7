"""Means and paired differences over seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

ENOUGH_SEEDS = 5  # below this a bootstrap interval says little more than the differences themselves
_RESAMPLES = 9999
MOST_EXACT = 16  # seeds, of which all 2^16 ways to draw the signs are tried; of more, some are drawn at random
_LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """Paired differences, one a seed, their mean, and a 95 % interval (None for fewer than two seeds)."""

    values: dict[int, float]
    mean: float
    interval: tuple[float, float] | None

    @property
    def seeds(self) -> int:
        """The number of pairs."""
        return len(self.values)

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval is there and lies on one side of zero."""
        return self.interval is not None and (self.interval[0] > 0 or self.interval[1] < 0)

    @property
    def agree(self) -> bool:
        """Whether every seed's difference has the same sign, and none is zero."""
        return all(v > 0 for v in self.values.values()) or all(v < 0 for v in self.values.values())


def mean(values: Mapping[Any, float]) -> float:
    """The mean; NaN when there are no values or any is not finite: a diverged seed must not drop out unseen."""
    numbers = list(values.values())
    return sum(numbers) / len(numbers) if numbers and all(map(math.isfinite, numbers)) else math.nan


def paired_difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference | None:
    """values - reference for each seed that both have, as `difference`."""
    return difference({seed: values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())})


def difference(differences: Mapping[int, float]) -> Difference | None:
    """What is there for each seed, with a percentile bootstrap of the mean (scipy, fixed generator).

    None when there is no seed. A seed whose value is not finite makes the mean NaN, without an interval.
    """
    differences = dict(differences)
    if not differences:
        return None
    numbers = np.array(list(differences.values()))
    if not np.isfinite(numbers).all():
        return Difference(differences, math.nan, None)
    interval = None
    if len(numbers) > 1:
        resampled = stats.bootstrap(
            (numbers,),
            np.mean,
            confidence_level=_LEVEL,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        interval = (float(resampled.low), float(resampled.high))
    return Difference(differences, float(numbers.mean()), interval)


def sign_flip_p(differences: Mapping[Any, float]) -> float:
    """The two-sided p-value of the paired sign-flip (permutation) test of the mean difference, by scipy.

    Under the null hypothesis each seed's difference could as well have had the other sign. With n seeds there are 2^n
    ways to draw the signs, so p is never below `least_p(n)`. Exact for up to MOST_EXACT seeds. NaN for fewer than two
    seeds, or where one is not finite.
    """
    numbers = np.array(list(differences.values()))
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        return math.nan
    if not numbers.any():
        return 1.0
    tried = max(_RESAMPLES, 2 ** len(numbers)) if len(numbers) <= MOST_EXACT else _RESAMPLES
    test = stats.permutation_test(
        (numbers,), np.mean, permutation_type="samples", n_resamples=tried, rng=np.random.default_rng(0)
    )
    return float(test.pvalue)


def least_p(seeds: int) -> float:
    """The smallest p-value that the exact sign-flip test can give: both of the draws in which all signs agree."""
    return min(1.0, 2.0 ** (1 - seeds))


def chance_of(level: float, seeds: int) -> float:
    """How likely the exact sign-flip test gives a p-value of at most `level` where there is no difference: no more than
    `level` itself, for with few seeds there are few p-values, all multiples of `least_p`."""
    return math.floor(level / least_p(seeds)) * least_p(seeds)


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: with them, comparing each with a level bounds the chance that any
    true null hypothesis is rejected. NaN stays NaN and does not count."""
    known = sorted((p, place) for place, p in enumerate(p_values) if not math.isnan(p))
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for rank, (p, place) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = highest
    return adjusted


def seeds_needed(comparisons: int, level: float = 0.05) -> int:
    """From how many seeds on the sign-flip test, corrected by Holm for so many comparisons, can get below `level`."""
    return max(2, math.ceil(1 + math.log2(max(1, comparisons) / level)))


def signed(value: float, digits: int) -> str:
    """A number with its sign; what rounds to zero is +0, never -0."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"
