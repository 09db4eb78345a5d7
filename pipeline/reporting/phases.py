"""Where the wall time of a sweep went, as a table and as a Gantt chart."""

from collections.abc import Iterable

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pipeline.records.phases import PHASES, TRIALS, SweepPhases
from pipeline.reporting.figures import STYLE, new_figure
from pipeline.reporting.tables import Cell, Table

PHASES_FIGURE = "phases.png"
_MOST_TRIALS = 40  # that have a row or a bar of their own
_COLOURS = dict(zip(PHASES, mpl.colormaps["tab20"].colors, strict=False)) | {"other": (0.8, 0.8, 0.8)}  # type: ignore[attr-defined]

WORDS = (
    "Seconds of the sweep's last command, from its start until this report was begun, or to its end. *of the wall*: "
    "where trials run at once, each second is shared evenly among them, so that the row adds up to the wall time; "
    "*other* is what nothing accounts for. Rows of trials hold their own seconds. *Ray*: starting Ray and the trials' "
    "processes; *driver*: placing and starting a trial's workers, and ending them; *worker*: from the train function's "
    "start to the first step; *compilation*: what a process's first 20 steps take beyond the mean of its later ones; "
    "*logging extra*: what logged steps take beyond others, and writing what they measured."
)


def phases_table(phases: SweepPhases) -> Table:
    """The wall time by phase and as percentages, a mean of the trials, and a row for each of the first trials."""
    parts = phases.of_the_wall()
    shown = [
        phase
        for phase in PHASES
        if parts[phase] > 0 or any(trial.seconds.get(phase, 0.0) > 0 for trial in phases.trials)
    ]
    count = len(phases.trials)
    rows = [
        _row("of the wall", phases.wall, (parts[phase] for phase in shown)),
        [Cell("of the wall, %"), Cell("100"), *(Cell(f"{100 * parts[p] / phases.wall:.1f}") for p in shown)],
        _row(
            f"mean of {count} trial{'s' * (count != 1)}",
            sum(trial.length for trial in phases.trials) / count,
            (sum(trial.seconds.get(phase, 0.0) for trial in phases.trials) / count for phase in shown),
        ),
    ]
    for trial in sorted(phases.trials, key=lambda trial: trial.start)[:_MOST_TRIALS]:
        rows.append(_row(trial.key, trial.length, (trial.seconds.get(phase, 0.0) for phase in shown)))
    return Table(["seconds", "wall", *shown], rows, 1)


def phases_sentence(phases: SweepPhases) -> str:
    """The ratio that the table is about, in words."""
    if phases.wall_over_steps is None:
        return f"The wall time of {phases.wall:.0f} s holds no training steps."
    return (
        f"The wall time, {phases.wall:.1f} s, is {phases.wall_over_steps:.2f} times what the steps alone would take "
        f"spread over {phases.cores:g} core{'s' * (phases.cores != 1)}, {phases.steps_over_cores:.1f} s."
    )


def gantt(phases: SweepPhases) -> Figure:
    """A line for the command and one for each of the first trials, coloured by phase, over seconds since the start."""
    zero = phases.spans[0][1]
    trials = sorted(phases.trials, key=lambda trial: trial.start)[:_MOST_TRIALS]
    with mpl.rc_context(STYLE):
        figure = new_figure(9.4, 1.6 + 0.24 * (1 + len(trials)))
        axes = figure.subplots()
        for phase, start, end in phases.spans:
            if phase != TRIALS:
                axes.barh(0, end - start, left=start - zero, color=_COLOURS.get(phase, _COLOURS["other"]))
        for place, trial in enumerate(trials, 1):
            whole = "driver" if trial.spans else "other"
            axes.barh(place, trial.length, left=trial.start - zero, color=_COLOURS[whole])
            for phase in dict.fromkeys(span[0] for span in trial.spans):
                bars = [(start - zero, end - start) for name, start, end in trial.spans if name == phase]
                axes.broken_barh(bars, (place - 0.4, 0.8), color=_COLOURS.get(phase, _COLOURS["other"]))
        axes.set_yticks(range(1 + len(trials)), ["command", *(trial.key for trial in trials)])
        axes.invert_yaxis()
        axes.set_xlabel("seconds since the command's start")
        axes.grid(alpha=0.25, axis="x")
        names = {span[0] for span in phases.spans} | {span[0] for trial in trials for span in trial.spans} | {"driver"}
        handles = [Patch(color=_COLOURS[phase], label=phase) for phase in PHASES if phase in names]
        figure.legend(handles=handles, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def _row(name: str, wall: float, seconds: Iterable[float]) -> list[Cell]:
    return [Cell(name), Cell(f"{wall:.1f}"), *(Cell(f"{each:.1f}") for each in seconds)]
