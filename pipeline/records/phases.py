"""Where the wall time of a sweep goes: the clocks of its processes, the file of their times, and the sums over it.

The command, and rank 0 of each trial, carry a Clock; the trial's process notes when it began and ended. At the end the
command writes all of it to `phases.json` in the sweep's folder. Times are seconds since the epoch, of each machine's
own clock.
"""

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files import read_json, write_whole
from pipeline.layout import TrialFolder

PHASES = (
    *("command", "store", "data", "Ray", "driver", "worker", "compilation", "steps", "logging extra", "evaluation"),
    *("decoding", "checkpoints", "delivery", "shutdown", "other"),
)
TRIALS = "trials"  # the command's phase in which trials run; what no trial accounts for in it is Ray's
FIRST_STEPS = 20  # of a process; compilation is what they take beyond the mean of the later ones
_MOST_SPANS = 2000  # of a clock; later ones are counted, and not drawn

Span = tuple[str, float, float]  # phase, start, end


class Clock:
    """The time of one process, split into phases without gaps: one phase ends where the next is entered."""

    def __init__(self, phase: str, now: float | None = None) -> None:
        self.phase, self.began = phase, time.time() if now is None else now
        self.spans: list[Span] = []
        self.seconds: dict[str, float] = {}
        self._since = self.began

    def enter(self, phase: str, now: float | None = None) -> None:
        """Ends the phase that runs, and begins `phase`."""
        now = max(self._since, time.time() if now is None else now)  # the clock may have been set back
        self.seconds[self.phase] = self.seconds.get(self.phase, 0.0) + now - self._since
        if len(self.spans) < _MOST_SPANS and now > self._since:
            self.spans.append((self.phase, self._since, now))
        self.phase, self._since = phase, now

    @contextmanager
    def within(self, phase: str) -> Iterator[None]:
        """`phase` for the length of a block; then goes on in the phase from before."""
        before = self.phase
        self.enter(phase)
        try:
            yield
        finally:
            self.enter(before)

    def move(self, phase: str, into: dict[str, float]) -> None:
        """Counts parts of what has been counted as `phase` as what they are; together never more than there is."""
        for name, seconds in into.items():
            moved = max(0.0, min(seconds, self.seconds.get(phase, 0.0)))
            self.seconds[name] = self.seconds.get(name, 0.0) + moved
            self.seconds[phase] = self.seconds.get(phase, 0.0) - moved

    def record(self) -> dict[str, Any]:
        """As JSON: when it began, seconds by phase, and the spans."""
        return {"began": self.began, "seconds": self.seconds, "spans": self.spans}


@dataclass
class StepTimes:
    """The steps of one process: the first ones by themselves, the later ones as sums. Logged steps do more."""

    first: list[tuple[bool, float]] = field(default_factory=list)  # (logged, seconds)
    later: dict[bool, tuple[int, float]] = field(default_factory=dict)  # logged: (steps, seconds)

    def add(self, seconds: float, logged: bool) -> None:
        """Counts a step."""
        if len(self.first) < FIRST_STEPS:
            self.first.append((logged, seconds))
            return
        count, total = self.later.get(logged, (0, 0.0))
        self.later[logged] = count + 1, total + seconds

    def parts(self) -> dict[str, float]:
        """Of the steps' time: `compilation`, what the first steps took beyond the usual of their kind, and
        `logging extra`, what logged steps usually take beyond others."""
        usual = {kind: value for kind in (False, True) if (value := self._usual(kind)) is not None}
        compilation = sum(max(0.0, seconds - usual[kind]) for kind, seconds in self.first)
        logged = sum(kind for kind, _ in self.first) + self.later.get(True, (0, 0.0))[0]
        extra = logged * max(0.0, usual[True] - usual[False]) if len(usual) == 2 else 0.0
        return {"compilation": compilation, "logging extra": extra}

    def _usual(self, logged: bool) -> float | None:
        """The mean of the later steps of a kind; where all were early, the shortest; None without any."""
        count, total = self.later.get(logged, (0, 0.0))
        if count:
            return total / count
        return min((seconds for kind, seconds in self.first if kind == logged), default=None)


@dataclass(frozen=True)
class TrialPhases:
    """One trial in one command, from when its driver took it up to when that was done with it.

    `seconds`: by phase, over the whole length. `cores` is what its workers asked for.
    """

    key: str
    start: float
    end: float
    cores: float
    seconds: dict[str, float]
    spans: tuple[Span, ...] = ()

    @property
    def length(self) -> float:
        """In seconds."""
        return self.end - self.start


