"""Results as pandas data frames, for those who look at them in a notebook."""

import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.measures import current_name
from pipeline.records.spool import read_spool
from pipeline.reporting.columns import COLUMNS
from pipeline.reporting.results import Results
from pipeline.settings.wrong_settings import did_you_mean


def results_frame(results: Results) -> pd.DataFrame:
    """A row for each finished trial: arm, seed, what else varies by its dotted name, and the report's columns.

    Numbers are in the units of the metrics: rates from 0 to 1, seconds, nats. NaN was not measured.
    """
    rows = []
    for row in results.rows:
        for seed, trial in sorted(row.trials.items()):
            varied = {name: _number(value) for name, value in row.cell}
            measured = {column.key: column.of(trial) for column in COLUMNS}
            rows.append({"arm": row.arm, "seed": seed, **varied, **measured, "run_id": trial.run_id})
    columns = ["arm", "seed", *results.varying, *(column.key for column in COLUMNS), "run_id"]
    return pd.DataFrame(rows, columns=columns)


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


def _number(text: str) -> float | int | str:
    for kind in (int, float):
        try:
            value = kind(text)
        except ValueError:
            continue
        return value if math.isfinite(value) else text
    return text
