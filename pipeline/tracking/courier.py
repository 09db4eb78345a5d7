"""Ships trials to the tracker from threads of its own, so that a slow tracker holds up nothing."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from pipeline.errors import UserError
from pipeline.layout import TrialFolder
from pipeline.records.state import State
from pipeline.secrecy import mask
from pipeline.settings.config import Experiment
from pipeline.settings.trials import Trial
from pipeline.tracking.pool import CallPool
from pipeline.tracking.store import StoreUnreachable

_EVERY_S = 3.0
_STUCK_S = 120.0  # for one trial to be shipped; a tracker that takes longer is given up
_HURRY_S = 5.0  # to come to an end when the user will not wait
STATUS = {State.FINISHED: "FINISHED", State.PRUNED: "FINISHED", State.FAILED: "FAILED", State.STOPPED: "KILLED"}


class TrackingTarget(Protocol):
    """What the courier delivers to, as the Tracker. Starting and shipping again does no harm.

    Calls for different trials, and for the summary, may be under way together, for one trial never. `close` comes last.
    """

    at_once: int  # how many trials it takes at a time

    @property
    def untouched(self) -> bool:
        """Whether the store has never answered, so that no run of it can have been left RUNNING."""

    def start_trial(
        self, folder: TrialFolder, trial: Trial, sweep: str, extra: dict[str, str], ending: str | None = None
    ) -> str:
        """Opens the trial's run, or goes on in the one that it has; returns its id. `ending`: as what it has ended."""

    def ship(self, folder: TrialFolder) -> int:
        """Sends what is new in the folder or still outstanding; returns how much."""

    def end_trial(self, folder: TrialFolder, status: str) -> None:
        """Ends the trial's run as FINISHED, FAILED or KILLED."""

    def lacks(self, folder: TrialFolder) -> bool:
        """Whether something of a started trial is still outstanding, its end included."""

    def start_summary(self, sweep_folder: Path, experiment: Experiment) -> str:
        """Opens the summary run of a sweep; returns its id."""

    def end_summary(self, status: str, artifacts: list[Path]) -> None:
        """Files the report and ends the summary run."""

    def close(self, status: str) -> dict[Path, str]:
        """Ends what is still open as `status`; returns the folders of what could not be delivered, and why."""


@dataclass
class _Parcel:
    """A trial in the courier's hands. Its own thread makes it `busy`, only ever one that is not, and gives it away; the
    thread that has it makes it not `busy` as its last deed, and is the only one to touch the rest until then."""

    trial: Trial
    folder: TrialFolder
    busy: bool = False
    started: bool = False
    ended: bool = False
    over: bool = False  # ended, and delivered: of 10,000 trials most are, and going around them all would take a round


