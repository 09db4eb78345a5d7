"""Reports waits: what has not moved for half a minute, and what it waits for."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console

from pipeline.records.state import State
from pipeline.running.progress import TrialProgress

FIRST_S = 30.0
_LATER = 4  # times as long until the next report
_NAMED = 3


@contextmanager
def report_waiting(console: Console, what: str, first_s: float = FIRST_S) -> Iterator[None]:
    """Says that the command still waits for `what` when the context lasts longer than `first_s`, and again later."""
    over = threading.Event()

    def report() -> None:
        began, pause = time.monotonic(), first_s
        while not over.wait(pause):
            waited = time.monotonic() - began
            console.print(
                f"Still waiting, for {waited:.0f} s now: {what}.", style="yellow", highlight=False, markup=False
            )
            pause = waited * (_LATER - 1)

    thread = threading.Thread(target=report, name="report-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()


class Standstill:
    """Whether any trial has moved since it was last looked at."""

    def __init__(self, first_s: float = FIRST_S) -> None:
        self._first_s = self._next_s = first_s
        self._seen: object = None
        self._since = time.monotonic()

    def check(self, trials: Sequence[TrialProgress], now: float | None = None) -> str | None:
        """What the trials wait for, when none has moved for half a minute, two minutes, eight, ...; else None."""
        now = time.monotonic() if now is None else now
        seen = [(t.state, t.step, t.state is State.RUNNING and t.folder.placement.exists()) for t in trials]
        if seen != self._seen:
            self._seen, self._since, self._next_s = seen, now, self._first_s
            return None
        if now - self._since < self._next_s or all(t.state not in (State.WAITING, State.RUNNING) for t in trials):
            return None
        self._next_s *= _LATER
        running = [trial for trial in trials if trial.state is State.RUNNING]
        waits = [f"{trial.trial.key} waits for {_of(trial)}" for trial in running[:_NAMED]]
        waits += [f"so do {len(running) - _NAMED} more"] if len(running) > _NAMED else []
        words = "; ".join(waits) or "the next trial waits for Ray to start its process"
        return f"Nothing has moved for {now - self._since:.0f} s: {words}."


def _of(trial: TrialProgress) -> str:
    if not trial.folder.placement.exists():
        return "its workers to be started by Ray"
    every = trial.trial.experiment.training.log_every
    return f"its workers, which report every {every} steps and have reported step {trial.step}"
