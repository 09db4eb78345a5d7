"""Names and numbers beside and below a figure's panels, made to fit where they stand."""

import re
from collections.abc import Iterable

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipeline.colours import arm_colour

_INCHES_A_LETTER = 0.085  # at font size 10, a little more than most names take
_ROUND_PERCENTS = ((1.6, (0, 1, 5, 10, 25, 50, 75, 100)), (0.0, (0, 5, 25, 50, 100)))  # from what height, in inches


def wrapped(name: str, letters: int) -> str:
    """The whole name, in lines of at most so many letters, broken after '_', ':' and spaces where that can be."""
    lines = [""]
    for part in re.findall(rf"[^_:\s]{{0,{letters - 1}}}[_:\s]|[^_:\s]{{1,{letters}}}", name):
        if len(lines[-1]) + len(part.rstrip()) > letters:
            lines.append("")
        lines[-1] += part
    return "\n".join(line.strip() for line in lines)


def lines_of(names: Iterable[str]) -> int:
    """The lines that the longest of some wrapped names takes."""
    return max((name.count("\n") + 1 for name in names), default=1)


def legend_of_arms(figure: Figure, arms: Iterable[str]) -> None:
    """Below the panels: which colour is which arm."""
    names = {arm: wrapped(arm.rpartition(":")[2], 60) for arm in dict.fromkeys(arms)}
    handles = [Line2D([], [], color=arm_colour(arm), lw=3, label=name) for arm, name in names.items()]
    longest = max((len(line) for name in names.values() for line in name.split("\n")), default=1)
    fitting = int(figure.get_figwidth() / (0.7 + _INCHES_A_LETTER * longest))
    columns = max(1, min(6, len(handles), fitting))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def steps_below(axes: Axes) -> None:
    """Training steps below a panel, which come in whole numbers."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def widen_x(axes: Axes, least: float) -> None:
    """A panel whose values differ by less than can be told from rounding shows them as one."""
    low, high = axes.get_xlim()
    if high - low < least:
        axes.set_xlim((low + high - least) / 2, (low + high + least) / 2)


def widen_y(axes: Axes, least_part: float) -> None:
    """As `widen_x`, of the values upwards; `least_part` of their size."""
    low, high = axes.get_ylim()
    least = least_part * max(abs(low), abs(high))
    if high - low < least:
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)


def percents_that_fit(inches: float) -> tuple[int, ...]:
    """Ticks of a colour bar so high that goes by the square root of the percentage."""
    return next(ticks for height, ticks in _ROUND_PERCENTS if inches >= height)
