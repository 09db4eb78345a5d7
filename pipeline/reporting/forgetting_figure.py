"""The figure of what is forgotten over a sequence of tasks, of a sweep with `data.order: sequential`."""

from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline import measures
from pipeline.reporting.figures import LINES, STYLE, band, cells_of, new_figure
from pipeline.reporting.labels import legend_of_arms, steps_below, widen_y
from pipeline.reporting.results import Results, Row

_PANELS = (
    (measures.FORGETTING_LOSS, "loss on earlier tasks (nats per label)"),
    (measures.FORGETTING_INCREASE, "the same, less the loss right after each task"),
)


def forgetting(results: Results) -> Figure | None:
    """Loss on the tasks that were finished before, and its growth since, over training steps and tasks: the mean over
    seeds, its range as a band; a row of panels for each cell. None where no run has measured it."""
    shown = [row for row in results.rows if _task_count(row)]
    cells = [cell for cell in cells_of(results) if any(row.cell == cell for row in shown)]
    if not cells:
        return None
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4, 0.6 + 3.2 * len(cells))
        grid = figure.subplots(len(cells), len(_PANELS), squeeze=False)
        for axes_row, cell in zip(grid, cells, strict=True):
            rows = [row for row in shown if row.cell == cell]
            for axes, (name, title) in zip(axes_row, _PANELS, strict=True):
                for place, row in enumerate(rows):
                    curves = [trial.curves[name] for trial in row.trials.values() if name in trial.curves]
                    band(axes, curves, row.arm, 1.0, LINES[place % len(LINES)])
                axes.set_title(title, loc="left", fontsize=10, pad=36)
                axes.grid(alpha=0.25)
                axes.set_xlabel("training step")
                steps_below(axes)
                _tasks_above(axes, rows[0])
                if name == measures.FORGETTING_INCREASE:
                    axes.axhline(0, color="#444444", lw=1)
                else:
                    widen_y(axes, 0.005)
            if cell:
                axes_row[0].set_ylabel(", ".join(f"{field.split('.')[-1]} {value}" for field, value in cell))
        legend_of_arms(figure, (row.arm for row in shown))
    return figure


def _task_count(row: Row) -> int:
    """How many tasks the row's runs went through; 0 where they measured no forgetting."""
    trials = [trial for trial in row.trials.values() if measures.FORGETTING_LOSS in trial.curves]
    return int(max((trial.metrics.get(measures.TASK_NUMBER, 0.0) for trial in trials), default=0.0))


def _tasks_above(axes: Axes, row: Row) -> None:
    """A second axis above the panel that counts tasks: each has an equal share of the steps."""
    last = max(max(trial.curves[measures.FORGETTING_LOSS][0], default=0) for trial in row.trials.values()
               if measures.FORGETTING_LOSS in trial.curves)  # fmt: skip
    tasks = _task_count(row)
    if not last or not tasks:
        return

    def task_at(step: Any) -> Any:
        return step * tasks / last

    def step_of(task: Any) -> Any:
        return task * last / tasks

    above = axes.secondary_xaxis("top", functions=(task_at, step_of))
    above.xaxis.set_major_locator(MaxNLocator(integer=True))
    above.set_xlabel(f"finished tasks of {tasks}", fontsize=8)
    above.tick_params(labelsize=8)