class Courier:
    """Takes the trials' states from `see`, and delivers them to the tracker until `finish`.

    Its own thread goes around all trials, and delivers as many at a time as the tracker takes. A trial whose
    last call is still under way is passed over, so that its calls come in order. Should the thread end by an error,
    training goes on, and `finish` reports that nothing was delivered any more.
    """

    def __init__(
        self,
        tracker: TrackingTarget,
        sweep: str,
        folder: Path,
        experiment: Experiment,
        trials: Sequence[tuple[Trial, TrialFolder]],
        extra: Mapping[str, str],
    ) -> None:
        self._tracker, self._sweep, self._folder, self._experiment = tracker, sweep, folder, experiment
        self._parcels = {trial.key: _Parcel(trial, place) for trial, place in trials}
        self._pool = CallPool(tracker.at_once, "courier-pool")
        self._extra = dict(extra)
        self._states: dict[str, State] = {}
        self._summary_open = experiment.sweep is None  # one run alone has no summary
        self._problems: dict[str, str] = {}  # shared by all threads
        self._away: set[str] = set()  # of these, those whose cause is that the store does not answer
        self._lock = threading.Lock()  # guards both
        self._moved = time.monotonic()
        self._closing = threading.Event()
        self._let_go = False
        self._status = "KILLED"
        self._make_report: Callable[[], list[Path]] | None = None
        self._thread = threading.Thread(target=self._work, name="courier", daemon=True)
        self._thread.start()

    def see(self, states: Mapping[str, State]) -> None:
        """The trials' states as they are now."""
        self._states = dict(states)

    def let_go(self) -> None:
        """Delivers nothing more, not even that runs have ended: another process goes on with them, or nothing
        was begun."""
        self._let_go = True
        self._closing.set()
        self._thread.join(_HURRY_S)

    def finish(
        self,
        status: str,
        make_report: Callable[[], list[Path]] | None,
        wait_s: float | None,
        hurry: Callable[[], bool] = lambda: False,
    ) -> list[str]:
        """Ships the rest, files the report, ends every run, and returns what went wrong, in words.

        Args:
            status: of the summary run.
            make_report: makes the files for the summary run, when every trial has been shipped.
            wait_s: waits no longer than this; None: as long as something moves.
            hurry: whether the user will not wait any longer.
        """
        self._status, self._make_report = status, make_report
        self._moved = began = time.monotonic()
        self._closing.set()
        end = None if wait_s is None else began + wait_s
        while self._thread.is_alive():
            if end is None and hurry():
                end = time.monotonic() + _HURRY_S
            now = time.monotonic()
            left = min(self._moved + _STUCK_S, end or float("inf")) - now
            if left <= 0:
                self._note("wait", f"the tracker was still busy after {wait_s or now - began:.3g} s")
                break
            self._thread.join(min(left, 0.5))
        with self._lock:
            return list(self._problems.values())

    def _work(self) -> None:
        try:
            while not self._closing.wait(_EVERY_S):
                self._round()
            if not self._let_go:
                self._end()
        except BaseException as error:  # or nobody would know that nothing is delivered any more
            self._note("courier", mask(f"what delivers to the tracker was ended by an error: {error!r}"))

    def _end(self) -> None:
        while self._round():  # who was passed over has not had a last call
            self._pool_done()
        self._pool_done()
        if self._experiment.sweep is not None and self._summary_open:
            files: list[Path] = []
            if self._make_report is not None:
                with self._noting("report"):
                    files = self._make_report()
            with self._noting("summary"):
                self._tracker.end_summary(self._status, files)
        undelivered: dict[Path, str] = {}
        with self._noting("close"):
            undelivered = self._tracker.close(self._status)
        if undelivered:
            with self._lock:  # one word of a store that does not answer is enough
                self._problems = {what: problem for what, problem in self._problems.items() if what not in self._away}
        for why in dict.fromkeys(undelivered.values()):
            names = ", ".join(folder.name for folder, reason in undelivered.items() if reason == why)
            self._note(f"close {why}", f"the tracker has not taken all of {names}" + (f" ({why})" if why else ""))
        if undelivered and "report" in self._away:
            self._note("report", "the report, which is made of what the tracker has, comes with the rest")

    def _pool_done(self) -> None:
        """Waits for all calls under way. What one raises in spite of `_noting` keeps no other trial from its end."""
        try:
            self._pool.wait()
        except BaseException as error:
            self._note("pool", mask(f"a call to the tracker was ended by an error: {error!r}"))

    def _round(self) -> bool:
        """Submits every idle trial; True if any was busy."""
        if self._states and not self._summary_open:  # before any is known, all may still be refused
            with self._noting("summary"):
                self._tracker.start_summary(self._folder, self._experiment)
                self._summary_open = True
        passed_over = False
        for key, state in self._states.items():
            parcel = self._parcels[key]
            if parcel.busy:
                passed_over = True
            elif not parcel.over and (parcel.ended or state is not State.WAITING):
                parcel.busy = True
                self._pool.submit(partial(self._ship, parcel, state))
        return passed_over

    def _ship(self, parcel: _Parcel, state: State) -> None:
        try:
            with self._noting(parcel.trial.key):
                if not parcel.started:
                    self._tracker.start_trial(parcel.folder, parcel.trial, self._sweep, self._extra, STATUS.get(state))
                    parcel.started = True
                self._tracker.ship(parcel.folder)
                if state in STATUS and not parcel.ended:
                    self._tracker.end_trial(parcel.folder, STATUS[state])
                    parcel.ended = True
                parcel.over = parcel.ended and not self._tracker.lacks(parcel.folder)
        finally:
            parcel.busy = False  # or the end would be waited for for ever

    @contextmanager
    def _noting(self, what: str) -> Iterator[None]:
        """An error of what is done within is kept for the end of the sweep: no tracker may stop a training run."""
        try:
            yield
        except Exception as error:
            self._note(what, mask(f"{what}: {error}" if isinstance(error, UserError) else f"{what}: {error!r}"))
            with self._lock:
                (self._away.add if isinstance(error, StoreUnreachable) else self._away.discard)(what)
        else:
            with self._lock:
                self._problems.pop(what, None)
                self._away.discard(what)
        finally:
            self._moved = time.monotonic()

    def _note(self, what: str, problem: str) -> None:
        with self._lock:
            self._problems[what] = problem
