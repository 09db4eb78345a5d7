"""The tables of a report, as text in cells; `pipeline.reporting.renderings` and the page's template write them out."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.colours import arm_colour
from pipeline.reporting.baselines import is_baseline
from pipeline.reporting.best_samples import spread
from pipeline.reporting.columns import DENSITY, EXCESS, HELD_OUT_LOSS, Column
from pipeline.reporting.comparisons import OVER_BASELINES, Comparison
from pipeline.reporting.frames import arms_frame
from pipeline.reporting.frontier import density_of, equally_dense
from pipeline.reporting.report import Report
from pipeline.reporting.results import Results, Row
from pipeline.reporting.statistics import Difference, mean, paired_difference

LEGEND = (
    "Last value of each run; step time is the median over the run. *active, held-out*: part of the experts with a "
    "routing weight above 0, mean over the valid tokens of the held-out tasks and over modules; by layer, the same of "
    "the last logged training batch. *excess*: the held-out loss less the lowest that any baseline of the same "
    "seed reaches with as few experts active, interpolated in the logarithm of the density; empty outside the "
    "baselines' densities. *judged good* and *selectivity* (mutual information of expert and token) are means over "
    "layers. *RMI*: mutual information of task and active expert; *ITJD*: Jaccard distance between two tasks' experts; "
    "*union of 8 tokens*: part of the experts that any of 8 neighbouring tokens uses; *dead experts*: those that no "
    "held-out token uses. A bold number is the best of its column and cell in every seed, of at least two; losses and "
    "accuracies are so marked only among arms of equal density (within a tenth)."
)


_MOST_SAMPLES = 5  # of an arm


@dataclass(frozen=True)
class Cell:
    """Text, marked if it is the best; `small` are lines below it, `colour` that of a dot before it."""

    text: str
    best: bool = False
    small: tuple[str, ...] = ()
    colour: str = ""


@dataclass(frozen=True)
class Table:
    """`names` of the first columns say what a row is; the others hold numbers."""

    head: list[str]
    rows: list[list[Cell]]
    names: int


def means(report: Report) -> Table:
    """A row for each arm and cell of the grid: the mean of every column."""
    results, columns = report.results, report.columns
    frame = arms_frame(results, columns)
    rows = [
        [
            *_names(row),
            Cell(str(frame.at[place, "seeds"])),
            *(Cell(c.show(float(frame.at[place, c.key])), is_best(results, row, c)) for c in columns),
        ]
        for place, row in enumerate(results.rows)
    ]
    return Table(["arm", *grid_names(results), "seeds", *_titles(columns)], rows, 1 + len(results.varying))


def equal_density(report: Report) -> Table | None:
    """A row for each arm and cell: density, loss and the excess over the baselines with its interval; None without."""
    excess = next((column for column in report.columns if column.key == EXCESS), None)
    if excess is None:
        return None
    rows = []
    for place, row in enumerate(report.results.rows):
        effect = report.over_baselines.get(place)
        test = report.comparisons.get((place, OVER_BASELINES))
        over = difference_cell(effect, test, excess)
        if is_baseline(row.arm):
            over = Cell(excess.show(excess.mean(row)), small=("baseline",))
        elif effect is not None and effect.seeds < len(row.trials):
            over = Cell(over.text, small=(*over.small, f"{effect.seeds} of {len(row.trials)} seeds"))
        numbers = [Cell(c.show(c.mean(row))) for c in (DENSITY, HELD_OUT_LOSS)]
        rows.append([*_names(row), Cell(str(len(row.trials))), *numbers, over])
    head = ["arm", *grid_names(report.results), "seeds", DENSITY.heading, HELD_OUT_LOSS.heading, excess.heading]
    return Table(head, rows, 1 + len(report.results.varying))


def differences(report: Report) -> Table:
    """A row for each that is compared with the reference: the mean difference of every column, and its interval."""
    rows = [
        [
            *_names(report.results.rows[place]),
            *(difference_cell(effects.get(c.key), report.comparisons.get((place, c.key)), c) for c in report.columns),
        ]
        for place, effects in report.to_reference.items()
    ]
    head = ["arm", *grid_names(report.results), *_titles(report.columns)]
    return Table(head, rows, 1 + len(report.results.varying))


def seeds(report: Report) -> Table:
    """A row for each trial."""
    rows = [
        [*_names(row), Cell(str(seed)), *(Cell(column.show(column.of(trial))) for column in report.columns)]
        for row in report.results.rows
        for seed, trial in sorted(row.trials.items())
    ]
    head = ["arm", *grid_names(report.results), "seed", *_titles(report.columns)]
    return Table(head, rows, 1 + len(report.results.varying))


def samples(report: Report) -> Table | None:
    """The best samples of each arm and cell of the grid, best first; None without a search."""
    if not report.samples:
        return None
    rows = []
    for ranking in report.samples:
        for rank, row in enumerate(ranking.ranked[:_MOST_SAMPLES], start=1):
            by = ranking.column
            lowest, highest = min(by.of_row(row).values()), max(by.of_row(row).values())
            name = Cell(ranking.arm, colour=arm_colour(ranking.arm))
            settings = [Cell(value) for value in ranking.settings(row).values()]
            numbers = (by.mean(row), spread(row, by), lowest, highest)
            shown = [Cell(by.show(each)) for each in numbers]
            density = Cell(DENSITY.show(DENSITY.mean(row)))
            cell = [Cell(value) for _, value in ranking.cell]
            rows.append([name, *cell, Cell(str(rank)), *settings, Cell(str(len(row.trials))), *shown, density])
    first = report.samples[0]
    fields = [each.split(".")[-1].replace("_", " ") for each in (*(name for name, _ in first.cell), *first.fields)]
    fields.insert(len(first.cell), "rank")
    of_loss = ["standard deviation", "lowest seed", "highest seed"]
    head = ["arm", *fields, "seeds", first.column.heading, *of_loss, DENSITY.heading]
    return Table(head, rows, 2 + len(first.cell) + len(first.fields))


def is_best(results: Results, row: Row, column: Column) -> bool:
    """Whether the row is the best of its cell in every seed, of at least two, and its mean shows it.

    Rows over other seeds are not compared: an arm whose hardest seed failed would look the better for it. Nor, where
    the column depends on density, are rows of unequal density.
    """
    if column.best is None:
        return False
    cell = [other for other in results.rows if other.cell == row.cell]
    rivals = [other for other in cell if math.isfinite(column.mean(other))]
    if row not in rivals or len({frozenset(column.of_row(other)) for other in rivals}) != 1:
        return False
    if column.of_density and not equally_dense(density_of(other) for other in rivals):
        return False
    ours, shown = column.of_row(row), column.show(column.mean(row))
    beaten = 0
    for other in rivals:
        if other is row or column.show(column.mean(other)) == shown:
            continue
        if column.best([column.mean(row), column.mean(other)]) != column.mean(row):
            return False
        effect = paired_difference(ours, column.of_row(other))
        if effect is None or effect.seeds < 2 or not effect.agree:
            return False
        beaten += 1
    return beaten > 0


def grid_names(results: Results) -> list[str]:
    """The settings that vary, as the head of a table names them."""
    return [name.split(".")[-1].replace("_", " ") for name in results.varying]


def _names(row: Row) -> list[Cell]:
    return [Cell(row.arm, colour=arm_colour(row.arm)), *(Cell(value) for _, value in row.cell)]


def _titles(columns: Iterable[Column]) -> list[str]:
    return [column.heading for column in columns]


def difference_cell(effect: Difference | None, test: Comparison | None, column: Column) -> Cell:
    """A mean difference, with its interval and p-value as small print; – where there is none."""
    if effect is None or math.isnan(mean(effect.values)):
        return Cell("–")
    small = []
    if effect.interval is not None:
        small.append(f"[{', '.join(column.show(end, sign=True) for end in effect.interval)}]")
    if test is not None:
        small.append(f"p {test.p:.2g}, primary" if test.primary else f"p {test.p:.2g}, Holm {test.adjusted:.2g}")
    return Cell(column.show(effect.mean, sign=True), small=tuple(small) or ("1 seed",))
