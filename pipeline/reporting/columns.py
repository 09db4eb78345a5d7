"""The columns of the report: what each measures of a finished trial, and how it is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline import measures
from pipeline.reporting.frontier import excesses
from pipeline.reporting.results import Results, Row, Trial
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
    of: Callable[[Trial], float]
    scale: float = 1.0
    digits: int = 3
    best: Callable[[list[float]], float] | None = None
    of_density: bool = False
    tested: bool = True
    partial: bool = False

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
        text = signed(value * self.scale, self.digits)
        return text if sign else text.removeprefix("+")


def _activation(place: Callable[[list[int]], int]) -> Callable[[Trial], float]:
    def of(trial: Trial) -> float:
        layers = trial.layers
        return trial.last(measures.by_layer(measures.ACTIVATION_RATE, place(layers))) if layers else math.nan

    return of


def _last(metric: str) -> Callable[[Trial], float]:
    return lambda trial: trial.last(metric)


HELD_OUT_LOSS = Column("held_out_loss", "held-out loss", "nats", lambda t: t.held_out_loss, 1, 4, min, of_density=True)
DENSITY = Column("density", "active, held-out", "%", lambda t: t.density, 100, 2)
EXCESS = measures.EXCESS  # the key of the column that compares at equal density; see `pipeline.reporting.frontier`
COLUMNS = (
    HELD_OUT_LOSS,
    DENSITY,
    Column(
        "token_accuracy",
        "token accuracy",
        "%",
        _last(measures.HELD_OUT_TOKEN_ACCURACY),
        100,
        2,
        max,
        of_density=True,
    ),
    Column("evaluation_loss", "evaluation loss", "nats", _last(measures.EVALUATION_LOSS), 1, 4, min, of_density=True),
    Column(
        "evaluation_accuracy",
        "evaluation token accuracy",
        "%",
        _last(measures.EVALUATION_TOKEN_ACCURACY),
        100,
        2,
        max,
        of_density=True,
    ),
    Column("active_first", "active, first layer", "%", _activation(lambda layers: layers[0]), 100, 2),
    Column("active_middle", "active, middle layer", "%", _activation(lambda layers: layers[len(layers) // 2]), 100, 2),
    Column("active_last", "active, last layer", "%", _activation(lambda layers: layers[-1]), 100, 2),
    Column("fraction_good", "judged good", "%", lambda t: t.over_layers(measures.FRACTION_GOOD), 100, 2),
    Column("selectivity", "selectivity", "nats", lambda t: t.over_layers(measures.MUTUAL_INFORMATION), 1, 3),
    Column("task_information", "RMI", "nats", _last(measures.TASK_INFORMATION), 1, 4),
    Column("task_distance", "ITJD", "", _last(measures.TASK_DISTANCE), 1, 3),
    Column("union_of_8", "union of 8 tokens", "%", _last(measures.UNION_OF_CHUNK), 100, 2),
    Column("dead_experts", "dead experts", "%", _last(measures.DEAD_EXPERTS), 100, 2),
    Column("step_seconds", "step time", "ms", lambda t: t.step_seconds, 1000, 0, tested=False),
    Column("tokens_per_second", "tokens per second", "1/s", _last(measures.TOKENS_PER_SECOND), 1, 0, tested=False),
    Column("peak_memory", "peak memory", "MiB", _last(measures.PEAK_MEMORY_MIB), 1, 0, tested=False),
)


def columns_of(results: Results) -> tuple[Column, ...]:
    """Those that any finished trial has a value for; runs from before a measure was made lack it.

    After the density comes the excess over the baselines at this density, where any trial has one.
    """
    found = excesses(results)
    title = "excess over the baselines at this density"
    excess = Column(EXCESS, title, "nats", lambda t: found.get(t.run_id, math.nan), 1, 4, partial=True)
    trials = [trial for row in results.rows for trial in row.trials.values()]
    every = (*COLUMNS[:2], *([excess] if any(map(math.isfinite, found.values())) else []), *COLUMNS[2:])
    return tuple(column for column in every if any(not math.isnan(column.of(trial)) for trial in trials))
