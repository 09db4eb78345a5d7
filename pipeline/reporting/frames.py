"""Results as pandas data frames: what every rendering of the report is made of, and what a notebook gets."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.measures import current_name
from pipeline.records.spool import read_spool
from pipeline.reporting.columns import COLUMNS, DENSITY, EXCESS, Column, columns_of, observed_columns, score_columns
from pipeline.reporting.results import NOT_SET, Results
from pipeline.settings.wrong_settings import did_you_mean


def results_frame(results: Results) -> pd.DataFrame:
    """A row for each finished trial: arm, seed, what else varies by its dotted name, and the report's columns.

    Numbers are in the units of the metrics: rates from 0 to 1, seconds, nats. NaN was not measured; `excess` is NaN
    also where no baseline was run at this density.
    """
    rows, columns = [], _every_column(results)
    for row in results.rows:
        for seed, trial in sorted(row.trials.items()):
            measured = {key: column.of(trial) if column else math.nan for key, column in columns.items()}
            rows.append({"arm": row.arm, "seed": seed, **dict(row.cell), **measured, "run_id": trial.run_id})
    frame = pd.DataFrame(rows, columns=["arm", "seed", *results.varying, *columns, "run_id"])
    return frame.assign(**{name: _of_one_type(frame[name]) for name in results.varying})


def arms_frame(results: Results, columns: tuple[Column, ...]) -> pd.DataFrame:
    """A row for each arm and cell of the grid, in the order of `results.rows`: the number of seeds, and the means.

    NaN where a seed's value is missing or not finite; of the excess, the mean of the seeds that have one.
    """
    rows = [
        {"arm": row.arm, **dict(row.cell), "seeds": len(row.trials), **{c.key: c.mean(row) for c in columns}}
        for row in results.rows
    ]
    return pd.DataFrame(rows, columns=["arm", *results.varying, "seeds", *(column.key for column in columns)])


def curves_frame(spools: Mapping[str, Path], metric: str) -> pd.DataFrame:
    """A metric over the steps (the index), a column for each trial that has measured it.

    Raises:
        UserError: none has; names the metrics that there are.
    """
    metric = current_name(metric)
    series, names = {}, set()
    for key, path in spools.items():
        lines, _ = read_spool(path)
        measured = {line.step: {current_name(name): value for name, value in line.metrics.items()} for line in lines}
        names |= {name for metrics in measured.values() for name in metrics}
        values = {step: metrics[metric] for step, metrics in measured.items() if metric in metrics}
        if values:
            series[key] = pd.Series(values)
    if not series:
        near = did_you_mean(metric, names)
        raise UserError(f"metric {metric!r}: no trial has measured it{near}; there are: {', '.join(sorted(names))}")
    return pd.DataFrame(series).rename_axis("step")


def _every_column(results: Results) -> dict[str, Column | None]:
    """The same columns for every sweep, measured or not, so that a program that reads them finds them all; and after
    them those of the user's own observer."""
    excess = next((column for column in columns_of(results) if column.key == EXCESS), None)
    columns: dict[str, Column | None] = {}
    for column in COLUMNS:
        columns |= {column.key: column} | ({EXCESS: excess} if column is DENSITY else {})
    return columns | {column.key: column for column in [*score_columns(results), *observed_columns(results)]}


def _of_one_type(texts: pd.Series) -> pd.Series:
    """What a setting was, as numbers where each of its values is one, else as text; missing where it was not set."""
    values = [None if text == NOT_SET else _number(text) for text in texts]
    if any(isinstance(value, str) for value in values):
        values = [None if value is None else text for value, text in zip(values, texts, strict=True)]
    return pd.Series(values, index=texts.index)


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text
