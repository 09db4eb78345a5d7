"""Loss at equal density: how far a trial lies above the baselines' curve of held-out loss over density, by seed."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.reporting.baselines import is_baseline
from pipeline.reporting.results import NOT_SET, Results, Row, TrialResult

EQUAL_DENSITY = 1.1  # densities whose ratio is above this are not equal
_EDGE = 1.02  # the envelope is taken as constant so far beyond its ends: a density is no more exact than that
# Settings that change what any arm could reach. Trials that differ in one are not compared; others are an arm's own.
_BUDGET = (
    "data.",
    "data_hash",
    "workers.count",
    *("model.hidden", "model.layers", "model.heads"),
    *("training.steps", "training.batch_tokens", "training.precision"),
)
Group = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Envelope:
    """The lowest held-out loss that baselines reach with at most so many experts active.

    `points`: (density, loss) of the baselines that no sparser baseline equals, by density; `highest`: the largest
    density of any. Between two points the loss is linear in the logarithm of the density; beyond the last one, as far
    as `highest`, it is that of the last point. So it never rises with density, and no baseline lies below it.
    """

    points: tuple[tuple[float, float], ...]
    highest: float

    def at(self, density: float) -> float:
        """The envelope's loss in nats; NaN outside the baselines' densities (beyond an edge of 2 %)."""
        if not self.points[0][0] / _EDGE <= density <= self.highest * _EDGE:
            return math.nan
        below, above = self.around(density)
        if below == above:
            return below[1]
        part = math.log(density / below[0]) / math.log(above[0] / below[0])
        return below[1] + part * (above[1] - below[1])

    def around(self, density: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """The two points between which the density lies; twice the same at the ends."""
        below = [point for point in self.points if point[0] <= density] or [self.points[0]]
        above = [point for point in self.points if point[0] > density] or [self.points[-1]]
        return below[-1], above[0]


def envelope(points: Iterable[tuple[float, float]]) -> Envelope | None:
    """That of (density, loss) points; what is not finite, or of density 0, is left out. None where nothing is left."""
    known = sorted((d, loss) for d, loss in points if math.isfinite(d) and math.isfinite(loss) and d > 0)
    front: list[tuple[float, float]] = []
    for density, loss in known:
        if not front or loss < front[-1][1]:
            front.append((density, loss))
    return Envelope(tuple(front), known[-1][0]) if known else None


def group_of(trial: TrialResult, varying: Iterable[str]) -> Group:
    """The settings of a sweep that say with which other trials a trial can be compared at equal density."""
    names = [name for name in varying if name.startswith(_BUDGET)]
    return tuple((name, trial.params.get(name, NOT_SET)) for name in names)


def envelopes(results: Results) -> dict[tuple[Group, int], Envelope]:
    """The baselines' envelope for each group of comparable trials and each seed.

    All of a baseline's densities, and all values of the settings that are not part of a group (rates, for example),
    are pooled: the envelope is that of the baselines as tuned within the sweep, on the same held-out tasks.
    """
    points: dict[tuple[Group, int], list[tuple[float, float]]] = {}
    for row in results.rows:
        if is_baseline(row.arm):
            for seed, trial in row.trials.items():
                place = (group_of(trial, results.varying), seed)
                points.setdefault(place, []).append((trial.density, trial.held_out_loss))
    return {place: curve for place, each in points.items() if (curve := envelope(each)) is not None}


def excesses(results: Results) -> dict[str, float]:
    """By run id, the held-out loss less the envelope of the same seed at the trial's density, in nats.

    NaN where the trial's density is outside the baselines', or there are none; infinite where its loss is not finite.
    That of a baseline is 0 on the envelope and positive above it, never negative.
    """
    curves, by_run = envelopes(results), {}
    for row in results.rows:
        for seed, trial in row.trials.items():
            curve = curves.get((group_of(trial, results.varying), seed))
            there = curve.at(trial.density) if curve else math.nan
            by_run[trial.run_id] = trial.held_out_loss - there if math.isfinite(trial.held_out_loss) else math.inf
    return by_run


def density_of(row: Row) -> float:
    """The mean density of a row's trials; NaN where it is missing for any."""
    values = [trial.density for trial in row.trials.values()]
    return sum(values) / len(values) if values else math.nan


def equally_dense(densities: Iterable[float]) -> bool:
    """Whether no two of the densities differ by more than a tenth; False where one is not known."""
    known = list(densities)
    return all(math.isfinite(d) for d in known) and max(known) <= EQUAL_DENSITY * min(known)


def mean_envelope(curves: Mapping[int, Envelope], points: int = 200) -> tuple[list[float], list[float]]:
    """(densities, losses): the mean over seeds of their envelopes, where all seeds have one; evenly spaced in log."""
    if not curves:
        return [], []
    low = max(curve.points[0][0] for curve in curves.values())
    high = min(curve.highest for curve in curves.values())
    if low > high:
        return [], []
    grid = [low * (high / low) ** (n / (points - 1)) for n in range(points)] if high > low else [low]
    return grid, [sum(curve.at(d) for curve in curves.values()) / len(curves) for d in grid]
