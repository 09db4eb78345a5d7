"""The figure of the report's page that shows how active each layer is over the course of training."""

import math

import matplotlib as mpl
import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from pipeline.colours import arm_colour
from pipeline.reporting.figures import MOST_ROWS, STYLE, name_of, new_figure, row_layers
from pipeline.reporting.labels import lines_of, percents_that_fit, steps_below, wrapped
from pipeline.reporting.plots import over_seeds
from pipeline.reporting.results import Results, Row


def activation_map(results: Results) -> Figure | None:
    """Layer x step, the colour saying what part of the experts is active: a panel for each row, the mean over seeds."""
    rows = [row for row in results.rows if any(t.activation for t in row.trials.values())][:MOST_ROWS]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        columns = min(2, len(rows))
        lines = math.ceil(len(rows) / columns)
        layers = max(len(row_layers(row)) for row in rows)
        titles = [wrapped(name_of(row), 42 if columns == 2 else 90) for row in rows]
        height = lines * (0.84 + 0.16 * lines_of(titles) + 0.21 * layers)
        figure = new_figure(9.4, 0.5 + height)
        grid = figure.subplots(lines, columns, squeeze=False).ravel()
        mesh = None
        for axes, row, title in zip(grid, rows, titles, strict=False):
            steps, rates = _rates(row)
            mesh = axes.pcolormesh(
                _edges(steps),
                np.arange(len(rates) + 1) - 0.5,
                100 * rates,
                cmap="viridis",
                norm=PowerNorm(0.5, 0, 100),
                rasterized=True,  # or there are seams between the cells
            )
            axes.set_yticks(range(len(rates)), [f"L{layer}" for layer in row_layers(row)])
            axes.invert_yaxis()
            axes.set_title(title, loc="left", color=arm_colour(row.arm), fontweight="bold")
            axes.set_xlabel("training step")
            steps_below(axes)
        for axes in grid[len(rows) :]:
            axes.set_axis_off()
        assert mesh is not None
        bar_height = height - 0.4
        ticks = percents_that_fit(bar_height)
        bar = figure.colorbar(mesh, ax=list(grid), ticks=ticks, pad=0.02, aspect=bar_height / 0.1)
        bar.set_label("experts active (%)")
    return figure


def _rates(row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Steps [S] and the mean over seeds of the activation rate, [layers, S]; NaN where no seed has the step."""
    means = {}
    for layer in row_layers(row):
        curves = [t.activation[layer] for t in row.trials.values() if layer in t.activation]
        steps, _, mean, _ = over_seeds(curves)
        means[layer] = dict(zip(steps.tolist(), mean.tolist(), strict=True))
    every = sorted({step for mean in means.values() for step in mean})
    return np.array(every), np.array([[mean.get(step, math.nan) for step in every] for mean in means.values()])


def _edges(steps: np.ndarray) -> np.ndarray:
    """Borders half-way between the steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middle = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middle[0]], middle, [2 * steps[-1] - middle[-1]]])
