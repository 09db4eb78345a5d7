"""The figures of the report's page in which every seed is a dot: effects, speed and memory."""

import math
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline import measures
from pipeline.colours import arm_colour
from pipeline.reporting.columns import Column
from pipeline.reporting.figures import MOST_ROWS, STYLE, name_of, new_figure
from pipeline.reporting.labels import lines_of, widen_x, wrapped
from pipeline.reporting.results import Results, Row
from pipeline.reporting.statistics import Difference

_SPEED = (
    (measures.STEP_SECONDS, "step time (ms)"),
    (measures.TOKENS_PER_SECOND, "tokens per second"),
    (measures.PEAK_MEMORY_MIB, "peak memory (MiB)"),
)


def effects(
    results: Results, differences: Mapping[int, Mapping[str, Difference]], columns: Sequence[Column]
) -> Figure | None:
    """A panel for each column, a line for each row: the seeds' paired differences, their mean and its interval."""
    places = list(differences)[:MOST_ROWS]
    if len(differences) > MOST_ROWS:  # the table has the rest; a page of panels is not looked through
        columns = columns[:3]
    shown = [c for c in columns if any(_finite(differences[place].get(c.key)) for place in places)]
    if not shown:
        return None
    across = min(3, len(shown))
    down = math.ceil(len(shown) / across)
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4, down * (0.75 + _height([results.rows[place] for place in places])))
        grid = figure.subplots(down, across, squeeze=False, sharey=True)
        for axes, column in zip(grid.ravel(), shown, strict=False):
            for line, place in enumerate(places):
                effect = differences[place].get(column.key)
                if effect is not None and _finite(effect):
                    _effect(axes, line, effect, column.scale, arm_colour(results.rows[place].arm))
            axes.axvline(0, color="#444444", lw=1)
            axes.set_title(wrapped(column.heading, 34), loc="left")
            widen_x(axes, 4 * 10.0**-column.digits)
            axes.xaxis.set_major_locator(MaxNLocator(nbins=3))
            _lines(axes, [results.rows[place] for place in places])
        for axes in grid.ravel()[len(shown) :]:
            axes.set_axis_off()
    return figure


def speed_and_memory(results: Results) -> Figure | None:
    """Step time, throughput and peak memory: a dot a seed, a stroke for their mean."""
    rows = results.rows[:MOST_ROWS]
    panels: list[tuple[str, list[list[float]]]] = []
    for name, title in _SPEED:
        if name == measures.STEP_SECONDS:
            values = [[1000 * t.step_seconds for t in row.trials.values()] for row in rows]
        else:
            values = [[t.last(name) for t in row.trials.values()] for row in rows]
        if any(math.isfinite(v) for each in values for v in each):
            panels.append((title, values))
    if not panels:
        return None
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4, 0.8 + _height(rows))
        grid = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, values) in zip(grid, panels, strict=True):
            for line, (row, each) in enumerate(zip(rows, values, strict=True)):
                colour = arm_colour(row.arm)
                axes.scatter(each, [line] * len(each), s=30, color=colour, edgecolors="white", lw=0.6, zorder=3)
                axes.plot([np.mean(each)] * 2, [line - 0.3, line + 0.3], color=colour, lw=2)
            axes.set_xlim(0, 1.12 * max(v for each in values for v in each if math.isfinite(v)))
            axes.set_title(title, loc="left")
            _lines(axes, rows)
    return figure


def _effect(axes: Axes, line: int, effect: Difference, scale: float, colour: str) -> None:
    values = [scale * value for value in effect.values.values()]
    if effect.interval is not None:
        axes.plot([scale * end for end in effect.interval], [line, line], color=colour, lw=2.2, alpha=0.55)
    axes.plot([scale * effect.mean] * 2, [line - 0.3, line + 0.3], color=colour, lw=2.2)
    axes.scatter(values, [line] * len(values), s=26, color=colour, edgecolors="white", lw=0.6, zorder=3)


def _lines(axes: Axes, rows: Sequence[Row]) -> None:
    axes.set_yticks(range(len(rows)), _labels(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(alpha=0.25, axis="x")
    axes.tick_params(axis="y", length=0)


def _labels(rows: Sequence[Row]) -> list[str]:
    return [wrapped(name_of(row), 26) for row in rows]


def _height(rows: Sequence[Row]) -> float:
    """What the lines of the rows take, in inches."""
    return len(rows) * max(0.34, 0.08 + 0.16 * lines_of(_labels(rows)))


def _finite(effect: Difference | None) -> bool:
    return effect is not None and math.isfinite(effect.mean)
