"""The figure that compares arms at equal density: loss and excess over the baselines, by active experts."""

import math
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from pipeline.colours import arm_colour
from pipeline.reporting.baselines import is_baseline
from pipeline.reporting.figures import STYLE, new_figure
from pipeline.reporting.frontier import Envelope, Group, envelopes, excesses, group_of, mean_envelope
from pipeline.reporting.labels import wrapped
from pipeline.reporting.results import Results, TrialResult

MOST_PANELS = 6
_LABELLED = (1, 2, 3, 5)  # the digits before the zeros of the percentages below
_ASIDE = 0.012  # how far, as a part of the density, the dots of an arm are moved sideways where many would overlap
Arms = dict[str, list[list[TrialResult]]]  # of each arm its cells, of each cell its seeds


def loss_over_density(results: Results) -> Figure | None:
    """Every trial as a dot, hollow for baselines, with the baselines' lower envelope, and below its excess over that; a
    pair of panels for each group of comparable trials.

    The thick line is the mean over seeds of their envelopes, the thin ones are the seeds' own. The cells of an arm are
    joined through their means.
    """
    groups: dict[Group, Arms] = {}
    for row in results.rows:
        for trial in row.trials.values():
            if math.isfinite(trial.held_out_loss) and math.isfinite(trial.density) and trial.density > 0:
                arms = groups.setdefault(group_of(trial, results.varying), {})
                cells = arms.setdefault(row.arm, [])
                if not cells or cells[-1][0].params != trial.params:
                    cells.append([])
                cells[-1].append(trial)
    if not groups:
        return None
    shown = dict(list(groups.items())[:MOST_PANELS])
    curves, excess = envelopes(results), excesses(results)
    columns = min(2, len(shown))
    lines = math.ceil(len(shown) / columns)
    with_excess = any(math.isfinite(value) for value in excess.values())
    heights = [3.6, 2.4] if with_excess else [4.0]
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4, 0.9 + sum(heights) * lines)
        size = (len(heights) * lines, columns)
        grid = figure.subplots(*size, squeeze=False, height_ratios=heights * lines)
        for place, (group, arms) in enumerate(shown.items()):
            line, column = divmod(place, columns)
            panels = grid[len(heights) * line : len(heights) * (line + 1), column]
            _losses(panels[0], arms, {seed: curve for (of, seed), curve in curves.items() if of == group})
            if group:
                title = ", ".join(f"{name.split('.')[-1]} {value}" for name, value in group)
                panels[0].set_title(wrapped(title, 90 // columns), loc="left")
            if with_excess:
                _excesses(panels[1], arms, excess)
            panels[-1].set_xlabel("experts active, held-out tokens (%)")
        for place in range(len(shown), lines * columns):
            for axes in grid[len(heights) * (place // columns) :, place % columns]:
                axes.set_axis_off()
        _legend(figure, [arm for arms in shown.values() for arm in arms], bool(curves))
    return figure


def _losses(axes: Axes, arms: Arms, curves: dict[int, Envelope]) -> None:
    _percentages(axes, arms)
    for curve in curves.values() if len(curves) > 1 else ():
        densities = [*(d for d, _ in curve.points), curve.highest]
        losses = [*(loss for _, loss in curve.points), curve.points[-1][1]]
        axes.plot([100 * d for d in densities], losses, color="#777777", lw=0.7, alpha=0.6, zorder=1)
    densities, losses = mean_envelope(curves)
    axes.plot([100 * d for d in densities], losses, color="#222222", lw=2.2, zorder=2)
    _dots(axes, arms, lambda trial: trial.held_out_loss)
    axes.set_ylabel("held-out loss (nats)")


def _excesses(axes: Axes, arms: Arms, excess: dict[str, float]) -> None:
    _percentages(axes, arms)
    axes.axhline(0, color="#222222", lw=2.2, zorder=2)
    _dots(axes, arms, lambda trial: excess[trial.run_id], _ASIDE if len(arms) > 4 else 0.0)
    axes.set_ylabel("excess (nats)")


def _dots(axes: Axes, arms: Arms, value: Callable[[TrialResult], float], aside: float = 0.0) -> None:
    """A dot a trial, each arm moved aside by a factor of its own; a line through the means of an arm's cells."""
    for place, (arm, cells) in enumerate(arms.items()):
        colour, hollow = arm_colour(arm), is_baseline(arm)
        factor = 100 * (1 + aside) ** (place - (len(arms) - 1) / 2)
        seen = [[(factor * t.density, value(t)) for t in cell if math.isfinite(value(t))] for cell in cells]
        means = sorted(tuple(sum(each) / len(cell) for each in zip(*cell, strict=True)) for cell in seen if cell)
        if len(means) > 1:
            axes.plot(*zip(*means, strict=True), color=colour, lw=0.9, alpha=0.6)
        dots = [dot for cell in seen for dot in cell]
        axes.scatter(
            [density for density, _ in dots],
            [number for _, number in dots],
            s=24,
            facecolors="white" if hollow else colour,
            edgecolors=colour if hollow else "white",
            lw=1.2 if hollow else 0.6,
            zorder=3 if hollow else 4,
        )
    axes.grid(alpha=0.25, which="both")


def _percentages(axes: Axes, arms: Arms) -> None:
    """A log axis around the densities, labelled with plain percentages, also where they are all alike."""
    densities = [100 * trial.density for cells in arms.values() for cell in cells for trial in cell]
    axes.set_xscale("log")
    axes.set_xlim(min(densities) / 1.2, max(densities) * 1.2)
    axes.xaxis.set_major_locator(LogLocator(subs=_LABELLED if max(densities) < 200 * min(densities) else (1,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(LogLocator(subs=tuple(range(2, 10))))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Figure, arms: list[str], has_envelope: bool) -> None:
    handles = []
    for arm in dict.fromkeys(arms):
        colour, hollow = arm_colour(arm), is_baseline(arm)
        face = "white" if hollow else colour
        name = wrapped(arm.rpartition(":")[2], 24)
        handles.append(Line2D([], [], ls="", marker="o", mfc=face, mec=colour, mew=1.3, label=name))
    if has_envelope:
        handles.append(Line2D([], [], color="#222222", lw=2.2, label="baselines' envelope"))
    longest = max(len(line) for handle in handles for line in str(handle.get_label()).split("\n"))
    columns = max(1, min(6, len(handles), int(figure.get_figwidth() / (0.7 + 0.085 * longest))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)
