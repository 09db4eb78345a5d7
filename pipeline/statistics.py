"""Means and paired differences over seeds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

ENOUGH_SEEDS = 5  # below this a bootstrap interval says little more than the differences themselves
_RESAMPLES = 9999
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


def paired_difference(values: Mapping[int, float], control: Mapping[int, float]) -> Difference | None:
    """values - control for each seed that both have, with a percentile bootstrap of the mean (scipy, fixed generator).

    None when no seed is in both. A seed whose value is not finite in either makes the mean NaN, without an interval.
    """
    differences = {seed: values[seed] - control[seed] for seed in sorted(values.keys() & control.keys())}
    if not differences:
        return None
    numbers = np.array(list(differences.values()))
    if not np.isfinite(numbers).all():
        return Difference(differences, math.nan, None)
    interval = None
    if len(numbers) > 1:
        found = stats.bootstrap(
            (numbers,),
            np.mean,
            confidence_level=_LEVEL,
            n_resamples=_RESAMPLES,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
        interval = (float(found.low), float(found.high))
    return Difference(differences, float(numbers.mean()), interval)
