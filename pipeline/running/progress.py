"""How far each trial is, read from its folder alone.

While trials run this is the one reader of their spools beside delivery: what else needs their lines gets them from
`on_line`. Delivery has a place of its own in each spool, which outlives the command, and may be far behind.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pipeline.layout import TrialFolder
from pipeline.measures import ACTIVATION_RATE, TASK_LOSS, TOKENS_PER_SECOND, by_layer
from pipeline.records.spool import Line, SpoolReader
from pipeline.records.state import State
from pipeline.settings.trials import Trial

_STARTING_S = 20.0
_READ_BYTES = 2**22
_DONE = (State.FINISHED, State.PRUNED)


@dataclass
class TrialProgress:
    """One trial's progress, kept up to date by `read`. Steps count from 1 to `steps`; NaN is not known yet."""

    trial: Trial
    folder: TrialFolder
    state: State = State.WAITING
    step: int = 0
    loss: float = math.nan  # of training
    tokens_per_second: float = math.nan
    activation: dict[int, float] = field(default_factory=dict)  # by layer: first, middle, last
    seconds: float | None = None  # from the start of this attempt to its end
    on_line: Callable[[Line], None] | None = None  # called with each line that is read
    _reader: SpoolReader = field(init=False)
    _began: float | None = None
    _first: tuple[float, int] | None = None  # clock and step of this attempt's first report

    def __post_init__(self) -> None:
        self._reader = SpoolReader(self.folder.spool)

    @property
    def read_to(self) -> int:
        """The byte of the spool up to which it has been read."""
        return self._reader.offset

    @property
    def steps(self) -> int:
        """How many steps the trial takes in all."""
        return self.trial.experiment.training.steps

    @property
    def over(self) -> bool:
        """Whether it has ended by itself, and is never taken up again."""
        return self.state in _DONE

    @property
    def layers(self) -> tuple[int, int, int]:
        """The first, middle and last layer, the middle one as the report counts it."""
        layers = self.trial.experiment.model.layers
        return 0, layers // 2, layers - 1

    def read(self, state: State, now: float | None = None) -> bool:
        """Takes in a new state and the spool's new lines; True when the state has changed."""
        now = time.monotonic() if now is None else now
        changed, self.state = state != self.state, state
        if changed and state is State.RUNNING:
            self._began, self._first = now, None
        if changed and state not in (State.WAITING, State.RUNNING) and self._began is not None:
            self.seconds = self.seconds or now - self._began
        reported = False
        for line in self._new_lines():
            reported = True
            if self.on_line is not None:
                self.on_line(line)
            self.step = max(self.step, line.step)
            self.loss = line.metrics.get(TASK_LOSS, self.loss)
            self.tokens_per_second = line.metrics.get(TOKENS_PER_SECOND, self.tokens_per_second)
            for layer in self.layers:
                rate = line.metrics.get(by_layer(ACTIVATION_RATE, layer))
                if rate is not None:
                    self.activation[layer] = rate
        if state is State.RUNNING and reported and self._first is None:
            self._first = (now, self.step)
        if state is State.FINISHED:
            self.step = self.steps
        return changed

    def waits_for_room(self, now: float | None = None) -> bool:
        """Whether it has been taken up, and has had no workers for longer than these take to start."""
        now = time.monotonic() if now is None else now
        if self.state is not State.RUNNING or self._began is None or self._first is not None:
            return False
        return now - self._began > _STARTING_S and not self.folder.placement.exists()

    def _new_lines(self) -> Iterator[Line]:
        """The lines since the last call, a part of a long spool in memory at a time. The tracker reports damage: a view
        must not end a sweep."""
        while lines := self._reader.read(_READ_BYTES):
            yield from lines

    def seconds_left(self, now: float | None = None) -> float | None:
        """Of a running trial, by the pace of its steps in this attempt; None while that is not known."""
        if self.state is not State.RUNNING or self._first is None or self.step <= self._first[1]:
            return None
        now = time.monotonic() if now is None else now
        began, first = self._first
        return (now - began) / (self.step - first) * (self.steps - self.step)


def all_left(trials: list[TrialProgress], at_once: int, now: float | None = None) -> float | None:
    """Seconds until the whole sweep is done, if waiting trials take as long as the others; None if not known yet."""
    now = time.monotonic() if now is None else now
    waiting = sum(trial.state is State.WAITING for trial in trials)
    running = [trial for trial in trials if trial.state is State.RUNNING]
    left = [trial.seconds_left(now) for trial in running]
    known = [value for value in left if value is not None]
    lengths = [trial.seconds for trial in trials if trial.seconds is not None and trial.state in _DONE]
    lengths += [
        now - t._began + s for t, s in zip(running, left, strict=True) if s is not None and t._began is not None
    ]
    if not lengths:
        return 0.0 if not waiting and not running else None
    usual = sum(lengths) / len(lengths)
    unknown = [
        max(0.0, usual - (now - trial._began) if trial._began is not None else usual)
        for trial, seconds in zip(running, left, strict=True)
        if seconds is None
    ]
    return (sum(known) + sum(unknown) + usual * waiting) / max(1, min(at_once, waiting + len(running)))
