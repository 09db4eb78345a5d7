"""What a user sees while trials run: one table that stays in place, or plain lines where there is no terminal."""

import datetime
import math
import time
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.records.state import State
from pipeline.running.notebook import NotebookArea
from pipeline.running.progress import TrialProgress, all_left
from pipeline.terminal import shows_a_screen

_COLOURS = {
    State.WAITING: "dim",
    State.RUNNING: "cyan",
    State.FINISHED: "green",
    State.PRUNED: "magenta",
    State.FAILED: "bold red",
    State.STOPPED: "yellow",
}
_PLAIN_EVERY_S = 15.0
_NOTEBOOK_EVERY_S = 2.0
_FRAME_LINES = 8  # the table's borders, heading and caption, what is hidden, and the lines of the sweep
_NARROW_KEY = 20
_BESIDE_KEY = 92  # what the other columns of the wide table take at most
_WIDE = 112  # columns of a screen with room for every heading; the narrow table fits 80


class LiveView:
    """Shows `trials` on `console` between entering and leaving; `update` after every change.

    Args:
        at_once: how many trials run at once, for the time left.
        chatty: what else is printed meanwhile goes above the table; otherwise it is left to find its own way.
    """

    def __init__(
        self, name: str, trials: list[TrialProgress], console: Console, at_once: int = 1, chatty: bool = False
    ) -> None:
        self._name, self._trials, self._console = name, trials, console
        self._at_once, self._chatty = at_once, chatty
        self._lacking: str | None = None
        self._told_taken = False
        self._live: Live | None = None
        self._notebook: NotebookArea | None = None
        self._told: dict[str, State] = {}
        self._summed_up = ""
        self._told_at, self._drawn_at = time.monotonic(), -math.inf

    def __enter__(self) -> Self:
        if shows_a_screen(self._console):
            own = self._chatty
            self._live = Live(
                self.render(), console=self._console, auto_refresh=False, redirect_stdout=own, redirect_stderr=own
            )
            self._live.start()
        elif self._console.is_jupyter:
            self._notebook = NotebookArea()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._drawn_at = -math.inf  # the end is drawn at once
        self.update()
        if self._live is not None:
            self._live.stop()

    def note_room(self, at_once: int, lacking: str | None) -> None:
        """Says so when the cluster has grown or shrunk; `lacking`: why it cannot hold a single trial."""
        if at_once == self._at_once and lacking == self._lacking:
            return
        message = f"Waiting: no node has capacity for a trial. {lacking}" if lacking else None
        message = message or f"Concurrency changed from {self._at_once} to {at_once}."
        self._at_once, self._lacking = at_once, lacking
        self._console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)

    def note_taken(self, waiting: bool, free: str | None) -> None:
        """Says once that trials are `waiting` for other jobs of the cluster; `free`: the resources that are left."""
        if waiting and free is not None and not self._told_taken:
            message = f"Waiting: other jobs hold the cluster; {free} free."
            self._console.print(message, style="yellow", highlight=False, markup=False, soft_wrap=True)
            self._told_taken = True
        self._told_taken &= waiting

    def update(self) -> None:
        """Renders the trials' present states."""
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
        elif self._notebook is not None:
            if time.monotonic() - self._drawn_at >= _NOTEBOOK_EVERY_S:
                self._drawn_at = time.monotonic()
                self._notebook.show(self.render())
        else:
            for line in self.plain_lines():
                self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The table and the line of the sweep. Trials that do not fit on the screen are counted below it."""
        wide = self._wide
        table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1 if wide else 0, 0, 0))
        for heading in ("trial", "state"):
            table.add_column(heading, no_wrap=True)
        table.add_column("step", no_wrap=True)
        for heading in ("loss", "active: first" if wide else "first", "middle" if wide else "mid", "last", "left"):
            table.add_column(heading, justify="right", no_wrap=True)
        caption = (
            "loss: training loss" if wide else "loss: training loss; first, mid, last: active experts of that layer"
        )
        table.caption, table.caption_justify = caption, "left"
        shown = self._shown()
        for trial in shown:
            table.add_row(*self._row(trial))
        hidden = len(self._trials) - len(shown)
        more = [Text(f"… and {hidden} more", style="dim")] if hidden else []
        return Group(table, *more, self._sweep_line())

    def summary(self) -> str:
        """The sweep in a line: done n of m, running, waiting, failed, time left for all and when that will be."""
        count = {state: sum(t.state is state for t in self._trials) for state in State}
        parts = [f"{self._name}: {count[State.FINISHED]} of {len(self._trials)} done"]
        others = (State.PRUNED, State.RUNNING, State.WAITING, State.FAILED, State.STOPPED)
        parts += [f"{count[state]} {state.value}" for state in others if count[state]]
        left = all_left(self._trials, self._at_once)
        if left:
            ends = datetime.datetime.now().astimezone() + datetime.timedelta(seconds=left)
            parts.append(f"about {duration(left)} left, until {clock(ends)}")
        return ", ".join(parts)

    def plain_lines(self) -> list[str]:
        """A line for each trial whose state has changed, and now and then one for each that runs."""
        lines = []
        for trial in self._trials:
            key = trial.trial.key
            if trial.state is not self._told.get(key, State.WAITING):
                self._told[key] = trial.state
                took = f" after {duration(trial.seconds)}" if trial.seconds is not None else ""
                lines.append(f"{key}: {trial.state.value}{took}{_measured(trial)}")
        now = time.monotonic()
        if now - self._told_at >= _PLAIN_EVERY_S:
            self._told_at = now
            running = [trial for trial in self._trials if trial.state is State.RUNNING and trial.step]
            lines += [f"{t.trial.key}: step {t.step} of {t.steps}{_measured(t)}" for t in running]
            summary = self.summary()
            if summary != self._summed_up:
                lines.append(summary)
                self._summed_up = summary
        return lines

    def _shown(self) -> list[TrialProgress]:
        room = max(1, self._console.height - _FRAME_LINES)
        if len(self._trials) <= room:
            return self._trials
        order = (State.RUNNING, State.FAILED, State.STOPPED, State.WAITING, State.PRUNED, State.FINISHED)
        chosen = sorted(range(len(self._trials)), key=lambda i: (order.index(self._trials[i].state), i))[:room]
        return [self._trials[i] for i in sorted(chosen)]

    @property
    def _wide(self) -> bool:
        return self._notebook is not None or self._console.width >= _WIDE

    def _sweep_line(self) -> RenderableType:
        """The summary and, where there is room, a bar of all the steps that are to be taken."""
        text = Text(self.summary(), style="bold")
        if not self._wide:
            return text
        ended = (State.FINISHED, State.PRUNED, State.FAILED)
        steps = sum(trial.steps if trial.state in ended else trial.step for trial in self._trials)
        line = Table.grid(padding=(0, 1))
        line.add_row(ProgressBar(total=sum(trial.steps for trial in self._trials), completed=steps, width=16), text)
        return line

    def _row(self, trial: TrialProgress) -> list[RenderableType]:
        starting = trial.state is State.RUNNING and not trial.step
        state = Text("starting" if starting else trial.state.value, style=_COLOURS[trial.state])
        bar = Table.grid(padding=(0, 1))
        width = 14 if self._wide else 6
        bar.add_row(ProgressBar(total=trial.steps, completed=trial.step, width=width), f"{trial.step}/{trial.steps}")
        left = trial.seconds_left()
        show = duration if self._wide else _brief
        time_text = show(left) if left is not None else ""
        if trial.seconds is not None:
            time_text = f"took {show(trial.seconds)}" if self._wide else show(trial.seconds)
        rates = [_percent(trial.activation.get(layer, math.nan), self._wide) for layer in trial.layers]
        loss = "" if math.isnan(trial.loss) else f"{trial.loss:.3f}"
        key = trial.trial.key
        room = max(_NARROW_KEY, self._console.width - _BESIDE_KEY) if self._wide else _NARROW_KEY
        name = Text(key if len(key) <= room else f"{key[: room - 1]}…")
        return [name, state, bar, loss, *rates, time_text]


def duration(seconds: float) -> str:
    """`42 s`, `3 min 05 s`, `2 h 10 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _brief(seconds: float) -> str:
    """`99 s`, `42 min`, `3.5 h`: at most six characters."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 99.5 * 60 else f"{seconds / 3600:.3g} h"


def clock(then: datetime.datetime) -> str:
    """`14:32`, and the day where it is not today: `Tue 14:32`."""
    today = then.date() == datetime.datetime.now(then.tzinfo).date()
    return f"{then:%H:%M}" if today else f"{then:%a %H:%M}"


def _percent(rate: float, wide: bool = True) -> str:
    if math.isnan(rate):
        return ""
    return f"{100 * rate:.1f} %" if wide else f"{100 * rate:.0f}%" if rate >= 0.0995 else f"{100 * rate:.1f}%"


def _measured(trial: TrialProgress) -> str:
    loss = "" if math.isnan(trial.loss) else f", training loss {trial.loss:.3f}"
    speed = "" if math.isnan(trial.tokens_per_second) else f", {trial.tokens_per_second:,.0f} tokens/s"
    rates = [_percent(trial.activation[layer]) for layer in trial.layers if layer in trial.activation]
    left = trial.seconds_left()
    active = f", active {' / '.join(rates)}" if rates else ""
    return loss + speed + active + (f", {duration(left)} left" if left else "")
