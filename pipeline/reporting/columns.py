"""The columns of the report: what each measures of a finished trial, and how it is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline import measures
from pipeline.measures import Metric, Shown
from pipeline.reporting.data_facts import parse_data
from pipeline.reporting.frontier import excesses
from pipeline.reporting.results import Results, Row, TrialResult
from pipeline.reporting.statistics import mean, signed


@dataclass(frozen=True)
class Column:
    """One number of a trial.

    `scale` and `digits` are for showing it. `best` says which end is better, if any. `of_density`: what is better
    depends on how many experts are active, so that arms of unequal density are not ranked by it. `tested`: differences
    get a p-value. `partial`: a seed for which it is empty does not count in the mean.
    """

    key: str
    title: str
    unit: str
    of: Callable[[TrialResult], float]
    scale: float = 1.0
    digits: int = 3
    best: Callable[[list[float]], float] | None = None
    of_density: bool = False
    tested: bool = True
    partial: bool = False
    significant: bool = False  # `digits` are significant ones: of numbers whose size is not known

    @property
    def heading(self) -> str:
        """Title and unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def of_row(self, row: Row) -> dict[int, float]:
        """The number of each seed's trial; NaN where it was not measured, left out where the column is partial."""
        values = {seed: self.of(trial) for seed, trial in sorted(row.trials.items())}
        return {seed: v for seed, v in values.items() if not (self.partial and math.isnan(v))}

    def mean(self, row: Row) -> float:
        """The mean over the row's seeds; NaN where one is missing or not finite."""
        return mean(self.of_row(row))

    def show(self, value: float, sign: bool = False) -> str:
        """The number in the column's unit; – for NaN."""
        if not math.isfinite(value):
            return "–" if math.isnan(value) else ("∞" if value > 0 else "-∞")
        if self.significant:
            return f"{value * self.scale:{'+' if sign else ''}.{self.digits}g}"
        text = signed(value * self.scale, self.digits)
        return text if sign else text.removeprefix("+")


def _last(metric: str) -> Callable[[TrialResult], float]:
    return lambda trial: trial.last(metric)


def _of(metric: Metric, shown: Shown) -> Callable[[TrialResult], float]:
    if metric.name in _OWN:
        return _OWN[metric.name]
    if shown.place is None:
        return _last(metric.name)
    if shown.place == "mean":
        return lambda trial: trial.over_layers(metric.name)

    def of_place(trial: TrialResult) -> float:
        layers = trial.layers
        place = {"first": 0, "middle": len(layers) // 2, "last": -1}[shown.place or "first"]
        return trial.last(measures.by_layer(metric.name, layers[place])) if layers else math.nan

    return of_place


def _column(metric: Metric, shown: Shown) -> Column:
    best = {None: None, "lowest": min, "highest": max}[shown.best]
    looks = shown.scale, shown.digits, best
    return Column(shown.key, shown.title, shown.unit, _of(metric, shown), *looks, shown.of_density, shown.tested)


# What is more than a metric's last value: of older runs, or of the whole run.
_OWN: dict[str, Callable[[TrialResult], float]] = {
    measures.DENSITY: lambda trial: trial.density,
    measures.STEP_SECONDS: lambda trial: trial.step_seconds,
}
COLUMNS = tuple(_column(metric, shown) for metric in measures.METRICS for shown in metric.shown)
HELD_OUT_LOSS, DENSITY = (next(c for c in COLUMNS if c.key == key) for key in ("held_out_loss", "density"))
EXCESS = measures.EXCESS  # the key of the column that compares at equal density; see `pipeline.reporting.frontier`


def columns_of(results: Results) -> tuple[Column, ...]:
    """Those that any finished trial has a value for; runs from before a measure was made lack it.

    After the density comes the excess over the baselines at this density, where any trial has one.
    """
    excess_of = excesses(results)
    title = "excess over the baselines at this density"
    excess = Column(EXCESS, title, "nats", lambda t: excess_of.get(t.run_id, math.nan), 1, 4, partial=True)
    trials = [trial for row in results.rows for trial in row.trials.values()]
    there = any(map(math.isfinite, excess_of.values()))
    every = [each for c in COLUMNS for each in ((c, excess) if c is DENSITY and there else (c,))]
    every += [*score_columns(results), *observed_columns(results)]
    return tuple(column for column in every if any(not math.isnan(column.of(trial)) for trial in trials))


def score_columns(results: Results) -> list[Column]:
    """A column for each score of the data's own task, held-out, as the runs' data sets tell of them."""
    by_key: dict[str, Column] = {}
    for each in results.data:
        scores = parse_data(*each).get("scores")
        for facts in scores if isinstance(scores, list) else []:
            if (column := _of_facts(facts)) is not None:
                by_key.setdefault(column.key, column)
    return list(by_key.values())


def _of_facts(facts: Any) -> Column | None:
    if not isinstance(facts, dict) or not all(isinstance(facts.get(name), str) for name in ("name", "title", "unit")):
        return None
    scale, digits, best = facts.get("scale"), facts.get("digits"), facts.get("best")
    if (
        not isinstance(scale, float | int)
        or not math.isfinite(scale)
        or type(digits) is not int
        or not 0 <= digits < 16
    ):
        return None
    better = {"lowest": min, "highest": max}.get(best) if isinstance(best, str) else None
    metric = measures.of_split("held_out", facts["name"])
    return Column(facts["name"], facts["title"], facts["unit"], _last(metric), float(scale), digits, better, True)


def observed_columns(results: Results) -> list[Column]:
    """A column for each number of the user's own observer, by its metric's name.

    Their differences get no p-value: every one that is tested makes the others' corrected p-values larger.
    """
    trials = [trial for row in results.rows for trial in row.trials.values()]
    names = sorted({name for trial in trials for name in trial.metrics if name.startswith(measures.OBSERVED)})
    return [
        Column(name, name.removeprefix(measures.OBSERVED).replace("_", " "), "", _last(name), digits=4, tested=False,
               significant=True)
        for name in names
    ]  # fmt: skip
