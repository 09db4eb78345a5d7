"""How active each layer is over the course of training, as a figure."""

import math
from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.reporting.labels import steps_below, wrapped

MOST_POINTS = 300  # of a curve: more than a figure has pixels for, and an SVG grows with each
# series[arm][layer] = one (steps, values) for each seed
Series = Mapping[str, Mapping[int, list[tuple[list[int], list[float]]]]]


def activation_by_layer(series: Series, title: str = "") -> Figure:
    """One panel an arm, one line a layer: mean over seeds of the activation rate, its range over seeds as a band."""
    arms = list(series)
    columns = min(2, max(1, len(arms)))
    rows = max(1, math.ceil(len(arms) / columns))
    figure = Figure(figsize=(10, 0.9 + 3.1 * rows), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    layers = sorted({layer for arm in arms for layer in series[arm]})
    shades = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, max(1, len(layers))))
    highest = 0.0
    for axes, arm in zip(grid, arms, strict=False):
        for layer, curves in sorted(series[arm].items()):
            steps, low, mean, high = thinned(over_seeds(curves))
            highest = max(highest, *high)
            colour = shades[layers.index(layer)]
            axes.plot(steps, 100 * mean, color=colour, lw=1.8, label=f"L{layer}")
            axes.fill_between(steps, 100 * low, 100 * high, color=colour, alpha=0.18, lw=0)
        seeds = max((len(curves) for curves in series[arm].values()), default=0)
        heading = wrapped(f"{arm}  ({seeds} seed{'s' if seeds != 1 else ''})", 40)
        axes.set_title(heading, fontsize=12, loc="left")
        axes.grid(alpha=0.25)
        axes.tick_params(labelbottom=True)
        steps_below(axes)
    for axes in grid[len(arms) :]:
        axes.set_axis_off()
    for axes in grid[: len(arms)]:
        axes.set_ylim(0, 105 * highest or 1)
    figure.supxlabel("training step")
    figure.supylabel("experts active per token (%)")
    if arms:
        handles = [Line2D([], [], color=shades[i], lw=2.5, label=f"layer {layer}") for i, layer in enumerate(layers)]
        figure.legend(handles=handles, loc="outside right center", frameon=False)
    figure.suptitle(title or "Activation rate by layer: mean over seeds, band from lowest to highest", fontsize=12)
    return figure


def over_seeds(curves: list[tuple[list[int], list[float]]]) -> tuple[np.ndarray, ...]:
    """Steps, lowest, mean and highest over the seeds that have the step."""
    values: dict[int, list[float]] = {}
    for steps, numbers in curves:
        for step, number in zip(steps, numbers, strict=True):
            if math.isfinite(number):
                values.setdefault(step, []).append(number)
    steps = sorted(values)
    rows = [(min(values[s]), sum(values[s]) / len(values[s]), max(values[s])) for s in steps]
    low, mean, high = np.array(rows).reshape(-1, 3).T
    return np.array(steps), low, mean, high


def thinned(curve: tuple[np.ndarray, ...], most: int = MOST_POINTS) -> tuple[np.ndarray, ...]:
    """At most `most` points of a curve and its band, (steps, low, mean, high); all of them where there are no more.

    Neighbours are taken together: their mean step and mean value, and the lowest and highest of the band, so that no
    peak of the band is lost. The first and the last point stay as they are.
    """
    steps, low, mean, high = curve
    if len(steps) <= most:
        return curve
    starts = np.unique(np.linspace(1, len(steps) - 1, most - 1).astype(int))[:-1]
    counts = np.diff([*starts, len(steps) - 1])

    def together(values: np.ndarray, joined: np.ndarray) -> np.ndarray:
        return np.concatenate([values[:1], joined, values[-1:]])

    inner = slice(0, len(steps) - 1)
    return (
        together(steps, np.add.reduceat(steps[inner], starts) / counts),
        together(low, np.minimum.reduceat(low[inner], starts)),
        together(mean, np.add.reduceat(mean[inner], starts) / counts),
        together(high, np.maximum.reduceat(high[inner], starts)),
    )
