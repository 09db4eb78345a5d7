"""The figures of the report's page that show a run's course and its layers: one colour an arm in all of them."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from pipeline import measures
from pipeline.colours import arm_colour
from pipeline.reporting.artifacts import Artifacts
from pipeline.reporting.labels import (
    legend_of_arms,
    lines_of,
    steps_below,
    widen_y,
    wrapped,
)
from pipeline.reporting.plots import over_seeds, thinned
from pipeline.reporting.results import Results, Row, TrialResult

MOST_ROWS, MOST_CELLS = 24, 8  # arms in cells of the grid, and cells, that a figure shows: the first of them
STYLE: Any = {"font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 10}
_CURVES = (
    (measures.TASK_LOSS, "training loss (nats per token)", 1.0),
    (measures.HELD_OUT_LOSS, "held-out loss (nats per token)", 1.0),
    (measures.HELD_OUT_TOKEN_ACCURACY, "held-out token accuracy (%)", 100.0),
)
LINES: tuple[Any, ...] = ("-", "-", (0, (4, 2)), (0, (1, 1)))  # so that of two equal curves both are seen
_SEED_SIZE = 26


def svg(figure: Figure) -> str:
    """The figure as SVG text; its letters are drawn, so that it looks the same everywhere."""
    out = StringIO()
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "tiny-onn"}):
        figure.savefig(out, format="svg", dpi=150, metadata={"Date": None})
    return out.getvalue()


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure


def name_of(row: Row) -> str:
    """An arm, and the cell of the grid where there is one."""
    return " · ".join([row.arm.rpartition(":")[2], *(f"{name.split('.')[-1]} {value}" for name, value in row.cell)])


def learning_curves(results: Results) -> Figure | None:
    """Losses and accuracy over steps: the mean over seeds, its range as a band; a row of panels for each cell."""
    cells = cells_of(results)
    shown = [c for c in _CURVES if any(c[0] in t.curves for row in results.rows for t in row.trials.values())]
    if not shown:
        return None
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4, 0.6 + 2.9 * len(cells))
        grid = figure.subplots(len(cells), len(shown), squeeze=False, sharex=True)
        for axes_row, cell in zip(grid, cells, strict=True):
            rows = [row for row in results.rows if row.cell == cell]
            for axes, (name, title, scale) in zip(axes_row, shown, strict=True):
                for place, row in enumerate(rows):
                    line = LINES[place % len(LINES)]
                    band(axes, [t.curves[name] for t in row.trials.values() if name in t.curves], row.arm, scale, line)
                axes.set_title(title, loc="left", fontsize=10)
                axes.grid(alpha=0.25)
                axes.set_xlabel("training step")
                steps_below(axes)
                widen_y(axes, 0.005)
            if cell:
                axes_row[0].set_ylabel(", ".join(f"{n.split('.')[-1]} {v}" for n, v in cell))
        legend_of_arms(figure, (row.arm for row in results.rows))
    return figure


def distributions(results: Results, filed: Artifacts) -> Figure | None:
    """Histograms of log10 learning cost and Goodness at the last evaluation, a ridge a layer, the mean over seeds."""
    rows = [r for r in results.rows if any(t.run_id in filed.distributions for t in r.trials.values())][:MOST_ROWS]
    if not rows:
        return None
    with mpl.rc_context(STYLE):
        names = [wrapped(f"{name_of(row)}: learning cost", 42) for row in rows]  # Goodness is the shorter word
        heights = [
            0.84 + 0.16 * lines_of([name]) + 0.36 * len(row_layers(row)) for row, name in zip(rows, names, strict=True)
        ]
        figure = new_figure(9.4, 0.4 + sum(heights))
        grid = figure.subplots(len(rows), 2, squeeze=False, sharex="col", height_ratios=heights)
        for pair, row in zip(grid, rows, strict=True):
            of_seeds = [filed.distributions[t.run_id] for t in row.trials.values() if t.run_id in filed.distributions]
            for axes, part, title in zip(pair, ("cost", "goodness"), ("learning cost", "Goodness"), strict=True):
                layers = [getattr(each, part) for each in of_seeds]
                _ridges(axes, layers, arm_colour(row.arm))
                axes.set_title(wrapped(f"{name_of(row)}: {title}", 42), loc="left")
            pair[1].axvline(-1, color="#444444", lw=1, ls="--")
        grid[-1, 0].set_xlabel("log10 of the learning cost")
        grid[-1, 1].set_xlabel("log10 of Goodness, as a part of the best expert's")
    return figure


def experts_in_use(results: Results) -> Figure | None:
    """By layer, at the end of training: the effective number of experts, and the part that no token used."""
    kinds = [(measures.EFFECTIVE_EXPERTS, "effective experts in use", 1.0)]
    kinds += [(measures.NEVER_ACTIVE, "experts that no token of the batch used (%)", 100.0)]
    trials = [trial for row in results.rows for trial in row.trials.values()]
    known = [k for k in kinds if any(measures.by_layer(k[0], layer) in t.metrics for t in trials for layer in t.layers)]
    if not known:
        return None
    cells = cells_of(results)
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4, 0.6 + 2.8 * len(cells))
        grid = figure.subplots(len(cells), len(known), squeeze=False)
        for axes_row, cell in zip(grid, cells, strict=True):
            rows = [row for row in results.rows if row.cell == cell]
            for axes, (name, title, scale) in zip(axes_row, known, strict=True):
                for place, row in enumerate(rows):
                    shift = 0.4 * ((place + 0.5) / len(rows) - 0.5)
                    _by_layer(axes, row, name, scale, shift)
                layers = sorted({layer for row in rows for layer in row_layers(row)})
                axes.set_xticks(layers, [f"L{layer}" for layer in layers])
                axes.set_title(title, loc="left", fontsize=10)
                axes.grid(alpha=0.25, axis="y")
                values = [scale * _last(t, name, n) for r in rows for t in r.trials.values() for n in t.layers]
                axes.set_ylim(0, 1.08 * max([v for v in values if v > 0], default=1.0))
            if cell:
                axes_row[0].set_ylabel(", ".join(f"{n.split('.')[-1]} {v}" for n, v in cell))
        legend_of_arms(figure, (row.arm for row in results.rows))
    return figure


def left_out(results: Results) -> str:
    """How much of a large grid the figures do not show, in words; "" where they show all."""
    cells = len({row.cell for row in results.rows})
    if cells <= MOST_CELLS and len(results.rows) <= MOST_ROWS:
        return ""
    return (
        f"Except for the figure at equal density, figures show the first {min(MOST_CELLS, cells)} of {cells} "
        f"cell{'s' * (cells != 1)} of the grid, or their first {MOST_ROWS} rows."
    )


def row_layers(row: Row) -> list[int]:
    """The layers that any trial of the row has measured."""
    return sorted({layer for trial in row.trials.values() for layer in trial.layers})


def cells_of(results: Results) -> list[tuple[tuple[str, str], ...]]:
    """The first MOST_CELLS cells of the grid."""
    return list(dict.fromkeys(row.cell for row in results.rows))[:MOST_CELLS]


def band(axes: Axes, curves: list[tuple[list[int], list[float]]], arm: str, scale: float, line: Any) -> None:
    """Draws the mean of the seeds' curves in the arm's colour, and their range as a band."""
    steps, low, mean, high = thinned(over_seeds(curves))
    if not len(steps):
        return
    few = len(steps) <= 12
    marker = "o" if few else None
    axes.plot(steps, scale * mean, color=arm_colour(arm), ls=line, lw=1.8, marker=marker, markersize=3.5)
    axes.fill_between(steps, scale * low, scale * high, color=arm_colour(arm), alpha=0.18, lw=0)


def _ridges(axes: Axes, seeds: Sequence[dict], colour: str) -> None:
    """A ridge for each layer; what is below the first edge is written at the left."""
    layers = sorted({layer for each in seeds for layer in each})
    parts = {}
    for layer in layers:
        counts = [each[layer].counts / max(each[layer].counts.sum(), 1) for each in seeds if layer in each]
        parts[layer] = np.mean(counts, axis=0)
    edges = next(iter(seeds[0].values())).edges
    highest = max(float(part[1:-1].max()) for part in parts.values()) or 1.0
    for place, layer in enumerate(layers):
        part = parts[layer]
        height = 0.85 * part[1:-1] / highest
        axes.stairs(place - height, edges, baseline=place, fill=True, color=colour, alpha=0.45)
        axes.stairs(place - height, edges, baseline=place, color=colour, lw=1.1)
        outside = [f"{100 * p:.0f} % {word}" for p, word in ((part[0], "≈ 0"), (part[-1], "above")) if p >= 0.005]
        axes.text(
            0.01, place - 0.08, ", ".join(outside), transform=axes.get_yaxis_transform(), fontsize=8, color="#444444"
        )
    axes.set_yticks(range(len(layers)), [f"L{layer}" for layer in layers])
    axes.set_ylim(len(layers) - 0.8, -1.0)
    axes.grid(alpha=0.25, axis="x")


def _by_layer(axes: Axes, row: Row, name: str, scale: float, shift: float) -> None:
    """The mean over seeds as a line, the seeds as dots."""
    layers = row_layers(row)
    values = [[scale * _last(t, name, layer) for t in row.trials.values()] for layer in layers]
    places = np.array(layers) + shift
    axes.plot(places, [np.mean(each) for each in values], color=arm_colour(row.arm), lw=1.2, alpha=0.7)
    across = [place for place, each in zip(places, values, strict=True) for _ in each]
    upwards = [value for each in values for value in each]
    axes.scatter(across, upwards, s=_SEED_SIZE, color=arm_colour(row.arm), edgecolors="white", lw=0.6, zorder=3)


def _last(trial: TrialResult, name: str, layer: int) -> float:
    return trial.last(measures.by_layer(name, layer))