@dataclass(frozen=True)
class SweepPhases:
    """A command that ran trials. `spans` are the command's own, without gaps; `cores` what there was to run on."""

    sweep: str
    session: str
    cores: float
    spans: tuple[Span, ...]
    trials: tuple[TrialPhases, ...]

    @property
    def wall(self) -> float:
        """Seconds from the command's start to the last thing it recorded."""
        return self.spans[-1][2] - self.spans[0][1] if self.spans else 0.0

    @property
    def steps_over_cores(self) -> float:
        """Seconds that the trials' steps would take, spread evenly over all cores."""
        return sum(t.seconds.get("steps", 0.0) * min(t.cores, self.cores) for t in self.trials) / self.cores

    @property
    def wall_over_steps(self) -> float | None:
        """Wall time over the steps' time spread over the cores; None without steps."""
        return self.wall / self.steps_over_cores if self.steps_over_cores > 0 else None

    def of_the_wall(self) -> dict[str, float]:
        """The wall time by phase; the parts add up to it.

        Where k trials run at once each second counts 1/k for each; a trial's share is split as its own phases are.
        """
        parts = dict.fromkeys(PHASES, 0.0)
        shares, alone = self._shares()
        for phase, start, end in self.spans:
            if phase != TRIALS:
                parts[phase if phase in parts else "other"] += end - start
        parts["Ray"] += alone
        for trial in self.trials:
            for phase, seconds in trial.seconds.items():
                part = shares[trial.key] * seconds / trial.length if trial.length > 0 else 0.0
                parts[phase if phase in parts else "other"] += part
        return parts

    def _shares(self) -> tuple[dict[str, float], float]:
        """Each trial's seconds of the command's TRIALS phase, and what is left when none ran."""
        shares, alone = {trial.key: 0.0 for trial in self.trials}, 0.0
        for phase, start, end in self.spans:
            if phase != TRIALS:
                continue
            edges = {start, end, *(t for trial in self.trials for t in (trial.start, trial.end) if start < t < end)}
            ordered = sorted(edges)
            for begin, stop in itertools.pairwise(ordered):
                running = [trial.key for trial in self.trials if trial.start <= begin and stop <= trial.end]
                for key in running:
                    shares[key] += (stop - begin) / len(running)
                alone += 0.0 if running else stop - begin
        return shares, alone


def process_start() -> float:
    """When this process was started, in seconds since the epoch; where the system does not say, now."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError, AttributeError):
        return time.time()


@contextmanager
def noting_driver(folder: TrialFolder, session: str) -> Iterator[None]:
    """Notes in the trial's folder when its driver took it up, and when it was done with it, however that ended.

    A disk that refuses the note fails no trial.
    """
    began = time.time()
    try:
        yield
    finally:
        with suppress(OSError):
            write_whole(folder.driven, json.dumps({"session": session, "start": began, "end": time.time()}))


def write_phases(path: Path, sweep: str, session: str, cores: float, clock: Clock, trials: dict[str, Any]) -> None:
    """Writes phases.json. `trials`: by key, `trial_record`s."""
    clock.enter(clock.phase)
    stored = {"sweep": sweep, "session": session, "cores": cores, "command": clock.record(), "trials": trials}
    write_whole(path, json.dumps(stored) + "\n")


def trial_record(folder: TrialFolder, session: str, cores: float) -> dict[str, Any] | None:
    """What the trial's folder says of its phases in the command `session`; None if its driver noted nothing."""
    driven, result = read_json(folder.driven), read_json(folder.result)
    if not isinstance(driven, dict) or driven.get("session") != session:
        return None
    worker = result.get("phases") if isinstance(result, dict) else None
    return {"start": driven.get("start"), "end": driven.get("end"), "cores": cores, "worker": worker}


def parse_phases(stored: Any) -> SweepPhases | None:
    """The record in phases.json; None where it is damaged, or no trial was run."""
    try:
        trials = tuple(_trial(str(key), each) for key, each in stored["trials"].items())
        spans = _spans(stored["command"]["spans"])
        phases = SweepPhases(str(stored["sweep"]), str(stored["session"]), float(stored["cores"]), spans, trials)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return phases if trials and spans and phases.cores > 0 else None


def _trial(key: str, stored: dict[str, Any]) -> TrialPhases:
    start, end, worker = float(stored["start"]), float(stored["end"]), stored.get("worker") or {}
    length = max(0.0, end - start)
    seconds = {str(phase): max(0.0, float(value)) for phase, value in worker.get("seconds", {}).items()}
    spans = _spans(worker.get("spans", []))
    if not seconds:  # it failed or was pruned, and its workers left no times
        return TrialPhases(key, start, start + length, float(stored["cores"]), {"other": length}, spans)
    inside = sum(seconds.values())
    if inside > length > 0:  # an earlier result, or another machine's clock
        seconds = {phase: value * length / inside for phase, value in seconds.items()}
        inside = length
    cores = float(stored["cores"])
    return TrialPhases(key, start, start + length, cores, {**seconds, "driver": length - inside}, spans)


def _spans(stored: list[Any]) -> tuple[Span, ...]:
    return tuple((str(phase), float(start), float(end)) for phase, start, end in stored)
