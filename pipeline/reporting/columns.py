"""The columns of the report: what each measures of a finished trial, and how it is written."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pipeline import measures
from pipeline.reporting.results import Results, Row, Trial


@dataclass(frozen=True)
class Column:
    """One number of a trial. `scale` and `digits` are for showing it; `best` says which end is better, if any."""

    key: str
    title: str
    unit: str
    of: Callable[[Trial], float]
    scale: float = 1.0
    digits: int = 3
    best: Callable[[list[float]], float] | None = None

    def of_row(self, row: Row) -> dict[int, float]:
        """The number of each seed's trial; NaN where it was not measured."""
        return {seed: self.of(trial) for seed, trial in sorted(row.trials.items())}

    def show(self, value: float, sign: bool = False) -> str:
        """The number in the column's unit; – for NaN."""
        if not math.isfinite(value):
            return "–" if math.isnan(value) else ("∞" if value > 0 else "-∞")
        return f"{value * self.scale:{'+' if sign else ''}.{self.digits}f}"


def _activation(place: Callable[[list[int]], int]) -> Callable[[Trial], float]:
    def of(trial: Trial) -> float:
        layers = trial.layers
        return trial.last(measures.by_layer(measures.ACTIVATION_RATE, place(layers))) if layers else math.nan

    return of


COLUMNS = (
    Column("held_out_loss", "held-out loss", "nats", lambda t: t.last(measures.HELD_OUT_LOSS), 1, 4, min),
    Column("token_accuracy", "token accuracy", "%", lambda t: t.last(measures.HELD_OUT_TOKEN_ACCURACY), 100, 2, max),
    Column("evaluation_loss", "evaluation loss", "nats", lambda t: t.last(measures.EVALUATION_LOSS), 1, 4, min),
    Column(
        "evaluation_accuracy",
        "evaluation token accuracy",
        "%",
        lambda t: t.last(measures.EVALUATION_TOKEN_ACCURACY),
        100,
        2,
        max,
    ),
    Column("active_first", "active, first layer", "%", _activation(lambda layers: layers[0]), 100, 2),
    Column("active_middle", "active, middle layer", "%", _activation(lambda layers: layers[len(layers) // 2]), 100, 2),
    Column("active_last", "active, last layer", "%", _activation(lambda layers: layers[-1]), 100, 2),
    Column("fraction_good", "judged good", "%", lambda t: t.over_layers(measures.FRACTION_GOOD), 100, 2),
    Column("selectivity", "selectivity", "nats", lambda t: t.over_layers(measures.MUTUAL_INFORMATION), 1, 3),
    Column("step_seconds", "step time", "ms", lambda t: t.step_seconds, 1000, 0),
    Column("peak_memory", "peak memory", "MiB", lambda t: t.last(measures.PEAK_MEMORY_MIB), 1, 0),
)
HELD_OUT_LOSS = COLUMNS[0]


def columns_of(results: Results) -> tuple[Column, ...]:
    """Those of COLUMNS that any finished trial has a value for; runs from before a measure was made lack it."""
    trials = [trial for row in results.rows for trial in row.trials.values()]
    return tuple(column for column in COLUMNS if any(not math.isnan(column.of(trial)) for trial in trials))
