"""The report of a sweep, from MLflow alone: its results, what they are compared with, and what that says in words."""

import math
from dataclasses import dataclass
from pathlib import Path

from pipeline.reporting.artifacts import Artifacts, read_artifacts
from pipeline.reporting.baselines import is_baseline
from pipeline.reporting.best_samples import Ranking, rankings, samples_words
from pipeline.reporting.changed_code import changed_code
from pipeline.reporting.columns import EXCESS, Column, columns_of
from pipeline.reporting.comparisons import (
    OVER_BASELINES,
    Comparison,
    Key,
    Primary,
    compare,
    primary_of,
    reference_of,
)
from pipeline.reporting.data_used import data_words
from pipeline.reporting.equal_density import equal_density_words, primary_words
from pipeline.reporting.findings import findings
from pipeline.reporting.grown import grown_words, workers_words
from pipeline.reporting.results import Results, read_results
from pipeline.reporting.statistics import Difference, difference, paired_difference


@dataclass(frozen=True)
class Report:
    """A sweep's results, each row's paired differences to the reference by column, and the findings in words.

    `columns` are those that there are values for; `filed` is what else the runs have left. `differences`, by the row's
    place in results.rows, hold under OVER_BASELINES also the excess itself, which is a difference to the baselines.
    """

    results: Results
    columns: tuple[Column, ...]
    differences: dict[int, dict[str, Difference]]
    comparisons: dict[Key, Comparison]
    findings: list[str]
    filed: Artifacts
    reference: str = "per_token"
    primary: Primary | None = None
    samples: tuple[Ranking, ...] = ()

    @property
    def to_reference(self) -> dict[int, dict[str, Difference]]:
        """The differences to the reference alone, of the rows that have any."""
        by_row = {
            place: {key: each for key, each in row.items() if key != OVER_BASELINES}
            for place, row in self.differences.items()
        }
        return {place: row for place, row in by_row.items() if row}

    @property
    def over_baselines(self) -> dict[int, Difference]:
        """The excess over the baselines at equal density, by place; not of baselines, nor where there is none."""
        return {place: row[OVER_BASELINES] for place, row in self.differences.items() if OVER_BASELINES in row}


def make_report(
    uri: str, experiment_name: str, sweep: str, sweep_id: str | None = None, phases: Path | None = None
) -> Report:
    """Reads the sweep's finished trials from MLflow and compares every arm with the study's reference, paired by seed
    and cell, and with the baselines at equal density.

    Args:
        phases: as of `read_artifacts`.

    Raises:
        UserError: as `read_results`, which says what `sweep_id` is.
    """
    results = read_results(uri, experiment_name, sweep, sweep_id)
    return report_of(results, read_artifacts(uri, results, phases))


def report_of(results: Results, filed: Artifacts) -> Report:
    """The report of results that have been read."""
    columns, reference = columns_of(results), reference_of(results)
    differences = _differences(results, columns, reference)
    primary = primary_of(results, reference)
    comparisons = compare(differences, columns, primary)
    samples = rankings(results, filed.sweep)
    words = [
        *changed_code(results),
        *grown_words(results, primary),
        workers_words(results),
        primary_words(results, reference, primary, differences, comparisons),
        *equal_density_words(results, differences),
        *findings(results, reference),
        *data_words(results),
        *samples_words(samples),
        _lost_files(results, filed),
    ]
    return Report(
        results, columns, differences, comparisons, list(filter(None, words)), filed, reference, primary, samples
    )


def _differences(results: Results, columns: tuple[Column, ...], reference: str) -> dict[int, dict[str, Difference]]:
    excess = next((column for column in columns if column.key == EXCESS), None)
    differences: dict[int, dict[str, Difference]] = {}
    for place, row in enumerate(results.rows):
        compared = results.row(reference, row.cell)
        by_column: dict[str, Difference] = {}
        if compared is not None and compared is not row:
            pairs = {column.key: paired_difference(column.of_row(row), column.of_row(compared)) for column in columns}
            by_column |= {key: each for key, each in pairs.items() if each is not None}
        if excess is not None and not is_baseline(row.arm):
            over = difference(excess.of_row(row))
            by_column |= {OVER_BASELINES: over} if over is not None else {}
        if by_column:
            differences[place] = by_column
    return differences


def _lost_files(results: Results, filed: Artifacts) -> str:
    if not filed.lost:
        return ""
    return (
        f"The files of {len(filed.lost)} of {results.finished} runs are not where MLflow stored them, so their figures "
        "are missing here. A SQLite store expects them in the folder mlflow-artifacts beside it."
    )


def headline(results: Results) -> str:
    """How many trials the report rests on."""
    text = f"{results.finished} of {results.total} trials finished"
    others = [f"{n} {status}" for status, n in sorted(results.statuses.items()) if status != "FINISHED"]
    text += f" ({', '.join(others)})" if others else ""
    if results.older:
        runs = "run of the same trials is" if results.older == 1 else "runs of the same trials are"
        text += f"; {results.older} older {runs} left out"
    return text + "."


def seeds_of(report: Report) -> int:
    """The most seeds that any row has; 0 where nothing has finished."""
    return max((len(row.trials) for row in report.results.rows), default=0)


def is_finite(effect: Difference | None) -> bool:
    """Whether there is a mean to show."""
    return effect is not None and math.isfinite(effect.mean)
