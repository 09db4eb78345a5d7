"""Two sweeps compared with each other, seed by seed: yesterday's code and today's, or one setting and another."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.text import Text

from pipeline.colours import arm_colour
from pipeline.files import write_whole
from pipeline.reporting.baselines import canonical
from pipeline.reporting.columns import Column, columns_of
from pipeline.reporting.renderings import escape, markdown_table, terminal_table
from pipeline.reporting.results import Results, Row
from pipeline.reporting.statistics import ENOUGH_SEEDS, Difference, paired_difference
from pipeline.reporting.tables import Cell, Table, difference_cell

_COMMIT = "mlflow.source.git.commit"
Place = tuple[str, tuple[tuple[str, str], ...]]  # an arm, and the settings that vary in either sweep


@dataclass(frozen=True)
class TwoSweeps:
    """The rows that two sweeps share, each with the second's differences to the first by column, paired by seed.

    `columns` are those that both have, each as the first's and the second's. `changed` are the settings that are the
    same throughout either sweep and not the same in both, as (name, first, second); `alone` says what one lacks.
    """

    first: str
    second: str
    varying: list[str]
    columns: list[tuple[Column, Column]]
    pairs: dict[Place, tuple[Row, Row]]
    differences: dict[Place, dict[str, Difference]]
    changed: list[tuple[str, str, str]]
    alone: list[str]


def compare_sweeps(first: Results, second: Results) -> TwoSweeps:
    """Pairs the rows of two sweeps by arm and by every setting that varies in either, and their trials by seed.

    An arm that was renamed in between is the same arm. Seeds that one of them lacks are left out.
    """
    varying = sorted({*first.varying, *second.varying})
    ours, theirs = _rows(first, varying), _rows(second, varying)
    pairs = {place: (row, theirs[place]) for place, row in ours.items() if place in theirs}
    known = {column.key: column for column in columns_of(first)}
    columns = [(known[column.key], column) for column in columns_of(second) if column.key in known]
    differences: dict[Place, dict[str, Difference]] = {}
    for place, (before, after) in pairs.items():
        effects = {new.key: paired_difference(new.of_row(after), old.of_row(before)) for old, new in columns}
        differences[place] = {key: each for key, each in effects.items() if each is not None}
    alone = [f"{_name(place)} is in {first.sweep} alone" for place in ours if place not in theirs]
    alone += [f"{_name(place)} is in {second.sweep} alone" for place in theirs if place not in ours]
    return TwoSweeps(first.sweep, second.sweep, varying, columns, pairs, differences, _changed(first, second), alone)


def words(both: TwoSweeps) -> list[str]:
    """What differs in the settings, what is in one alone, and how much two sweeps of so many seeds can tell."""
    text = [f"{both.second} less {both.first}, paired by arm, setting and seed."]
    if both.changed:
        each = [f"{name} {before} -> {after}" for name, before, after in both.changed]
        text.append(f"What differs between all of their trials: {'; '.join(each)}.")
    text += [f"{line}." for line in both.alone]
    tested = {new.key for _, new in both.columns if new.tested}
    every = [each for row in both.differences.values() for key, each in row.items() if key in tested]
    if not every:
        return [*text, "They share no seed of an arm with the same settings: there is nothing to compare."]
    if all(value == 0 or value != value for each in every for value in each.values.values()):
        text.append("Every number but those of time and memory is the same in every seed, to the last digit.")
    seeds = max(each.seeds for each in every)
    if 1 < seeds < ENOUGH_SEEDS:
        text.append(f"From {seeds} seeds an interval is only the spread of the differences: too few to tell.")
    return text


def table(both: TwoSweeps) -> Table:
    """A row for each that both have: the mean difference of every column with its 95 % interval."""
    rows = []
    for (arm, cell), differences in both.differences.items():
        seeds = max((each.seeds for each in differences.values()), default=0)
        numbers = [difference_cell(differences.get(new.key), None, new) for _, new in both.columns]
        rows.append(
            [Cell(arm, colour=arm_colour(arm)), *(Cell(value) for _, value in cell), Cell(str(seeds)), *numbers]
        )
    head = ["arm", *(name.split(".")[-1].replace("_", " ") for name in both.varying), "seeds"]
    return Table([*head, *(new.heading for _, new in both.columns)], rows, 1 + len(both.varying))


def frame(both: TwoSweeps) -> pd.DataFrame:
    """A row for each pair of trials: arm, what varies, seed, and of every column KEY_first, KEY_second, KEY_difference.

    In the units of the metrics; NaN where one of the two was not measured.
    """
    rows = []
    for (arm, cell), (before, after) in both.pairs.items():
        for seed in sorted(before.trials.keys() & after.trials.keys()):
            line: dict[str, object] = {"arm": arm, **dict(cell), "seed": seed}
            for old, new in both.columns:
                ours, theirs = old.of(before.trials[seed]), new.of(after.trials[seed])
                line |= {f"{new.key}_first": ours, f"{new.key}_second": theirs, f"{new.key}_difference": theirs - ours}
            rows.append(line)
    return pd.DataFrame(rows)


def write_comparison(both: TwoSweeps, folder: Path) -> list[Path]:
    """Writes less-FIRST.md and less-FIRST.csv, a row a pair of trials; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    text, data = (folder / f"less-{both.first}.{end}" for end in ("md", "csv"))
    parts = [f"# {escape(both.second)} less {escape(both.first)}", *map(escape, words(both))]
    if both.differences:
        parts.append(markdown_table(table(both)))
    write_whole(text, "\n\n".join(parts) + "\n")
    write_whole(data, frame(both).to_csv(index=False))
    return [text, data]


def print_comparison(both: TwoSweeps, console: Console) -> None:
    """The words and the table of differences, for a terminal."""
    for line in words(both):
        console.print(Text(line))
    if both.differences:
        shown, left = terminal_table(table(both), console.width)
        console.print(shown)
        if left:
            console.print(Text(f"{left} more columns in the files"))


def _rows(results: Results, varying: list[str]) -> dict[Place, Row]:
    """The rows by what they are: a setting that this sweep does not vary is in its trials' parameters."""
    rows = {}
    for row in results.rows:
        params = next(iter(row.trials.values())).params
        rows[canonical(row.arm), tuple((name, params.get(name, "–")) for name in varying)] = row
    return rows


def _changed(first: Results, second: Results) -> list[tuple[str, str, str]]:
    before, after = _constant(first), _constant(second)
    names = sorted(before.keys() & after.keys())
    return [(name, before[name], after[name]) for name in names if before[name] != after[name]]


def _constant(results: Results) -> Mapping[str, str]:
    """The settings, and the commit, that all trials of a sweep have alike; – for what they do not set."""
    trials = [trial for row in results.rows for trial in row.trials.values()]
    every = [{**trial.params, "git commit": trial.tags.get(_COMMIT, "–")} for trial in trials]
    skipped = {"name", "description"}
    names = {name for each in every for name in each} - skipped
    values_of = {name: {each.get(name, "–") for each in every} for name in names}
    return {name: next(iter(values)) for name, values in values_of.items() if len(values) == 1}


def _name(place: Place) -> str:
    arm, cell = place
    return arm + "".join(f", {name} {value}" for name, value in cell)
