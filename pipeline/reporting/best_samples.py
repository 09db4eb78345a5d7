"""Of a search: each arm's samples, ranked by their mean over seeds, and the sweep that runs the best again.

The lowest of many means is too low by chance: it was chosen for being low. Only other seeds can tell how good it is.
"""

import math
import statistics
from dataclasses import dataclass
from typing import Any

from pipeline import measures
from pipeline.errors import UserError
from pipeline.foreign_json import DamagedJson, parse_json
from pipeline.reporting.columns import DENSITY, HELD_OUT_LOSS, Column, columns_of
from pipeline.reporting.results import NOT_SET, Results, Row
from pipeline.settings.config import Experiment, validated
from pipeline.settings.trials import trials_of

_END = ("lowest of several means is too low", "highest of several means is too high")
_FEWEST_FRESH = 3  # seeds
_LONGEST_NAME = 64


@dataclass(frozen=True)
class Ranking:
    """An arm's samples in one cell of the grid, best first by `column`; of `incomplete` more, a seed is missing or its
    number is not finite. `fields` are the settings that were sampled."""

    arm: str
    cell: tuple[tuple[str, str], ...]
    ranked: tuple[Row, ...]
    incomplete: int
    fields: tuple[str, ...]
    column: Column = HELD_OUT_LOSS

    def settings(self, row: Row) -> dict[str, str]:
        """The sampled settings of a row, as text."""
        params = next(iter(row.trials.values())).params
        return {field: params.get(field, NOT_SET) for field in self.fields}


def spread(row: Row, column: Column) -> float:
    """The column's standard deviation over seeds (n - 1); NaN for fewer than two."""
    values = list(column.of_row(row).values())
    return statistics.stdev(values) if len(values) > 1 else math.nan


def rankings(results: Results, experiment: Experiment | None) -> tuple[Ranking, ...]:
    """By arm and cell of the grid; none where the sweep's own settings, `experiment`, have no search.

    They are ranked by the study's primary metric, where the sweep has one with a better end; else by held-out loss.
    """
    sweep = experiment.sweep if experiment else None
    if sweep is None or sweep.search is None:
        return ()
    fields, seeds = tuple(sweep.search.space), set(sweep.seeds)
    groups: dict[Any, list[Row]] = {}
    for row in results.rows:
        cell = tuple((name, value) for name, value in row.cell if name in sweep.grid)
        groups.setdefault((cell, row.arm), []).append(row)
    made, by = [], _ranked_by(results)
    for (cell, arm), rows in groups.items():
        whole = [row for row in rows if set(row.trials) == seeds and math.isfinite(by.mean(row))]
        ranked = tuple(sorted(whole, key=by.mean, reverse=by.best is max))
        made.append(Ranking(arm, cell, ranked, max(sweep.search.samples, len(rows)) - len(whole), fields, by))
    return tuple(made)


def _ranked_by(results: Results) -> Column:
    metric = measures.current_name(results.about.get("primary_metric", ""))
    key = measures.primary_metrics().get(metric) or measures.score_of(metric)
    columns = (column for column in columns_of(results) if column.key == key and column.best is not None)
    return next(columns, HELD_OUT_LOSS)


def samples_words(ranked: tuple[Ranking, ...]) -> list[str]:
    """A sentence for each ranking, and one on how far the best one's mean can be trusted."""
    words = []
    for ranking in ranked:
        name = ", ".join([ranking.arm, *(f"{field} {value}" for field, value in ranking.cell)])
        left = f" Not ranked: {_count(ranking.incomplete, 'sample')} without all seeds (pruned, or not finished)."
        rest = left if ranking.incomplete else ""
        if not ranking.ranked:
            words.append(f"{name}: no sample has finished with every seed.{rest}")
            continue
        best = ranking.ranked[0]
        settings = ", ".join(f"{field} {value}" for field, value in ranking.settings(best).items())
        by, deviation = ranking.column, spread(best, ranking.column)
        over = f", standard deviation {by.show(deviation)}" if math.isfinite(deviation) else ""
        words.append(
            f"The best of {_count(len(ranking.ranked), 'ranked sample')} of {name} is {settings}: {by.title} "
            f"{by.show(by.mean(best))}{f' {by.unit}' if by.unit else ''} over {_count(len(best.trials), 'seed')}{over}"
            f", {100 * DENSITY.mean(best):.3g} % of its experts active.{rest}"
        )
    if any(ranking.ranked for ranking in ranked):
        words.append(
            f"The {_END[ranked[0].column.best is max]} by chance, because it was chosen for being so. Only fresh "
            "seeds can tell how good the best samples are."
        )
    return words


def reruns(ranked_arms: tuple[Ranking, ...], experiment: Experiment) -> dict[str, Experiment]:
    """By file name, a sweep for each cell of the grid: each arm with its best sample, and seeds that were not used.

    A cell of which nothing is ranked has none; nor has one that today's settings refuse.
    """
    cells: dict[tuple[tuple[str, str], ...], dict[str, dict[str, Any]]] = {}
    for ranking in ranked_arms:
        if ranking.ranked:
            settings = dict(ranking.cell) | ranking.settings(ranking.ranked[0])
            typed = {field: _value(text) for field, text in settings.items()}
            cells.setdefault(ranking.cell, {})[ranking.arm] = typed
    made = {}
    for number, arms in enumerate(cells.values(), start=1):
        ending = "" if len(cells) == 1 else f"-{number}"
        try:
            made[f"best_samples{ending}.yaml"] = _rerun(experiment, arms, ending)
        except UserError:  # what the tracker holds may be of an older version
            continue
    return made


def _rerun(experiment: Experiment, arms: dict[str, dict[str, Any]], ending: str) -> Experiment:
    sweep, tail = experiment.sweep, f"-best{ending}"
    assert sweep is not None
    fresh = range(max(sweep.seeds) + 1, max(sweep.seeds) + 1 + max(_FEWEST_FRESH, len(sweep.seeds)))
    own = {arm: {**sweep.arm_settings.get(arm, {}), **settings} for arm, settings in arms.items()}
    changes = {
        "name": experiment.name[: _LONGEST_NAME - len(tail)] + tail,
        "description": f"Each arm with its best sample of {experiment.name}, with seeds that it was not chosen by.",
        "sweep": {"arms": list(arms), "seeds": list(fresh), "arm_settings": own},
        "study": None,
        "scales": {},
    }
    values = {**experiment.model_dump(mode="json"), **changes}
    made = validated(values, experiment.name)
    trials_of(made)
    return made


def _value(text: str) -> Any:
    """A setting's value from its param in MLflow, which has none for null."""
    if text == NOT_SET:
        return None
    try:
        return parse_json(text, "a setting")
    except DamagedJson:
        return text


def _count(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"
