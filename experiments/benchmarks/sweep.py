"""Where does the wall time of a sweep go? Runs one as its users would, or reads what a finished one has recorded."""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from experiments.benchmarks.report import Progress, Result
from pipeline.files import read_json
from pipeline.layout import Output
from pipeline.records.phases import PHASES, SweepPhases, parse_phases
from pipeline.reporting.phases import gantt, phases_sentence, phases_table

_MOST_TRIALS = 4  # with a column of their own on the terminal; the numbers and the report have all


def run(config: str, name: str, changes: tuple[str, ...], output: Path, progress: Progress) -> SweepPhases:
    """Runs the sweep `name` of `config` in the folder `output`, which holds no such sweep, by `tiny-onn ablate`.

    The wall time is taken from outside: from before the process was started until it had ended.

    Raises:
        click.ClickException: the command failed; with the end of what it said.
    """
    words = [sys.executable, "-c", "from pipeline.command import main; main()", "ablate", config]
    words += [word for change in changes for word in ("--set", change)] + ["--output", str(output)]
    output.mkdir(parents=True, exist_ok=True)
    progress.begin(f"tiny-onn ablate {config}", 1)
    log = output / "sweep.log"
    with log.open("w") as out:
        began = time.time()
        done = subprocess.run(words, stdout=out, stderr=subprocess.STDOUT, env=dict(os.environ), check=False)
        ended = time.time()
    progress.step("done")
    if done.returncode:
        last_lines = "\n".join(log.read_text(errors="replace").splitlines()[-20:])
        raise click.ClickException(f"tiny-onn ablate {config} ended with exit code {done.returncode}:\n{last_lines}")
    return from_outside(recorded(output, name), began, ended)


def recorded(output: Path, name: str) -> SweepPhases:
    """What the last command of a sweep in an output folder has recorded.

    Raises:
        click.ClickException: it has recorded nothing.
    """
    path = Output(output).phases(name)
    recorded_phases = parse_phases(read_json(path)) if path.is_file() else None
    if recorded_phases is None:
        raise click.ClickException(f"{path}: does not say where time went. Expected the file of a sweep that has run.")
    return recorded_phases


def from_outside(phases: SweepPhases, began: float, ended: float) -> SweepPhases:
    """The same with what came before the process could look at its clock, and after: `command` and `shutdown`."""
    first, last = phases.spans[0][1], phases.spans[-1][2]
    before, after = ("command", min(began, first), first), ("shutdown", last, max(ended, last))
    return replace(phases, spans=(before, *phases.spans, after))


def result(phases: SweepPhases) -> Result:
    """The answer: the table, the parts of the wall time, and `wall_over_steps`."""
    parts, began = phases.of_the_wall(), first_step(phases)
    table = phases_table(phases)
    lines = zip(table.head, *([cell.text for cell in row] for row in table.rows[: 3 + _MOST_TRIALS]), strict=True)
    names, *rows = [list(line) for line in lines]
    notes = [phases_sentence(phases)]
    notes += [] if began is None else [f"The first training step began {began:.1f} s after the command."]
    data: dict[str, Any] = {
        "sweep": phases.sweep,
        "cores": phases.cores,
        "wall": phases.wall,
        "steps_over_cores": phases.steps_over_cores,
        "wall_over_steps": phases.wall_over_steps,
        "first_step": began,
        "phases": parts,
        "trials": {trial.key: {"seconds": trial.length, "phases": trial.seconds} for trial in phases.trials},
    }
    return Result(
        question="sweep",
        title=f"The wall time of the sweep {phases.sweep}, in seconds",
        columns=["what", *names[1:]],
        rows=rows,
        plot_label="seconds of the wall time",
        places="sweep",
        series={phase: {phases.sweep: parts[phase]} for phase in PHASES if parts[phase] > 0},
        data=data,
        notes=notes,
        figure=gantt(phases),
    )


def first_step(phases: SweepPhases) -> float | None:
    """Seconds from the command until the first training step of any trial began; None if none did."""
    began = [start for trial in phases.trials for phase, start, _ in trial.spans if phase == "steps"]
    return min(began) - phases.spans[0][1] if began else None
